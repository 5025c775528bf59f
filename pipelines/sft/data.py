"""The steps of a fine-tuning run as encoded chats: which ones, read by whom, in which order.

Step t is draws [t * S, (t + 1) * S) of the mixture, with S chats per step, and each worker has a slice of
them; so a run can begin at any step, with any number of workers and loader processes. A chat that cannot be
used is rejected with a reason, and another one of its corpus takes its place.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipelines import schema, storage
from pipelines.dialogues import chats
from pipelines.dialogues.chats import ChatCorpus
from pipelines.ingestion.image_source import read_image_bytes
from pipelines.sft.config import TrainMllmConfig
from pipelines.shards import ROW_GROUP_ROWS
from pipelines.training.loader import prepared
from pipelines.training.sampler import Mixture
from samtok import images
from samtok.errors import DataError
from samtok.mllm.chat import Encoded
from samtok.mllm.family import Adapter

STAGE = "load"
REPLACEMENTS = 16
"""Chats that are tried in the place of one that cannot be used."""

_READS = 0x63686174
"""Last word of the seeds here, so that no other use of the run's seed draws the same numbers."""

_KEPT_BYTES = 256 << 20
"""Row groups that a process keeps in memory, as they are in Arrow: draws are random, so of a corpus that does
not fit a group of rows is read for each chat."""

Row = dict[str, Any]


@dataclass
class ChatSource:
    """Random access to the samples of a chat corpus. Picklable; what it has read stays behind.

    Attributes:
        corpus: The corpus.
        limit: Only its first samples.
    """

    corpus: ChatCorpus
    limit: int | None = None
    _groups: OrderedDict[tuple[int, int], pa.Table] = field(default_factory=OrderedDict, repr=False)

    def __post_init__(self) -> None:
        self._bytes = 0
        self._starts = np.cumsum([0, *(shard.rows for shard in self.corpus.shards)])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_groups": OrderedDict(), "_bytes": 0}

    def __len__(self) -> int:
        total = int(self._starts[-1])
        return total if self.limit is None else min(total, self.limit)

    def row(self, index: int) -> Row:
        """Returns one sample as a dict of ``CHAT_ROW``."""
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        group, within = divmod(index - int(self._starts[shard]), ROW_GROUP_ROWS)
        return self._group(shard, group).slice(within, 1).to_pylist()[0]

    def _group(self, shard: int, group: int) -> pa.Table:
        key = (shard, group)
        if key not in self._groups:
            table = chats.read_group_table(self.corpus, shard=shard, group=group)
            self._groups[key] = table
            self._bytes += table.nbytes
            while self._bytes > _KEPT_BYTES and len(self._groups) > 1:
                self._bytes -= self._groups.popitem(last=False)[1].nbytes
        self._groups.move_to_end(key)
        return self._groups[key]


class Prepared(NamedTuple):
    """One chat of a step, and the rejects on the way to it."""

    sample: Encoded
    rejects: list[dict[str, Any]]


class _Draw(NamedTuple):
    number: int
    source: int
    index: int


def load_images(row: Row) -> list[np.ndarray]:
    """Reads the images of a sample.

    Raises:
        DataError: If one is missing, cannot be read, or has another size than the row says.
        StorageError: If the storage fails.
    """
    found = []
    for entry in row["images"]:
        try:
            raw = read_image_bytes(entry["uri"])
        except storage.NotFoundError as error:
            raise DataError(f"there is no image {entry['uri']}", reason="image_missing") from error
        size = entry["height"], entry["width"]
        found.append(images.decode_image(raw, where=entry["uri"], expected_hw=size))
    return found


def encode_row(adapter: Adapter, row: Row, *, max_tokens: int) -> Encoded:
    """Reads and encodes a sample.

    Raises:
        DataError: With a reason, if an image or the text cannot be used or it is too long.
    """
    chats.answer_words(row)  # a message may name a mask that is not there
    return adapter.encode(chats.turns_of(row), load_images(row), max_tokens=max_tokens)


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


def rejected(row: Row, error: DataError) -> dict[str, Any]:
    """Returns the reject of a sample."""
    return schema.reject(
        STAGE, row["dataset"], row["sample_id"], error.reason, str(error), num_masks=len(row["masks"])
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
