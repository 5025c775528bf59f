"""Composes a slice of a file of code rows. Knows no Ray."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from pipelines import storage
from pipelines.chats.commit import Composed
from pipelines.dialogues.compose import Settings, compose_row
from pipelines.shards import ROW_GROUP_ROWS
from samtok.errors import DataError


@dataclass(frozen=True)
class Slice:
    """Rows of one file of a corpus of words, from a row group on; corpora are numbered."""

    corpus: int
    file: str
    first_group: int
    rows: int


def take_slice(words: tuple[str, ...], settings: Settings, payload: dict[str, Any], done: Composed) -> None:
    """Adds the chats of a ``Slice`` of one of the corpora of words."""
    part = Slice(**payload)
    for row in _rows(storage.join(words[part.corpus], part.file), part):
        done.add(compose_row(row, settings))


def _rows(where: str, part: Slice) -> Iterator[dict[str, Any]]:
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
