"""What every job does around its work: logging, exit codes, versions, the config beside the results."""

import dataclasses
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import samtok
from pipelines import log as logs
from samtok.errors import ClusterError, SamtokError

log = logging.getLogger(__name__)

PACKAGES = ("ray", "torch", "transformers", "sam2", "deepspeed", "pyarrow", "mlflow", "numpy")


def guard(work: Callable[[], int]) -> int:
    """Runs a job and returns its exit code; errors of our family become one clear line."""
    logs.setup()
    try:
        return work()
    except KeyboardInterrupt:
        log.error("interrupted; the same command resumes")
        return 130
    except Exception as error:
        ours = known_cause(error)
        if ours is None and type(error).__module__ == "ray.exceptions":
            ours = ClusterError(f"{type(error).__name__}: {str(error).strip()[-1500:]}")
        if ours is None:
            raise
        log.error("%s: %s", type(ours).__name__, ours)
        return ours.exit_code


def known_cause(error: BaseException | None) -> SamtokError | None:
    """Finds the error of our family behind another one: Ray wraps what its workers raise, several times."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, SamtokError) and type(error).__module__ != "ray.exceptions":
            return error
        seen.add(id(error))
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return None


def config_json(config: Any) -> str:
    """Returns the resolved config as JSON text that ``--config`` reads back."""
    return json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True) + "\n"


def versions() -> dict[str, str]:
    """Returns what produced a result: our version and commit, Python, and the packages that matter."""
    found = {name: version(name) for name in PACKAGES}
    return {"samtok": samtok.__version__, "commit": commit(), "python": sys.version.split()[0], **found}


def commit() -> str:
    """Returns the commit of the tree, with ``+`` if there are changes; ``unknown`` outside a checkout."""
    root = Path(__file__).parent.parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
