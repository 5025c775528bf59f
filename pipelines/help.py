"""The fields of a job's config as flags, and the first page of ``--help``.

Everything is read from the source of the config classes: the docstring under a field is its help, the comment
above a preset describes it. A config class may list the flags of its first page in ``MAIN``, by field:
``MAIN = ("corpus.source", "out", "validation")``; by default they are its own plain fields.
"""

import ast
import dataclasses
import functools
import inspect
import io
import itertools
import shutil
import sys
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from pipelines.config import flag_name

REQUIRED = tyro.MISSING
WIDTH = 100  # columns of the page at most


@dataclass(frozen=True)
class Flag:
    """A plain field of a job's config, at any depth."""

    path: str
    """Names of the fields that lead to it, as ``corpus.source``."""
    hint: Any
    value: Any
    """Its default; ``REQUIRED`` if there is none."""
    owner: type
    """The class that has the field."""

    @property
    def name(self) -> str:
        """The flag, as ``--corpus.source``."""
        return f"--{flag_name(self.path)}"


def flags_of(kind: type, base: Any = REQUIRED, prefix: str = "") -> Iterator[Flag]:
    """Yields the flags of a config class and of the configs inside it, with their values in ``base``."""
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        path, value = prefix + field.name, _value_of(field, base)
        inner = _config_in(hints[field.name])
        if inner is None:
            yield Flag(path, hints[field.name], value, kind)
        else:
            yield from flags_of(inner, value, f"{path}.")


def _value_of(field: dataclasses.Field, base: Any) -> Any:
    if dataclasses.is_dataclass(base):
        return getattr(base, field.name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return REQUIRED if field.default is dataclasses.MISSING else field.default


def _config_in(hint: Any) -> type | None:
    """Returns the config class that a field holds; None for a plain field."""
    if any(isinstance(note, PrimitiveConstructorSpec) for note in getattr(hint, "__metadata__", ())):
        return None
    plain = _plain(hint)
    return plain if dataclasses.is_dataclass(plain) and isinstance(plain, type) else None


def _plain(hint: Any) -> Any:
    """Returns the type without its notes and without None."""
    if get_origin(hint) is typing.Annotated:
        return _plain(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        parts = [part for part in get_args(hint) if part is not type(None)]
        return _plain(parts[0]) if len(parts) == 1 else hint
    return hint


# ---------------------------------------------------------------- the first page


def first_page(kind: type, presets: Mapping[str, Any], *, base: Any, doc: str | None, program: str) -> str:
    """Returns what ``--help`` prints: description, presets, and the flags that most people set.

    The values are those of ``base``; ``REQUIRED`` shows the defaults of the fields. ``doc`` is printed as is.
    """
    width = min(WIDTH, shutil.get_terminal_size((WIDTH, 1)).columns)
    parts = [f"usage: {program} [--preset NAME | --config RUN/config.json] [FLAGS]", (doc or "").strip()]
    if presets:
        notes = preset_notes(presets)
        entries = [(name, notes.get(name, "")) for name in presets]
        parts.append(f"presets, which flags change:\n{_two_columns(entries, width)}")
    entries = [
        (f"{flag.name} {_metavar(flag.hint)}".rstrip(), _described(flag)) for flag in _main(kind, base)
    ]
    parts.append(f"flags that most people set:\n{_two_columns(entries, width)}")
    parts.append("--config RUN/config.json repeats a run. --help-all lists every flag.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _main(kind: type, base: Any) -> list[Flag]:
    every = list(flags_of(kind, base))
    main = getattr(kind, "MAIN", None)
    if main is None:
        return [flag for flag in every if "." not in flag.path]
    chosen = []
    for path in main:
        found = [flag for flag in every if flag.path == path or flag.path.rpartition(".")[0] == path]
        assert found, f"MAIN of {kind.__name__} names {path}, which is no field"
        chosen += found
    return chosen


def _described(flag: Flag) -> str:
    doc = field_docs(flag.owner).get(flag.path.rpartition(".")[2], "")
    if flag.value is REQUIRED:
        return f"{doc} (required)"
    if flag.value is None or flag.value == ():
        return doc
    value = " ".join(map(str, flag.value)) if isinstance(flag.value, tuple) else flag.value
    return f"{doc} (default: {value})"


def _metavar(hint: Any) -> str:
    plain = _plain(hint)
    if plain is bool:
        return ""
    if get_origin(plain) is Literal:
        return "{" + ",".join(map(str, get_args(plain))) + "}"
    if get_origin(plain) is tuple:
        arguments = get_args(plain)
        several = arguments[-1:] == (Ellipsis,)
        return " ".join(map(_metavar, arguments[:1] if several else arguments)) + (" ..." if several else "")
    return getattr(plain, "__name__", "value").upper()


def _two_columns(entries: list[tuple[str, str]], width: int) -> str:
    indent = 26
    lines = []
    for left, right in entries:
        body = textwrap.wrap(right, width - indent) or [""]
        first = f"  {left}".ljust(indent)
        if len(first) > indent or first[-1] != " ":
            lines.append(f"  {left}")
            first = " " * indent
        lines += [(first + body[0]).rstrip(), *(" " * indent + line for line in body[1:])]
    return "\n".join(lines)


# ---------------------------------------------------------------- texts in the source


@functools.cache
def field_docs(kind: type) -> dict[str, str]:
    """Returns the docstrings under the fields of a config class, its bases included, in one line each."""
    found: dict[str, str] = {}
    for cls in [cls for cls in reversed(kind.__mro__) if dataclasses.is_dataclass(cls)]:
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(body, ast.ClassDef)
        for field, below in itertools.pairwise(body.body):
            match field, below:
                case ast.AnnAssign(ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                    found[name] = " ".join(text.split())
    return found


def preset_notes(presets: Mapping[str, Any]) -> dict[str, str]:
    """Returns the first sentence of the comment above each preset, or above the constant that it is."""
    for module in list(sys.modules.values()):
        source = getattr(module, "__file__", None)
        name = next((name for name, value in list(vars(module).items()) if value is presets), None)
        if name is not None and source and (notes := _notes_in(Path(source).read_text("utf-8"), name)):
            return notes
    return {}


def _notes_in(source: str, attribute: str) -> dict[str, str]:
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#")
    }
    constants: dict[str, ast.expr] = {}
    for node in ast.parse(source).body:
        match node:
            case ast.Assign([ast.Name(name)], value) | ast.AnnAssign(ast.Name(name), _, ast.expr() as value):
                constants[name] = value
    mapping = constants.get(attribute)
    notes = {}
    for key, value in zip(mapping.keys, mapping.values, strict=True) if isinstance(mapping, ast.Dict) else ():
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            named = constants.get(value.id) if isinstance(value, ast.Name) else None
            text = _above(key.lineno, comments) or (_above(named.lineno, comments) if named else "")
            head, stop, _ = text.partition(". ")
            notes[key.value] = head + "." if stop else text
    return notes


def _above(line: int, comments: Mapping[int, str]) -> str:
    found: list[str] = []
    while (line := line - 1) in comments:
        found.insert(0, comments[line])
    return " ".join(found)
