"""Flags, ``--preset`` and ``--config`` to one frozen config; the same in every job.

``tyro`` makes the flags from the fields of the job's config class. Flags win over the preset or the config
file, those win over the defaults of the fields. A field that is ``tyro.MISSING`` stays required. Without any
flag, or with ``--dry-run`` alone, a job takes its preset ``smoke``.
"""

import argparse
import atexit
import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pydantic
import tyro

from pipelines import help as pages
from pipelines.config import check_tree, checks_later, flag_name
from pipelines.renamed_flags import successor
from samtok.errors import ConfigError

T = TypeVar("T")


def parse(kind: type[T], presets: Mapping[str, T], argv: list[str] | None, *, doc: str | None) -> T:
    """Returns the config that the command line asks for.

    ``argv`` has no program's name; None takes the process's own. ``doc`` is shown by ``--help``. Raises
    SystemExit with 0 after ``--help`` or ``--help-all``, with 2 for a wrong flag, preset or config file.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if not set(arguments) - {"--dry-run"} and "smoke" in presets:
        sys.stdout.write("no flags: running --preset smoke (see --help)\n")
        arguments = ["--preset", "smoke", *arguments]
    known, rest = _common_flags(presets).parse_known_args(arguments)
    base: Any = pages.REQUIRED if known.preset is None else presets[known.preset]
    if known.config is not None:
        base = _from_file(kind, known.config)
    if known.help:
        _show(pages.first_page(kind, presets, base=base, doc=doc, program=f"python {sys.argv[0]}"))
    _refuse_renamed(kind, rest)
    try:
        with checks_later():
            config = _with_flags(kind, base, ["--help"] if known.help_all else rest, doc)
        check_tree(config)
    except ConfigError as error:
        _fail(str(error))
    return config


def leave(code: int) -> NoReturn:
    """Ends the process of a job. Threads of Ray, Arrow and torch that still run would make Python's own end
    abort (exit code 134) after all is done."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the reader of a pipe has gone
            stream.flush()
    os._exit(code)


def _with_flags(kind: type[T], base: Any, flags: list[str], doc: str | None) -> T:
    """Returns the config of ``base`` with the flags; ``--help`` among them prints all of them and ends."""
    options: dict[str, Any] = {} if base is pages.REQUIRED else {"default": base}
    printed = io.StringIO()  # tyro prints only its help here, which ``_show`` hands on
    try:
        with contextlib.redirect_stdout(printed):
            return tyro.cli(
                kind, args=flags, description=doc or "", config=(tyro.conf.AvoidSubcommands,), **options
            )
    except SystemExit as end:
        if end.code == 0:
            _show(printed.getvalue())
        raise


def _show(text: str) -> NoReturn:
    """Prints a page and ends the program, also where the reader of a pipe has gone (``| head``)."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at exit
    raise SystemExit(0)


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(2)


def _common_flags(presets: Mapping[str, Any]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--preset", choices=list(presets))
    group.add_argument("--config")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--help-all", action="store_true")
    return parser


def _refuse_renamed(kind: type, flags: list[str]) -> None:
    known = {flag.name.removeprefix("--") for flag in pages.flags_of(kind)}
    for flag in flags:
        old = flag.partition("=")[0].removeprefix("--")
        new = successor(old, known) if flag.startswith("--") else None
        if new is not None:
            _fail(f"--{old} is now --{new} (CHANGELOG.md).")


def _from_file(kind: type[T], path: str) -> T:
    where, body = f"--config {path}", None
    try:
        body = json.loads(Path(path).read_text(encoding="utf-8"))
        with checks_later():
            config = pydantic.TypeAdapter(kind).validate_python(body)
        check_tree(config)
        return config
    except pydantic.ValidationError as error:
        known = {flag.name.removeprefix("--") for flag in pages.flags_of(kind)}
        _fail(f"{where}: {'; '.join(_faults(error, body, known))}.")
    except ConfigError as error:
        _fail(f"{where}: {error}")
    except (OSError, ValueError, RecursionError) as error:
        _fail(f"{where} cannot be used: {error}.")


def _faults(error: pydantic.ValidationError, body: Any, known: set[str]) -> list[str]:
    """Returns what is wrong with a config file: keys of an earlier version with their new names first."""
    leaves = list(_leaves(body))
    found = {leaf: new.replace("-", "_") for leaf in leaves if (new := successor(leaf, known))}
    lines = [f"{old} is now {new}" for old, new in found.items()]
    for one in error.errors():
        key = ".".join(map(str, one["loc"]))
        below = [leaf for leaf in leaves if f"{leaf}.".startswith(f"{key}.")]
        if any(leaf in found for leaf in below):
            gone = [leaf for leaf in below if leaf not in found and flag_name(leaf) not in known]
            lines += [f"{leaf} is no key of this job" for leaf in gone]
        elif key not in found.values():
            lines.append(_fault(dict(one), key or "the file"))
    return lines


def _leaves(body: Any, prefix: str = "") -> Iterator[str]:
    """Yields the dotted keys of all values that are no objects."""
    for name, value in body.items() if isinstance(body, dict) else ():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _fault(error: Mapping[str, Any], key: str) -> str:
    if error["type"] == "unexpected_keyword_argument":
        return f"{key} is no key of this job"
    if isinstance(cause := error.get("ctx", {}).get("error"), ConfigError):  # found by a config class
        return str(cause).rstrip(".")
    return f"{key} is {error['input']!r:.80}: {error['msg']}"
