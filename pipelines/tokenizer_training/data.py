"""The steps of a run as batches: which images, read by whom, in which order; and the held-out images.

Step t is draws [t * I, (t + 1) * I) of the mixture, with I images per step. Each worker has a slice of them
and cuts it into micro-batches, so the same masks come in the same order whatever the number of workers, the
size of micro-batches and the number of loader processes, and a run can begin at any step.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from pipelines.tokenizer_training.batch import Batch, MicroBatch, area_targets, build_batch, joined
from pipelines.tokenizer_training.config import HELD_OUT_START, TrainTokenizerConfig
from pipelines.tokenizer_training.corpus import Index, open_sources
from pipelines.tokenizer_training.samples import Sample, Source, Unusable
from pipelines.tokenizer_training.sources import SceneSource
from pipelines.training.loader import prepared
from pipelines.training.mixture import Mixture
from samtok.config import MaskTokenizerConfig
from samtok.errors import DataError

__all__ = [
    "Batch",
    "MicroBatch",
    "StepLoader",
    "area_targets",
    "build_batch",
    "held_out_samples",
    "mask_keys",
    "training_sources",
    "validation_sources",
]

log = logging.getLogger(__name__)

REPLACEMENTS = 16
"""Images that are tried in the place of one that cannot be used."""

_KEYS, _READS, _LOOKS = 0x6B6579, 0x72656164, 0x6C6F6F6B
"""Last words of the seeds here, so that no other use of the run's seed draws the same numbers."""


# ---------------------------------------------------------------- sources of a run


def training_sources(config: TrainTokenizerConfig, index: Index | None) -> tuple[Source, ...]:
    """Returns what a run trains on: the corpora of an index, or without one synthetic scenes."""
    if index is not None:
        return open_sources(index, config.sampling)
    return (SceneSource(config.seed, config.scenes_needed, 0, config.world, config.sampling),)


def validation_sources(config: TrainTokenizerConfig, index: Index | None) -> tuple[Source, ...]:
    """Returns what a run is measured on, of which all usable masks count alike, however training picks."""
    policy = replace(config.sampling, pick="uniform", drop_nested=False)
    if index is not None:
        return open_sources(index, policy)
    validation = config.validation
    count = max(validation.images, validation.final_images)
    return (SceneSource(validation.seed, count, HELD_OUT_START, config.world, policy),)


def held_out_samples(
    sources: Sequence[Source], count: int, *, masks_per_image: int, seed: int, rank: int, world: int
) -> Iterator[Sample]:
    """Yields this worker's share of the first held-out images, taken from the sources in turn.

    Images that cannot be used are left out and not replaced; how many is logged once, at the end.

    Args:
        sources: Where they are.
        count: Images over all workers; fewer if there are no more.
        masks_per_image: Most masks of an image; of more, so many are drawn by ``seed``.
        seed: Of the masks that are drawn.
        rank: This worker; it has every ``world``-th image.
        world: Number of workers.
    """
    unusable: list[Unusable] = []
    own = islice(enumerate(_in_turn(sources)), rank, count, world)
    for number, (source, index) in own:
        draw = np.random.default_rng([seed, number, 0, _LOOKS])
        try:
            yield source.read(index, most=masks_per_image, draw=draw)
        except Unusable as error:
            unusable.append(error)
    if unusable:
        first = unusable[0].reject
        log.warning(
            "%d held-out images cannot be used and are left out; the first is %s/%s: %s",
            *(len(unusable), first["dataset"], first["row_id"], first["message"]),
        )


def _in_turn(sources: Sequence[Source]) -> Iterator[tuple[Source, int]]:
    for index in range(max(map(len, sources))):
        yield from ((source, index) for source in sources if index < len(source))


# ---------------------------------------------------------------- steps


class _Draw(NamedTuple):
    number: int
    source: int
    index: int


