"""Texts that a language model judges: what it is asked, and what such benchmarks share.

DLC-Bench, MDVP-Bench and VideoRefer-Bench-D make an ``Ask`` for each judgement, whoever answers gives replies
by the names of the asks, and they score these. Nothing here speaks to a model.

The published wording of the questions decides numbers, and is not ours to repeat, so each benchmark has an
own wording that asks for the same in the same form. The published one can be given instead
(``wording_of``); results that are to stand beside published ones need it.

Of every result these counts add up: ``expected = asked + missing`` and ``asked = judged + failed``.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
from jaxtyping import UInt8

from samtok.errors import ConfigError
from samtok.metrics.referring import MODES, Mode

Replies = Mapping[str, str | None]
"""Texts of a judge by the names of the asks; None where the judgement failed."""

_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a judge generates: at which temperature, 0 or more, where 0 takes the likeliest token; from which
    share of the likeliest tokens, in (0, 1]; and how many tokens at most."""

    temperature: float
    top_p: float = 1.0
    max_tokens: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Ask:
    """One judgement that is wanted.

    Attributes:
        name: Says which, unique in its benchmark.
        prompt: What the judge is told, and shown behind it the images.
        system: What it is told before.
        sampling: What the protocol prescribes.
        images: RGB, values 0 to 255.
    """

    name: str
    prompt: str
    system: str | None = None
    sampling: Sampling
    images: tuple[UInt8[np.ndarray, "_height _width 3"], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Wording:
    """Texts of a benchmark with places such as ``{caption}``; those in ``PLACES`` have to be there."""

    PLACES: ClassVar[Mapping[str, tuple[str, ...]]] = {}


W = TypeVar("W", bound=Wording)


def wording_of(kind: type[W], texts: Mapping[str, Any], where: str) -> W:
    """Returns a wording with some texts replaced.

    Args:
        texts: By the names of the fields of ``kind``.
        where: Where they come from; for errors.

    Raises:
        ConfigError: A name is unknown, a text is none, or lacks one of its places.
    """
    known = [field.name for field in dataclasses.fields(kind)]
    for name, text in texts.items():
        if name not in known or not isinstance(text, str):
            raise ConfigError(f"{where} has {name!r:.80}, expected texts of {', '.join(known)}.")
        lacking = set(kind.PLACES.get(name, ())) - set(_PLACE.findall(text))
        if lacking:
            places = ", ".join(f"{{{place}}}" for place in sorted(lacking))
            raise ConfigError(f"{where}: the text {name!r} lacks {places}.")
    return kind(**texts)


def filled(template: str, **values: str) -> str:
    """Returns a template with ``{name}`` replaced in one pass, so that braces inside a value stay."""
    return _PLACE.sub(lambda found: values.get(found[1], found[0]), template)


def reply_to(name: str, replies: Replies) -> str | None:
    """Returns the reply to an ask, None if it failed.

    Raises:
        ValueError: There is none, not even a failed one: the replies are those of other asks.
    """
    try:
        return replies[name]
    except KeyError:
        raise ValueError(f"there is no reply to {name}, not even a failed one.") from None


def counts(names: Iterable[str], replies: Replies, *, unparsed: int, missing: int) -> dict[str, int]:
    """Returns how many judgements there are.

    Args:
        names: Of what was asked.
        unparsed: Replies that could not be read; they are among the judged.
        missing: Judgements that were not asked for want of a prediction.
    """
    got = [reply_to(name, replies) is not None for name in names]
    return {
        "expected": len(got) + missing,
        "missing": missing,
        "asked": len(got),
        "judged": sum(got),
        "failed": len(got) - sum(got),
        "unparsed": unparsed,
    }


def require_unique(names: Iterable[str]) -> None:
    """Raises ValueError if a name is there twice, as its judgements would be mixed up."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{name} is there twice.")
        seen.add(name)


def require_mode(mode: Mode) -> None:
    """Raises ValueError for an unknown mode."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}.")


def mean(values: list[float]) -> float | None:
    """Returns the mean; None of nothing."""
    return sum(values) / len(values) if values else None
