"""Random access to the samples of chat corpora, and a sample as what a model reads.

Loads no torch by itself, since dry runs compare corpora with models.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipelines import schema
from pipelines.chats import corpus as chats
from pipelines.chats.corpus import ChatCorpus, Words, require_same_words
from pipelines.ingestion import peek
from pipelines.ingestion.image_source import read_image, read_size_hw
from pipelines.shards import ROW_GROUP_ROWS
from samtok.errors import DataError
from samtok.masks import MAX_PIXELS

if TYPE_CHECKING:
    from samtok.mllm.chat import Encoded
    from samtok.mllm.family import Adapter
    from samtok.mllm.folder import MllmFolder

STAGE = "load"
_KEPT_BYTES = 256 << 20
"""Row groups that a process keeps in memory, as they are in Arrow: draws are random, so of a corpus that does
not fit a group of rows is read for each chat."""

Row = dict[str, Any]


@dataclass
class ChatSource:
    """Random access to the first samples of a chat corpus. Picklable; what it has read stays behind."""

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


def require_images(source: ChatSource) -> None:
    """Looks at the images of a few chats, so that a folder which is not mounted is an error at the start.

    Raises:
        DataError: None of them is there.
        StorageError: If the storage fails.
    """
    rows = [source.row(index) for index in peek.some(range(len(source)))]
    uris = dict.fromkeys(entry["uri"] for row in rows for entry in row["images"])
    peek.require_some(f"the chats in {source.corpus.uri}", map(_against, uris))


def _against(uri: str) -> list[tuple[str, str]]:
    try:
        read_size_hw(uri)
    except DataError as error:
        return [(error.reason, str(error))]
    return []


def load_images(row: Row, max_pixels: int = MAX_PIXELS) -> list[np.ndarray]:
    """Reads the images of a sample.

    Raises:
        DataError: If one is missing, cannot be read, has another size than in the row or too many pixels.
        StorageError: If the storage fails.
    """
    return [
        read_image(entry["uri"], expected_hw=(entry["height"], entry["width"]), max_pixels=max_pixels)
        for entry in row["images"]
    ]


def encode_row(adapter: "Adapter", row: Row, *, max_tokens: int, max_pixels: int = MAX_PIXELS) -> "Encoded":
    """Reads and encodes a sample.

    Raises:
        DataError: With a reason, if an image or the text cannot be used or it is too long.
    """
    chats.answer_words(row)  # a message may name a mask that is not there
    return adapter.encode(chats.turns_of(row), load_images(row, max_pixels), max_tokens=max_tokens)


def rejected(row: Row, error: DataError) -> dict[str, Any]:
    """Returns the reject of a sample."""
    return schema.reject(
        STAGE, row["dataset"], row["sample_id"], error.reason, str(error), num_masks=len(row["masks"])
    )


def check_vocabulary(model: "MllmFolder | Adapter", sources: Sequence[ChatSource], uri: str) -> None:
    """Makes sure that a model to be trained (``uri`` is its) and its corpora have the same words; raises
    ConfigError if numbers of codes or levels, or the tokenizers' weights, differ."""
    require_same_words(
        Words.of_model(f"--model {uri}", model),
        *(Words.of_chats(source.corpus.uri, source.corpus) for source in sources),
        remedy="Tokenize all corpora with one tokenizer, and extend the model for it (jobs/extend_mllm.py).",
    )
