"""Flags, ``--preset`` and ``--config`` to one frozen config; the same in every job.

A config is a frozen dataclass; ``tyro`` makes the flags from its fields. Flags win over the preset or the
config file, those win over the defaults of the fields. A field that is ``tyro.MISSING`` stays required.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import tyro

from samtok.errors import ConfigError

T = TypeVar("T")

FORBID_UNKNOWN = pydantic.ConfigDict(extra="forbid")
"""For ``__pydantic_config__`` of every config class: an unknown key in a config file is named."""


def parse(kind: type[T], presets: Mapping[str, T], argv: list[str] | None, *, doc: str | None) -> T:
    """Returns the config that the command line asks for.

    Args:
        kind: The job's config class.
        presets: Named instances of it.
        argv: Arguments without the program's name; None takes them from the command line.
        doc: The job's description, shown by ``--help``.

    Raises:
        SystemExit: With 0 after ``--help``, with 2 for a wrong flag, preset or config file.
    """
    arguments = sys.argv[1:] if argv is None else argv
    known, rest = _common_flags(presets).parse_known_args(arguments)
    base = None
    if known.preset is not None:
        base = presets[known.preset]
    if known.config is not None:
        base = _from_file(kind, known.config)
    description = (
        f"{doc or ''}\n\n--preset NAME starts from one of: {', '.join(presets)}. "
        "--config RUN/config.json repeats a run. Flags win over both."
    )
    options: dict[str, Any] = {
        "args": rest,
        "description": description,
        "config": (tyro.conf.AvoidSubcommands,),
    }
    if base is not None:
        options["default"] = base
    return tyro.cli(kind, **options)


def refuse_password(tracking: str) -> None:
    """Refuses a tracking URI with a user or password in it.

    Raises:
        ConfigError: Names the variables to use instead.
    """
    if "@" in tracking.partition("://")[2].partition("/")[0]:
        raise ConfigError(
            "--tracking must not hold a user or password, since configs are written beside results. "
            "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead."
        )


def _common_flags(presets: Mapping[str, Any]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--preset", choices=sorted(presets))
    group.add_argument("--config")
    return parser


def _from_file(kind: type[T], path: str) -> T:
    """Reads a resolved config; an unknown or mistyped field is named and ends the program with 2."""
    try:
        body = json.loads(Path(path).read_text(encoding="utf-8"))
        return pydantic.TypeAdapter(kind).validate_python(body)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"--config {path} cannot be used: {error}\n")
        raise SystemExit(2) from error
