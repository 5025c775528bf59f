"""The steps of a run as batches: which images, read by whom, in which order; and the held-out images.

See ``training.loader``. A worker's share is cut into micro-batches, whose size decides nothing but rounding.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import numpy as np
from jaxtyping import Int

from pipelines.tokenizer_training.batch import MicroBatch, build_batch, joined
from pipelines.tokenizer_training.config import HELD_OUT_START, TrainTokenizerConfig
from pipelines.tokenizer_training.corpus import Index, open_sources
from pipelines.tokenizer_training.sources import Sample, SceneSource, Source
from pipelines.training.draws import Corpora, Draw, Drawn, Unusable, in_turn
from pipelines.training.loader import StepLoader
from pipelines.training.mixture import Mixture
from samtok.config import MaskTokenizerConfig

log = logging.getLogger(__name__)

_KEYS, _READS, _HELD_OUT = 0x6B6579, 0x72656164, 0x6C6F6F6B
"""Last words of the seeds here, so that no other use of the run's seed draws the same numbers."""


# ---------------------------------------------------------------- sources of a run


def training_sources(config: TrainTokenizerConfig, index: Index | None) -> tuple[Source, ...]:
    """Returns what a run trains on: the corpora of an index, or without one synthetic scenes."""
    if index is not None:
        return open_sources(index, config.sampling, config.max_image_pixels)
    return (SceneSource(config.seed, config.scenes_needed, 0, config.world, config.sampling),)


def validation_sources(config: TrainTokenizerConfig, index: Index | None) -> tuple[Source, ...]:
    """Returns what a run is measured on, of which all usable masks count alike, however training picks."""
    policy = replace(config.sampling, pick="uniform", drop_nested=False)
    if index is not None:
        return open_sources(index, policy, config.max_image_pixels)
    validation = config.validation
    count = max(validation.images, validation.final_images)
    return (SceneSource(validation.seed, count, HELD_OUT_START, config.world, policy),)


def held_out_samples(
    sources: Sequence[Source], count: int, *, masks_per_image: int, seed: int, rank: int, world: int
) -> Iterator[Sample]:
    """Yields this worker's share of the first held-out images, taken from the sources in turn.

    Images that cannot be used are left out and not replaced; how many is logged once, at the end.

    Args:
        count: Images over all workers; fewer if there are no more.
        masks_per_image: Most masks of an image; of more, so many are drawn by ``seed``.
        rank: This worker; it has every ``world``-th image.
    """
    unusable: list[Unusable] = []
    own = islice(enumerate(in_turn(sources)), rank, count, world)
    for number, (source, index) in own:
        draw = np.random.default_rng([seed, number, 0, _HELD_OUT])
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


# ---------------------------------------------------------------- steps


@dataclass(frozen=True)
class _Preparer:
    """Turns draws into a micro-batch. Picklable: it goes to loader processes."""

    corpora: Corpora[Source]
    model: MaskTokenizerConfig
    masks_per_image: int
    targets: Literal["area", "nearest"]
    seed: int

    def __call__(self, draws: Sequence[Draw]) -> MicroBatch:
        """Reads and prepares one image after the other, so that one at a time is held at full size."""
        parts, names, drawn = [], [], Drawn()
        for draw in draws:
            images = drawn.counts["images_in"]
            sample = self.corpora.read(draw, self._read, drawn)
            if not draw.before and drawn.counts["images_in"] == images + 1:  # itself, and not a replacement
                drawn.counts.update(sample.counts)
                drawn.rejects += sample.rejects
            keys = mask_keys(self.seed, draw.number, len(sample.masks))
            owners = [0] * len(sample.masks)
            own = build_batch(
                [sample.image], sample.masks, owners, self.model, keys=keys, targets=self.targets
            )
            parts.append(own)
            names.append(sample.name)
        return MicroBatch(joined(parts), names, drawn.rejects, dict(drawn.counts))

    def _read(self, source: Source, index: int, rng: np.random.Generator) -> Sample:
        return source.read(index, most=self.masks_per_image, draw=rng)


def mask_keys(seed: int, draw: int, count: int) -> Int[np.ndarray, " mask"]:
    """Returns well-mixed 63-bit keys of the masks of a draw; the first ones do not depend on ``count``."""
    words = np.random.SeedSequence([seed, draw, 0, _KEYS]).generate_state(count, np.uint64)
    return (words >> np.uint64(1)).astype(np.int64)


def step_loader(
    sources: Sequence[Source],
    weights: Sequence[float | None],
    config: TrainTokenizerConfig,
    model: MaskTokenizerConfig,
    *,
    rank: int,
) -> StepLoader[MicroBatch]:
    """Returns what reads a worker's share of every step, as micro-batches of this architecture."""
    corpora = Corpora(
        "images",
        tuple(sources),
        tuple(f"corpus {source.name}" for source in sources),
        (config.seed, _READS),
        "lower --sampling.min-area-px, shorten --sampling.skip, ",
    )
    preparer = _Preparer(corpora, model, config.sampling.masks_per_image, config.loss.targets, config.seed)
    mixture = Mixture(list(map(len, sources)), weights, config.seed)
    return StepLoader(preparer, mixture, config, rank=rank, per_call=config.micro)
