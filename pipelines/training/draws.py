"""Items that steps draw from corpora, and what takes the place of one that cannot be used. Loads no torch.

Such an item is rejected with a reason, and another one of its corpus is read instead.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from samtok.errors import DataError

R = TypeVar("R")
S = TypeVar("S", bound=Sized)

REPLACEMENTS = 16
"""Items that are tried in the place of one that cannot be used."""


class Draw(NamedTuple):
    """One item of a run: its number over all epochs, its corpus, its place in it, and how often it was drawn
    before."""

    number: int
    source: int
    index: int
    before: int = 0


def in_turn(sources: Sequence[S]) -> Iterator[tuple[S, int]]:
    """Yields the places of all items: the first of each source, then the second ones, and so on."""
    for index in range(max(map(len, sources), default=0)):
        yield from ((source, index) for source in sources if index < len(source))


class Unusable(Exception):
    """An item that cannot be trained on.

    Args:
        reject: Its entry of the reject table.
        filtered: Whether the user's settings leave it out, so that nothing is wrong with it.
        counts: What it adds to the counts of smaller items, such as ``masks_in`` and ``masks_rejected``,
            when it is first drawn.
    """

    def __init__(
        self, reject: dict[str, Any], *, filtered: bool = False, counts: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(reject["message"])
        self.reject, self.filtered, self.counts = reject, filtered, counts or {}


@dataclass
class Drawn:
    """What was drawn on the way to the items that are trained on."""

    rejects: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # as ``worker.Tally.counts``


@dataclass(frozen=True)
class Corpora(Generic[S]):
    """How items are read from corpora, and what is done about those that cannot be used."""

    kind: str  # what items are, in the plural
    sources: tuple[S, ...]  # the corpora
    names: tuple[str, ...]  # theirs, for errors
    seed: tuple[int, int]  # of the run, and a word so that no other use of it draws the same numbers
    remedy: str = ""  # half a sentence that ends with a comma, for errors

    def read(self, draw: Draw, read: Callable[[S, int, np.random.Generator], R], drawn: Drawn) -> R:
        """Reads what was drawn, or in its place an item of its corpus that depends on nothing but the draw;
        raises DataError if ``REPLACEMENTS`` more cannot be used either.

        Args:
            read: Gets corpus, index and a generator; raises Unusable.
        """
        source, index, last = self.sources[draw.source], draw.index, ""
        for attempt in range(1 + REPLACEMENTS):
            rng = np.random.default_rng([self.seed[0], draw.number, attempt, self.seed[1]])
            if attempt:
                index = int(rng.integers(len(source)))
            drawn.counts[f"{self.kind}_in"] += 1
            try:
                return read(source, index, rng)
            except Unusable as error:
                drawn.rejects.append(error.reject)
                drawn.counts[f"{self.kind}_{'filtered' if error.filtered else 'rejected'}"] += 1
                if not attempt and not draw.before:
                    drawn.counts.update(error.counts)
                last = f"{error.reject['dataset']}/{error.reject['row_id']}: {error.reject['message']}"
        raise DataError(
            f"none of {1 + REPLACEMENTS} {self.kind} drawn from {self.names[draw.source]} can be used; the "
            f"last is {last.rstrip('.')}. Look at the rejects of the run, {self.remedy}or leave "
            "the corpus out.",
            reason="none_usable",
        )
