"""The order in which a run draws images from its corpora: deterministic, resumable, the same for any workers.

Draws are numbered from 0 over all epochs, and a draw's number is the whole state: which image it is follows
from (seed, sizes, weights) alone, so a run resumes at any number, and any worker can take any part.

Without weights an epoch is every image of every corpus once. With weights an epoch has as many draws, shared
out by weight; each corpus goes through its own permutations one after the other across epochs, so that after
any epoch all images of it have been drawn equally often, give or take one.
"""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from samtok.errors import ConfigError

_MIXING, _WITHIN = 0x6D6978, 0x6F7264
"""First words of the seeds here, so that no other use of the run's seed draws the same numbers."""


def check_weights(weights: Sequence[float | None]) -> None:
    """Makes sure that all corpora have a weight above 0, or none has one; raises ConfigError otherwise."""
    given = [weight for weight in weights if weight is not None]
    if given and len(given) < len(weights):
        raise ConfigError(
            f"{len(given)} of {len(weights)} corpora have a weight; give each one a weight=..., or none. "
            "Without weights a corpus counts by its size."
        )
    if any(not 0 < weight < float("inf") for weight in given):
        raise ConfigError(f"weights of corpora must be > 0, got {given}.")


class Mixture:
    """Draws from several corpora.

    Args:
        sizes: Images of each corpus, at least 1.
        weights: Of each corpus, or None for all of them.

    Raises:
        ConfigError: If some corpora have a weight and others none, or a weight is so small that its corpus is
            never drawn.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float | None], seed: int) -> None:
        if not sizes or min(sizes) < 1 or len(sizes) != len(weights):
            raise ValueError(
                f"every corpus needs a size of at least 1 and a weight or None, got {sizes}, {weights}"
            )
        check_weights(weights)
        self.sizes, self.seed = tuple(sizes), seed
        self.quotas = _quotas(self.sizes, weights)
        self._starts = np.cumsum((0, *self.quotas))
        self._number = np.int32 if max(*self.sizes, self.epoch_draws) < 2**31 else np.int64
        self._epoch: int | None = None
        self._order = self._indices = np.zeros(0, np.int64)

    @property
    def epoch_draws(self) -> int:
        """Draws of an epoch: the images of all corpora together."""
        return sum(self.sizes)

    def draws(self, start: int, count: int) -> list[tuple[int, int]]:
        """Returns (corpus, image of it) for the draws ``start`` to ``start + count - 1``."""
        return [(source, index) for source, index, _ in self.turns(start, count)]

    def turns(self, start: int, count: int) -> list[tuple[int, int, int]]:
        """Returns the same, each with how often its image was drawn before."""
        sizes, quotas = np.asarray(self.sizes), np.asarray(self.quotas)
        found: list[tuple[int, int, int]] = []
        while len(found) < count:
            epoch, first = divmod(start + len(found), self.epoch_draws)
            self._go_to(epoch)
            entries = self._order[first : first + count - len(found)]
            sources = np.searchsorted(self._starts, entries, side="right") - 1
            before = (epoch * quotas[sources] + entries - self._starts[sources]) // sizes[sources]
            found += zip(sources.tolist(), self._indices[entries].tolist(), before.tolist(), strict=True)
        return found

    def _go_to(self, epoch: int) -> None:
        """Sets up one epoch: ``_indices`` has its images, corpus by corpus, ``_order`` says which is when."""
        if epoch == self._epoch:
            return
        parts = [self._of_epoch(source, epoch) for source in range(len(self.sizes))]
        self._indices = np.concatenate(parts)
        self._order = self._permutation(self.epoch_draws, _MIXING, epoch)
        self._epoch = epoch

    def _of_epoch(self, source: int, epoch: int) -> np.ndarray:
        """Returns what one corpus gives to an epoch: the next images of its permutations."""
        size, quota = self.sizes[source], self.quotas[source]
        first = epoch * quota
        numbers = range(first // size, (first + quota - 1) // size + 1)
        parts = [self._permutation(size, _WITHIN, source, number) for number in numbers]
        skipped = first - numbers[0] * size
        return np.concatenate(parts)[skipped : skipped + quota]

    def _permutation(self, size: int, *words: int) -> np.ndarray:
        order = np.arange(size, dtype=self._number)
        np.random.default_rng([words[0], self.seed, *words[1:]]).shuffle(order)
        return order


def _quotas(sizes: Sequence[int], weights: Sequence[float | None]) -> tuple[int, ...]:
    """Shares the draws of an epoch out by largest remainder, ties to the first; exact."""
    given = [Fraction(weight) for weight in weights if weight is not None]
    if not given:
        return tuple(sizes)
    shares = [sum(sizes) * weight / sum(given) for weight in given]
    quotas = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda d: (quotas[d] - shares[d], d))
    for source in by_remainder[: sum(sizes) - sum(quotas)]:
        quotas[source] += 1
    for source, quota in enumerate(quotas):
        if quota == 0:
            raise ConfigError(
                f"corpus {source + 1} has the weight {weights[source]:g}, which is none of "
                f"the {sum(sizes)} draws of an epoch, so it would never be seen. Raise it or drop the corpus."
            )
    return tuple(quotas)
