"""What the config classes of all jobs share: the decorator, bounds, the base of a run, ``key=value`` flags.

A config class is made by ``@config``: frozen, keyword-only, unknown keys refused. Bounds stand in the type,
as ``Annotated[int, Ge(1)]``; what several fields decide together is checked in a method ``check``. Messages
name flags of their own class as ``--.lr`` (or ``--.start.sam2``); ``located`` puts the place of the object in
the job's config before them, so shared classes never name another job's flags.
"""

import contextlib
import contextvars
import dataclasses
import functools
import operator
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_type_hints

import annotated_types as bounds
import pydantic
import tyro
from annotated_types import Ge, Gt, Interval, MinLen

from samtok.errors import ConfigError
from samtok.folders import HUB, is_hub_id, is_shipped
from samtok.masks import MAX_PIXELS

T = TypeVar("T")

AtLeast0 = Annotated[int, Ge(0)]
AtLeast1 = Annotated[int, Ge(1)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]
NotEmpty = MinLen(1)

Precision = Literal["float32", "bfloat16"]

_checks_later = contextvars.ContextVar("_checks_later", default=False)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field,))
def config(cls: type[T]) -> type[T]:
    """Makes a config class: a frozen keyword-only dataclass that checks itself when it is made.

    The class may have a method ``check(self) -> None`` that raises ConfigError; it runs after the bounds.
    """

    def __post_init__(self: Any) -> None:
        if not _checks_later.get():
            check(self)

    namespace: Any = cls
    namespace.__post_init__ = __post_init__
    namespace.__pydantic_config__ = pydantic.ConfigDict(extra="forbid")
    return dataclass(frozen=True, kw_only=True)(cls)


def check(settings: Any) -> None:
    """Checks one config object, not those inside it: bounds of its fields, then its own ``check``. Raises
    ConfigError with flags relative to the object, and ``owner`` set to it."""
    try:
        for name, limits in bounds_of(type(settings)).items():
            _check_field(f"--.{flag_name(name)}", getattr(settings, name), limits)
        if hasattr(settings, "check"):
            settings.check()
    except ConfigError as error:
        if error.owner is None:
            error.owner = settings
        raise


def flag_name(field: str) -> str:
    """Returns a field's name as it stands in flags."""
    return field.replace("_", "-")


@functools.cache
def bounds_of(kind: type) -> dict[str, list[Any]]:
    """Returns the bounds of each field that has any."""
    found: dict[str, list[Any]] = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        for note in _notes_in(hint):
            parts = note if isinstance(note, bounds.GroupedMetadata) else (note,)
            if limits := [part for part in parts if isinstance(part, bounds.BaseMetadata)]:
                found.setdefault(name, []).extend(limits)
    return found


def _notes_in(hint: Any) -> Iterator[Any]:
    """Yields what is annotated to a type, and to the types in it."""
    yield from getattr(hint, "__metadata__", ())
    for part in getattr(hint, "__args__", ()):
        yield from _notes_in(part)


_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
"""Of bounds, by the name of their field, which is also that of the operator."""


def _check_field(flag: str, value: Any, limits: Sequence[Any]) -> None:
    if value is None or isinstance(value, type(tyro.MISSING)):
        return
    sides: dict[str, Any] = {}
    for limit in limits:
        if isinstance(limit, bounds.MinLen):
            if len(value) < limit.min_length:
                raise ConfigError(f"{flag} must not be empty.")
        elif isinstance(limit, bounds.MultipleOf):
            if value % limit.multiple_of:
                raise ConfigError(f"{flag} must be a multiple of {limit.multiple_of}, got {value}.")
        else:
            sides |= dataclasses.asdict(limit)
    if isinstance(value, str):  # a word in the place of a number, such as auto
        return
    if not all(getattr(operator, name)(value, bound) for name, bound in sides.items()):
        raise ConfigError(f"{flag} must be {_range(sides)}, got {value}.")


