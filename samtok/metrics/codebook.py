"""How well codebooks are used: share of codes, perplexity, dead codes, distinct masks. Loads numpy only."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int


@dataclass(frozen=True)
class LevelUsage:
    """Use of one codebook over a set of masks."""

    used: int
    """Codes that occur at least once."""
    dead: int
    """Codes that never occur."""
    perplexity: float
    """exp of the histogram's entropy: 1 if one code does all, the codebook size if all are equally used."""


@dataclass(frozen=True)
class Agreement:
    """How far two sets of codes of the same masks agree."""

    masks: int
    equal: float
    """Share of the masks whose codes are the same at all levels."""
    by_level: tuple[float, ...]
    """Share of equal codes of each level."""


def histogram(codes: Int[np.ndarray, "mask level"], num_codes: int) -> Int[np.ndarray, "level num_codes"]:
    """Counts every code of every level."""
    return np.stack(
        [np.bincount(level, minlength=num_codes) for level in np.asarray(codes, dtype=np.int64).T]
    )


def usage(counts: Int[np.ndarray, "level num_codes"]) -> list[LevelUsage]:
    """Summarises a histogram level by level; no masks at all give a perplexity of 0."""
    return [_level(row) for row in counts]


def _level(row: np.ndarray) -> LevelUsage:
    used = int((row > 0).sum())
    if used == 0:
        return LevelUsage(0, len(row), 0.0)
    share = row[row > 0] / row.sum()
    return LevelUsage(used, len(row) - used, float(np.exp(-(share * np.log(share)).sum())))


def agreement(
    first: Int[np.ndarray, "mask level"], second: Int[np.ndarray, "mask level"]
) -> Agreement | None:
    """Compares two sets of codes; None for no masks."""
    if not len(first):
        return None
    same = first == second
    return Agreement(len(same), float(same.all(1).mean()), tuple(same.mean(0).tolist()))


def distinct(codes: Int[np.ndarray, "mask level"]) -> int:
    """Returns how many different code tuples occur."""
    return len(np.unique(codes, axis=0)) if len(codes) else 0
