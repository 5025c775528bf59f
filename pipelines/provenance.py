"""Where a result comes from: resolved config, versions, commit, command, and how two settings differ."""

import dataclasses
import json
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import samtok
from samtok.checkout import commit

PACKAGES = ("ray", "torch", "transformers", "sam2", "deepspeed", "pyarrow", "mlflow", "numpy")


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any], *, before: str = "before") -> str:
    """Names every entry that two fingerprints differ in, with both values; empty if there is none."""
    return "; ".join(
        f"{name}: {before} {earlier.get(name)!r}, now {now.get(name)!r}"
        for name in sorted({*earlier, *now})
        if earlier.get(name) != now.get(name)
    )


def config_json(config: Any) -> str:
    """Returns the resolved config as JSON text that ``--config`` reads back."""
    return json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True) + "\n"


def as_json(config: Any) -> dict[str, Any]:
    """Returns the resolved config as JSON values."""
    return json.loads(config_json(config))


def versions() -> dict[str, str]:
    """Returns what produced a result: our version and commit, Python, and the packages that matter."""
    found = {name: version(name) for name in PACKAGES}
    return {"samtok": samtok.__version__, "commit": commit(), "python": sys.version.split()[0], **found}


def command() -> str:
    """Returns the command line of this process, without the interpreter's folder."""
    return shlex.join(["python", *sys.argv])
