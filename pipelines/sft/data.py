"""The steps of a fine-tuning run as encoded chats: which ones, read by whom, in which order.

Step t is draws [t * S, (t + 1) * S) of the mixture, with S chats per step, and each worker has a slice of
them; so a run can begin at any step, with any number of workers and loader processes. A chat that cannot be
used is rejected with a reason, and another one of its corpus takes its place.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from pipelines.chats.source import ChatSource, encode_row, rejected
from pipelines.sft.config import TrainMllmConfig
from pipelines.training.loader import prepared
from pipelines.training.mixture import Mixture
from samtok.errors import DataError
from samtok.mllm.chat import Encoded
from samtok.mllm.family import Adapter

REPLACEMENTS = 16
"""Chats that are tried in the place of one that cannot be used."""

_READS = 0x63686174
"""Last word of the seeds here, so that no other use of the run's seed draws the same numbers."""


class Prepared(NamedTuple):
    """One chat of a step, and the rejects on the way to it."""

    sample: Encoded
    rejects: list[dict[str, Any]]


class _Draw(NamedTuple):
    number: int
    source: int
    index: int


@dataclass(frozen=True)
class _Preparer:
    """Turns draws into encoded chats. Picklable: it goes to loader processes."""

    sources: tuple[ChatSource, ...]
    adapter: Adapter
    max_tokens: int
    seed: int

    def __call__(self, draw: _Draw) -> Prepared:
        """Reads what was drawn, or in its place a chat that depends on nothing but the draw."""
        source, index, rejects = self.sources[draw.source], draw.index, []
        for attempt in range(1 + REPLACEMENTS):
            if attempt:
                rng = np.random.default_rng([self.seed, draw.number, attempt, _READS])
                index = int(rng.integers(len(source)))
            row = source.row(index)
            try:
                return Prepared(encode_row(self.adapter, row, max_tokens=self.max_tokens), rejects)
            except DataError as error:
                rejects.append(rejected(row, error))
        raise DataError(
            f"no usable chat in {1 + REPLACEMENTS} draws from {source.corpus.uri}; the last is "
            f"{rejects[-1]['row_id']}: {rejects[-1]['message']} Look at the rejects of the run, or leave the "
            "corpus out of --corpora.",
            reason="no_chats",
        )


class StepLoader:
    """Reads and encodes a worker's share of every step, ahead of time.

    Args:
        sources: Where chats come from.
        weights: Of the sources in the mixture, or None for all of them.
        config: The run; ``config.workers.loaders`` processes encode, or a thread if 0.
        adapter: Of the model.
        rank: This worker.
    """

    def __init__(
        self,
        sources: Sequence[ChatSource],
        weights: Sequence[float | None],
        config: TrainMllmConfig,
        adapter: Adapter,
        *,
        rank: int,
    ) -> None:
        if not 0 <= rank < config.workers.count:
            raise ValueError(f"rank must be in [0, {config.workers.count}), got {rank}")
        self.mixture = Mixture([len(source) for source in sources], weights, config.seed)
        self.config, self.rank = config, rank
        self.preparer = _Preparer(tuple(sources), adapter, config.sampling.max_tokens, config.seed)

    def steps(self, start: int) -> Iterator[list[Prepared]]:
        """Yields this worker's chats of the steps from ``start`` to the last one of the run.

        Raises:
            DataError: If many draws in a row from a corpus are unusable.
            StorageError: If the storage fails.
            ClusterError: If a loader process dies.
        """
        share = self.config.samples_per_worker
        tasks = (draw for step in range(start, self.config.steps) for draw in self._draws(step))
        ahead = prepared(self.preparer, tasks, workers=self.config.workers, ahead=share)
        with closing(ahead) as samples:
            while step := list(islice(samples, share)):
                yield step

    def _draws(self, step: int) -> Iterator[_Draw]:
        share = self.config.samples_per_worker
        first = step * self.config.sampling.samples_per_step + self.rank * share
        for i, (source, index) in enumerate(self.mixture.draws(first, share)):
            yield _Draw(first + i, source, index)


def micro_batches(samples: Sequence[Encoded], size: int) -> list[list[Encoded]]:
    """Cuts a worker's share of a step into micro-batches of chats of like length, shortest first.

    The order decides nothing but rounding: a step's loss is a mean over all of its learnt tokens.
    """
    ordered = sorted(samples, key=len)
    return [ordered[first : first + size] for first in range(0, len(ordered), size)]
