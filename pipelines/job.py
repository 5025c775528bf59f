"""What every job does around its work: logging, exit codes, versions, the config beside the results."""

import dataclasses
import json
import logging
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import samtok
from pipelines import env, storage
from pipelines import log as logs
from samtok.errors import ClusterError, ConfigError, SamtokError

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


def last_line(error: BaseException) -> str:
    """Returns the end of a long message, such as Ray's with tracebacks in it, without its full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:500].rstrip(".") if lines else type(error).__name__


def refuse_lost_folders(out: str, tracking: str) -> None:
    """Refuses relative places under ``ray job submit``, whose working directory is a copy that Ray deletes.

    Raises:
        ConfigError: Names the flag.
    """
    if env.get(env.RAY_JOB_CONFIG) is None:
        return
    relative_db = tracking.startswith("sqlite:///") and not tracking.startswith("sqlite:////")
    for flag, value, lost in (
        ("out", out, not storage.is_anchored(out)),
        ("tracking", tracking, relative_db),
    ):
        if lost:
            raise ConfigError(
                f"--{flag} {value} is relative, so a submitted job would write it into Ray's temporary copy "
                "of the working directory. Give an absolute path or a URI."
            )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Names every entry that two fingerprints differ in, with both values; empty if there is none."""
    return "; ".join(
        f"{name}: before {before.get(name)!r}, now {now.get(name)!r}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    )


def config_json(config: Any) -> str:
    """Returns the resolved config as JSON text that ``--config`` reads back."""
    return json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True) + "\n"


def versions() -> dict[str, str]:
    """Returns what produced a result: our version and commit, Python, and the packages that matter."""
    found = {name: version(name) for name in PACKAGES}
    return {"samtok": samtok.__version__, "commit": commit(), "python": sys.version.split()[0], **found}


def command() -> str:
    """Returns the command line of this process, without the interpreter's folder."""
    return shlex.join(["python", *sys.argv])


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
