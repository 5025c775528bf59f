"""Listing a corpus of many parts, such as archives or prefixes of an object store, by many workers.

    OUT/index/<hash8>/parts.json             the parts, frozen by the first call
    OUT/index/<hash8>/part-00012.parquet     the inputs of part 12, by ascending key and place
    OUT/index/<hash8>/rejects-00012.parquet  what could not be used
    OUT/index/<hash8>/part-00012.json        proof that the part is listed; created only if absent

A call that was killed goes on with the parts that have no proof. The inputs of all parts are then merged, on
the local disk if they do not fit into memory, so their order does not depend on how they were listed. The
index is removed once the plan that is made of it is there.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import shards, storage
from pipelines.ingestion.external_sort import ExternalSort
from pipelines.ingestion.reader import Input, Reader, Reject, unique
from pipelines.planning.plans import Listing, batches_of
from pipelines.storage.threads import map_ahead, without_collector

log = logging.getLogger(__name__)

Workers: TypeAlias = Callable[[Callable[[int], Any], Sequence[int]], Iterator[Any]]
"""Calls something picklable for each number, somewhere; yields what it returns, in any order."""

PROGRESS_S = 10.0
"""Seconds between lines of progress."""

_ROW = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("place", pa.string(), nullable=False),
        pa.field("payload", pa.string(), nullable=False),
        pa.field("num_masks", pa.int32()),
    ]
)
_BATCH_ROWS = 4096


def inputs_of(reader: Reader, folder: str, workers: Workers) -> Iterator[Input | Reject]:
    """Yields rejects, then the inputs of a corpus by ascending key, as ``Reader.inputs``; raises as it does.

    A corpus of one part is listed here. ``folder`` is of the index.
    """
    where = storage.join(folder, "parts.json")
    if not storage.exists(where):
        parts = list(reader.parts())
        if len(parts) == 1:
            yield from unique(reader.name, reader.inputs_of(parts[0]))
            return
        storage.put_if_absent(where, json.dumps(parts).encode())
    parts = storage.read_json(where)
    _list_all(reader, folder, parts, workers)
    yield from _merged(reader, folder, len(parts))


def _list_all(reader: Reader, folder: str, parts: list[str], workers: Workers) -> None:
    done = {info.uri.rpartition("/")[2] for info in storage.list_files(folder, suffix=".json")}
    todo = [number for number in range(len(parts)) if _name("part", number, "json") not in done]
    log.info("listing %d parts, %d are done", len(parts), len(parts) - len(todo))
    started = said = time.monotonic()
    images = 0
    work = partial(_list_part, reader, folder, parts)
    for count, found in enumerate(workers(work, todo) if todo else (), start=1):
        images += found
        if (now := time.monotonic()) - said >= PROGRESS_S or count == len(todo):
            said, each = now, (now - started) / count
            log.info(
                "listed %d/%d parts  %d images  %.0f images/s  ETA %.0f s",
                *(len(parts) - len(todo) + count, len(parts), images),
                *(images / (now - started), each * (len(todo) - count)),
            )


def _list_part(reader: Reader, folder: str, parts: list[str], number: int) -> int:
    """Writes what a part lists and the proof of it; returns how many inputs there are."""
    listing = Listing(reader.inputs_of(parts[number]))
    sink, images = pa.BufferOutputStream(), 0
    with without_collector(), pq.ParquetWriter(sink, _ROW, compression="zstd") as writer:
        for batch in batches_of(listing.inputs(), _BATCH_ROWS):
            images += len(batch)
            rows = [(item.key, item.place, item.payload, item.num_masks) for item in batch]
            columns = zip(zip(*rows, strict=True), _ROW, strict=True)
            writer.write_table(pa.table([pa.array(values, field.type) for values, field in columns], _ROW))
    rejects = listing.rejects()
    for kind, data in (("part", sink.getvalue().to_pybytes()), ("rejects", shards.parquet_bytes(rejects))):
        storage.write_bytes(storage.join(folder, _name(kind, number, "parquet")), data)
    proof = {"part": parts[number], "images": images, "rejects": rejects.num_rows}
    storage.put_if_absent(storage.join(folder, _name("part", number, "json")), json.dumps(proof).encode())
    return images


def _merged(reader: Reader, folder: str, parts: int) -> Iterator[Input | Reject]:
    def table(kind: str, number: int) -> pa.Table:
        data = storage.read_bytes(storage.join(folder, _name(kind, number, "parquet")))
        return pq.read_table(pa.BufferReader(data))

    for rejects in map_ahead(partial(table, "rejects"), range(parts), threads=_READ_THREADS):
        yield from rejects.to_pylist()
    with without_collector(), ExternalSort[tuple[str, str, str, int | None]]() as rows:
        for inputs in map_ahead(partial(table, "part"), range(parts), threads=_READ_THREADS):
            for batch in inputs.to_batches(_BATCH_ROWS):
                chars = batch.nbytes // max(1, batch.num_rows)
                for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    rows.add(row, chars)
        ordered = (Input(key, payload, masks, place) for key, place, payload, masks in rows)
        yield from unique(reader.name, ordered)


_READ_THREADS = 4
"""Parts that are read at a time; of a large corpus one has a million inputs."""


def _name(kind: str, number: int, suffix: str) -> str:
    return f"{kind}-{number:05d}.{suffix}"
