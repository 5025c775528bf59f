"""Composes one shard: a slice of a file of code rows in, a committed shard of chats out. Knows no Ray."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from pipelines import shards, storage
from pipelines.chats.commit import Composed, commit
from pipelines.dialogues.compose import Settings, compose_row
from pipelines.shards import ROW_GROUP_ROWS, Plan
from samtok.errors import DataError


@dataclass(frozen=True)
class Slice:
    """Rows of one file of a corpus of words, in whole row groups.

    Attributes:
        corpus: Number of the corpus.
        file: Name in the corpus.
        first_group: Row group to begin with.
        rows: Rows to take.
    """

    corpus: int
    file: str
    first_group: int
    rows: int


class ComposeShard:
    """Composes the chats of a shard and commits them.

    Args:
        plan: What the shards are; each has one input, a ``Slice``.
        words: URIs of the corpora of words.
        settings: What decides the chats.
    """

    def __init__(self, plan: Plan, words: tuple[str, ...], settings: Settings) -> None:
        self.plan, self.words, self.settings = plan, words, settings

    def __call__(self, shard: int) -> dict[str, Any]:
        """Returns the commit record that holds."""
        done = Composed()
        for chunk in self.plan.chunks(shard):
            for item in shards.read_inputs(self.plan, chunk):
                done.counts["inputs_in"] += 1
                for row in self._rows(Slice(**json.loads(item.payload))):
                    done.add(compose_row(row, self.settings))
        return commit(self.plan, shard, done)

    def _rows(self, part: Slice) -> Iterator[dict[str, Any]]:
        where = storage.join(self.words[part.corpus], part.file)
        with storage.open_input(where) as file:
            parquet, left = pq.ParquetFile(file), part.rows
            groups = range(part.first_group, part.first_group - (-part.rows // ROW_GROUP_ROWS))
            if parquet.num_row_groups < groups.stop:
                raise DataError(f"{where} has {parquet.num_row_groups} row groups, the plan {groups.stop}.")
            for group in groups:
                table = parquet.read_row_group(group).slice(0, left)
                left -= len(table)
                yield from table.to_pylist()
        if left:
            raise DataError(f"{where} lacks {left} of the {part.rows} rows that its manifest promises.")