def _range(sides: Mapping[str, Any]) -> str:
    if len(sides) == 1:
        ((name, bound),) = sides.items()
        return f"{_SIGNS[name]} {bound:g}"
    opening, low = ("[", sides["ge"]) if "ge" in sides else ("(", sides["gt"])
    closing, high = ("]", sides["le"]) if "le" in sides else (")", sides["lt"])
    return f"in {opening}{low:g}, {high:g}{closing}"


# ---------------------------------------------------------------- where an object stands in a job's config


@contextlib.contextmanager
def checks_later() -> Iterator[None]:
    """Within the block config objects are made unchecked; ``check_tree`` follows."""
    token = _checks_later.set(True)
    try:
        yield
    finally:
        _checks_later.reset(token)


def check_tree(root: Any) -> None:
    """Checks a job's config with everything inside it; ConfigError has flags as the command line has them."""
    for _, part in reversed(list(parts_of(root))):  # inner objects first: outer checks build on them
        try:
            check(part)
        except ConfigError as error:
            raise located(error, root) from error


def parts_of(root: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the prefix of flags and the object, for a config and every config inside it."""
    yield prefix, root
    for field in dataclasses.fields(root):
        value = getattr(root, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from parts_of(value, f"{prefix}{flag_name(field.name)}.")


def located(error: ConfigError, root: Any) -> ConfigError:
    """Returns an error whose flags stand as the command line of ``root`` has them.

    The object that raised it is looked for by identity, then by class, since configs are replaced on the way.
    """
    owner = error.owner
    places = list(parts_of(root)) if dataclasses.is_dataclass(root) else []
    prefix = next(
        (prefix for prefix, part in places if part is owner),
        next((prefix for prefix, part in places if type(part) is type(owner)), ""),
    )
    return ConfigError(error.message.replace("--.", f"--{prefix}"))


# ---------------------------------------------------------------- places


@dataclass(frozen=True)
class PlaceMark:
    """Marks a field that names files or folders, so that a job can make them absolute.

    Attributes:
        shipped: It may also be the name of something that ships with the package, which stays, or the id of
            a model on the Hugging Face hub, which gets ``hf://`` before it.
        rewrite: For texts that hold places besides other things: gets the text and what makes one place
            absolute, returns the text.
    """

    shipped: bool = False
    rewrite: Callable[[str, Callable[[str], str]], str] | None = None


Place = Annotated[str, PlaceMark()]
ShippedPlace = Annotated[str, PlaceMark(shipped=True)]


def with_places(settings: T, absolute: Callable[[str], str]) -> T:
    """Returns a config with every place in it made absolute, except names of what ships and hub ids."""
    part: Any = settings
    marks, changed = _marks_of(type(settings)), {}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            changed[field.name] = with_places(value, absolute)
        elif field.name in marks:
            changed[field.name] = _placed(value, marks[field.name], absolute)
    return dataclasses.replace(part, **changed)


def places_of(settings: Any) -> dict[str, Any]:
    """Returns the values of the fields that hold places, by their flag."""
    return {
        f"{prefix}{flag_name(name)}": getattr(part, name)
        for prefix, part in parts_of(settings)
        for name in _marks_of(type(part))
        if getattr(part, name) not in (None, (), tyro.MISSING)
    }


def _placed(value: Any, mark: PlaceMark, absolute: Callable[[str], str]) -> Any:
    if isinstance(value, tuple):
        return tuple(_placed(item, mark, absolute) for item in value)
    if not isinstance(value, str) or not value or (mark.shipped and is_shipped(value)):
        return value
    if mark.shipped and is_hub_id(value, path=absolute(value)):
        return HUB + value.removeprefix(HUB)
    return mark.rewrite(value, absolute) if mark.rewrite else absolute(value)


@functools.cache
def _marks_of(kind: type) -> dict[str, PlaceMark]:
    hints = get_type_hints(kind, include_extras=True)
    return {
        name: note for name, hint in hints.items() for note in _notes_in(hint) if isinstance(note, PlaceMark)
    }


# ---------------------------------------------------------------- what every job has


@config
class WorkerConfig:
    """What each process holds."""

    gpus: NotNegative | None = None
    """GPUs of each, fractions allowed; 0 is the CPU. By default 1 if this machine has one."""
    cpus: NotNegative = 1.0
    """CPUs of each that Ray reserves."""
    threads: AtLeast1 = 1
    """Threads of each one's arithmetic; low bits may depend on it."""

    @property
    def device(self) -> str:
        """Where each computes: ``cuda`` or ``cpu``."""
        return "cuda" if self.gpus else "cpu"

    def check(self) -> None:
        """Refuses one and a half GPUs, which Ray cannot give."""
        if (self.gpus or 0) > 1 and self.gpus != int(self.gpus or 0):
            raise ConfigError(f"--.gpus above 1 must be whole, got {self.gpus:g}.")


@config
class ImageLimit:
    """How large the images are that a job decodes."""

    max_image_pixels: Annotated[int, Interval(ge=1, le=MAX_PIXELS)] = 2**26
    """Images with more pixels than this are rejected before they are decoded. The memory follows from it that
    processes which do nothing but decode reserve in Ray."""


@config
class RunConfig:
    """What every job has."""

    out: Place
    """URI of the folder that receives the results: a local path or s3://bucket/prefix. The same --out
    resumes."""
    tracking: str | None = None
    """MLflow tracking URI, or off. By default MLFLOW_TRACKING_URI, else a database beside --out."""
    seed: AtLeast0 = 0
    """Seed of everything that is drawn."""
    limit: AtLeast1 | None = None
    """Take only the first items of each input."""
    max_reject_rate: Share = 0.1
    """The job fails (exit code 3) if a larger share of its items cannot be used, filtered ones apart."""
    dry_run: bool = False
    """Print the resolved config, the checks and the size of the plan, and write nothing."""

    def check(self) -> None:
        """Refuses a tracking URI with a user or password in it."""
        if "@" in (self.tracking or "").partition("://")[2].partition("/")[0]:
            raise ConfigError(
                "--.tracking must not hold a user or password, since configs are written beside results. "
                "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead."
            )


# ---------------------------------------------------------------- flags with several values in one text


def parse_pairs(text: str, *, flag: str, keys: Sequence[str] | None = None) -> dict[str, str]:
    """Reads ``a=1,b=2``. A value with a comma stands in quotes: ``source="a,b.json"``. Raises ConfigError,
    which names ``flag`` (without its dashes), the bad part, and ``keys`` unless any may be there."""
    pairs: dict[str, str] = {}
    for part in _split(text, flag):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key or (keys is not None and key not in keys):
            known = f" with a key of {', '.join(keys)}" if keys is not None else ""
            raise ConfigError(
                f"--{flag} {text}: {part!r} is not key=value{known}. A value with a comma stands in quotes."
            )
        if not value:
            raise ConfigError(f"--{flag} {text}: {key} is empty; give it a value or leave it out.")
        if key in pairs:
            raise ConfigError(
                f"--{flag} {text}: {key} is given twice, as {pairs[key]} and {value}; keep one."
            )
        pairs[key] = value
    return pairs


def format_pairs(values: Mapping[str, Any]) -> str:
    """Returns the text that ``parse_pairs`` reads back; entries that are None are left out."""
    return ",".join(f"{key}={_quoted(str(value))}" for key, value in values.items() if value is not None)


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"' if set(value) & set(",\"'\\ ") else value


def _split(text: str, flag: str) -> list[str]:
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = ",", True, ""
    try:
        return [part for part in lexer if part.strip()]
    except ValueError as error:
        raise ConfigError(f"--{flag} {text}: a quote is not closed.") from error


def number(text: str, *, where: str, kind: type[int] | type[float] = float) -> float:
    """Reads a finite number above 0 from a part of a flag; a ConfigError begins with ``where``."""
    try:
        value = kind(text)
    except ValueError:
        value = -1
    if not 0 < value < float("inf"):
        what = "whole number >= 1" if kind is int else "number > 0"
        raise ConfigError(f"{where} must be a {what}, got {text}.")
    return value
