"""The steps of a fine-tuning run as encoded chats. See ``training.loader`` for their order."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch

from pipelines.chats.source import ChatSource, encode_row, rejected
from pipelines.sft.config import TrainMllmConfig
from pipelines.training import world
from pipelines.training.draws import Corpora, Draw, Drawn, Unusable
from pipelines.training.loader import StepLoader
from pipelines.training.mixture import Mixture
from samtok.errors import DataError
from samtok.mllm.chat import IGNORE, Encoded
from samtok.mllm.family import Adapter
from samtok.mllm.token_budget import cut, dealt

E = TypeVar("E", bound=Encoded)

_READS = 0x63686174
"""Last word of the seeds here, so that no other use of the run's seed draws the same numbers."""


@dataclass(frozen=True)
class PreparedChat:
    """One chat of a step."""

    sample: Encoded
    rejects: list[dict[str, Any]]  # entries of the reject table for chats that were drawn and replaced
    counts: dict[str, int] = field(default_factory=dict)  # chats that were drawn and rejected


@dataclass(frozen=True)
class _Preparer:
    """Turns draws into encoded chats. Picklable: it goes to loader processes."""

    corpora: Corpora[ChatSource]
    adapter: Adapter
    max_tokens: int
    max_pixels: int

    def __call__(self, draws: Sequence[Draw]) -> PreparedChat:
        drawn = Drawn()
        sample = self.corpora.read(draws[0], self._read, drawn)
        return PreparedChat(sample, drawn.rejects, dict(drawn.counts))

    def _read(self, source: ChatSource, index: int, rng: np.random.Generator) -> Encoded:
        row = source.row(index)
        try:
            limits = {"max_tokens": self.max_tokens, "max_pixels": self.max_pixels}
            return encode_row(self.adapter, row, **limits)
        except DataError as error:
            raise Unusable(rejected(row, error)) from error


def step_loader(
    sources: Sequence[ChatSource],
    weights: Sequence[float | None],
    config: TrainMllmConfig,
    adapter: Adapter,
    *,
    rank: int,
) -> StepLoader[PreparedChat]:
    """Returns what reads and encodes a worker's share of every step; weights as ``Mixture`` takes them."""
    names = tuple(source.corpus.uri for source in sources)
    corpora = Corpora("chats", tuple(sources), names, (config.seed, _READS))
    preparer = _Preparer(corpora, adapter, config.sampling.max_tokens, config.max_image_pixels)
    mixture = Mixture(list(map(len, sources)), weights, config.seed)
    return StepLoader(preparer, mixture, config, rank=rank)


def micro_batches(samples: Sequence[E], config: TrainMllmConfig) -> list[list[E]]:
    """Cuts a worker's share of a step into micro-batches of chats of like length, shortest first.

    With ``--micro-batch-tokens`` collective: chats go to the workers that ``token_budget.dealt`` chooses, and
    all get equally many micro-batches. None of it decides more than rounding: a step's loss is a mean over
    all of its learnt tokens.
    """
    if config.micro_batch_tokens is None:
        batches = cut([len(sample) for sample in samples], config.micro)
        return [[samples[n] for n in batch] for batch in batches]
    shares = world.gathered([[len(sample) for sample in samples]])
    lengths = [length for share in shares for length in share]
    packed, first = config.engine.packing, sum(map(len, shares[: world.rank()]))
    deal = dealt(lengths, config.micro_batch_tokens, world.size(), packed=packed)
    parcels: list[dict[int, E]] = []
    for batches in deal:
        numbers = [n for batch in batches for n in batch if first <= n < first + len(samples)]
        parcels.append({n: samples[n - first] for n in numbers})
    kept, parcels[world.rank()] = parcels[world.rank()], {}
    mine = kept | {n: sample for parcel in world.exchanged(parcels) for n, sample in parcel.items()}
    return [[mine[n] for n in batch] or [unlearnt(samples[0])] for batch in deal[world.rank()]]


def unlearnt(sample: E) -> E:
    """Returns the sample without a token to learn: it goes through the model and counts for nothing."""
    return replace(sample, labels=torch.full_like(sample.labels, IGNORE))


def alike(batches: Sequence[Sequence[E]], adapter: Adapter) -> list[list[E]]:
    """Makes micro-batches that use the same parts of the model as those of the other workers; collective.

    One without images gets a blank one if another worker has an image in the micro-batch of the same place.
    All workers have equally many.
    """
    lacking = world.only_elsewhere([any(sample.vision for sample in batch) for batch in batches])
    return [
        [adapter.with_blank_image(batch[0]) if lacks else batch[0], *batch[1:]]
        for batch, lacks in zip(batches, lacking, strict=True)
    ]