@dataclass(frozen=True)
class _Preparer:
    """Turns draws into a micro-batch. Picklable: it goes to loader processes."""

    sources: tuple[Source, ...]
    model: MaskTokenizerConfig
    masks_per_image: int
    seed: int

    def prepare(self, draws: Sequence[_Draw]) -> MicroBatch:
        """Reads and prepares one image after the other, so that one at a time is held at full size."""
        parts, names, rejects = [], [], []
        for draw in draws:
            sample = self._sample(draw, rejects)
            keys = mask_keys(self.seed, draw.number, len(sample.masks))
            owners = [0] * len(sample.masks)
            parts.append(build_batch([sample.image], sample.masks, owners, self.model, keys=keys))
            names.append(sample.name)
        return MicroBatch(joined(parts), names, rejects)

    def _sample(self, draw: _Draw, rejects: list[dict[str, Any]]) -> Sample:
        """Reads what was drawn, or in its place an image that depends on nothing but the draw."""
        source, index, last = self.sources[draw.source], draw.index, ""
        for attempt in range(1 + REPLACEMENTS):
            rng = np.random.default_rng([self.seed, draw.number, attempt, _READS])
            if attempt:
                index = int(rng.integers(len(source)))
            try:
                return source.read(index, most=self.masks_per_image, draw=rng)
            except Unusable as error:
                rejects.append(error.reject)
                last = f"{error.reject['dataset']}/{error.reject['row_id']}: {error.reject['message']}"
        raise DataError(
            f"no usable masks in {1 + REPLACEMENTS} draws from corpus {source.name}; the last is {last}. "
            "Look at the rejects, lower --sampling.min-area-px, shorten --sampling.skip, or leave the corpus "
            "out of --corpora.",
            reason="no_masks",
        )


def mask_keys(seed: int, draw: int, count: int) -> Int[np.ndarray, " mask"]:
    """Returns well-mixed 63-bit keys of the masks of a draw; the first ones do not depend on ``count``."""
    words = np.random.SeedSequence([seed, draw, 0, _KEYS]).generate_state(count, np.uint64)
    return (words >> np.uint64(1)).astype(np.int64)


class StepLoader:
    """Reads and prepares a worker's share of every step, ahead of time.

    Args:
        sources: Where images come from.
        mixture: Which one of which source is drawn when.
        config: The run; ``config.workers.loaders`` processes prepare micro-batches, or a thread if 0.
        model: The architecture that reads the batches.
        rank: This worker.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        mixture: Mixture,
        config: TrainTokenizerConfig,
        model: MaskTokenizerConfig,
        *,
        rank: int,
    ) -> None:
        if not 0 <= rank < config.workers.count:
            raise ValueError(f"rank must be in [0, {config.workers.count}), got {rank}")
        self.mixture, self.config, self.rank = mixture, config, rank
        self.preparer = _Preparer(tuple(sources), model, config.sampling.masks_per_image, config.seed)

    def steps(self, start: int) -> Iterator[list[MicroBatch]]:
        """Yields the micro-batches of the steps from ``start`` to the last one of the run.

        Raises:
            DataError: If many draws in a row from a corpus are unusable.
            StorageError: If the storage fails.
            ClusterError: If a loader process dies.
        """
        tasks = (task for step in range(start, self.config.steps) for task in self._tasks(step))
        ahead = prepared(self.preparer.prepare, tasks, workers=self.config.workers, ahead=self._per_step)
        with closing(ahead) as batches:
            while step := list(islice(batches, self._per_step)):
                yield step

    @property
    def _per_step(self) -> int:
        return self.config.images_per_worker // self.config.micro_images

    def _tasks(self, step: int) -> Iterator[tuple[_Draw, ...]]:
        config = self.config
        first = step * config.sampling.images_per_step + self.rank * config.images_per_worker
        drawn = self.mixture.draws(first, config.images_per_worker)
        draws = [_Draw(first + i, source, index) for i, (source, index) in enumerate(drawn)]
        for begin in range(0, len(draws), config.micro_images):
            yield tuple(draws[begin : begin + config.micro_images])
