"""Record batches of Arrow streams, as ``datasets.save_to_disk`` writes them (``data-00000-of-00010.arrow``).

A stream has no index, so its messages are gone through by their headers (Arrow columnar format, "Encapsulated
message format"); a batch is then read by its place. The file format, a stream behind a magic number, is read
likewise. ``parquet_cells`` names single values.
"""

import contextlib
import functools
import io
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from pipelines import storage
from samtok.errors import DataError

SUFFIX = ".arrow"

_HEADER_BYTES = 2**13  # of a request that reads one
_MAX_METADATA_BYTES = 2**26
_CONTINUATION = 0xFFFFFFFF
_MAGIC = b"ARROW1\0\0"
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3  # kinds of messages


class Batch(NamedTuple):
    """Where a record batch is in its file."""

    offset: int
    size_bytes: int
    rows: int


class Stream(NamedTuple):
    """What the headers of a file say."""

    schema: pa.Schema
    batches: tuple[Batch, ...]


@functools.lru_cache(maxsize=64)
def opened(file: str) -> Stream:
    """Returns schema and batches of a file.

    Raises:
        DataError: ``arrow_layout`` if it is no Arrow stream, was cut off, or has columns of dictionaries.
        StorageError: If it cannot be read.
    """
    schema, batches = None, []
    with storage.open_input(file, buffer_bytes=_HEADER_BYTES) as stream, _sound(file):
        end = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        position = len(_MAGIC) if stream.read(len(_MAGIC)) == _MAGIC else 0
        while position < end:
            stream.seek(position)
            prefix = stream.read(8)
            mark, length = struct.unpack("<Ii", prefix)
            if mark != _CONTINUATION or not 0 <= length <= _MAX_METADATA_BYTES:
                raise ValueError(f"there is no message at byte {position}")
            if length == 0:
                break
            header = stream.read(length)
            kind, body_bytes, rows = _message(header)
            size = len(prefix) + length + body_bytes
            if len(header) < length or body_bytes < 0 or position + size > end:
                raise ValueError(f"the message at byte {position} is cut off")
            if kind == _SCHEMA and schema is None:
                schema = pa.ipc.read_schema(pa.BufferReader(prefix + header))
            elif kind == _BATCH and rows >= 0:
                batches.append(Batch(position, size, rows))
            else:
                text = "dictionaries" if kind == _DICTIONARY else f"a message of kind {kind}"
                raise ValueError(f"it has {text} at byte {position}, expected record batches of plain values")
            position += size
        if schema is None or len(set(schema.names)) < len(schema):
            raise ValueError("it has no schema, or two columns of one name")
    return Stream(schema, tuple(batches))


@functools.lru_cache(maxsize=1)
def read_batch(file: str, number: int) -> pa.RecordBatch:
    """Returns a batch of a file, all of its columns; raises as ``opened``."""
    found = opened(file)
    batch = found.batches[number]
    data = storage.read_bytes(file, offset=batch.offset, size=batch.size_bytes)
    with _sound(file):
        made = pa.ipc.read_record_batch(pa.ipc.read_message(pa.BufferReader(data)), found.schema)
        made.validate(full=True)  # lengths and offsets of a damaged file would be followed anywhere
    return made


def rows_of(file: str, number: int, columns: list[str], at_once: int) -> Iterator[dict[str, Any]]:
    """Yields the rows of a batch, ``at_once`` as Python values; raises as ``opened``."""
    batch = read_batch(file, number).select(columns)
    for start in range(0, batch.num_rows, at_once):
        with _sound(file):  # names inside of structs may be no UTF-8
            rows = batch.slice(start, at_once).to_pylist()
        yield from rows


def value(file: str, number: int, column: str, index: int) -> Any:
    """Returns one value of a batch; raises as ``opened``."""
    batch = read_batch(file, number)
    with _sound(file):
        return batch[column][index].as_py()


def _message(header: bytes) -> tuple[int, int, int]:
    """Returns the kind of a message, the bytes of its body, and of a batch its rows, from the flatbuffer."""
    (root,) = struct.unpack_from("<I", header)
    kind = struct.unpack_from("<B", header, _field(header, root, 1))[0]
    body_bytes = struct.unpack_from("<q", header, place)[0] if (place := _field(header, root, 3)) else 0
    rows = 0
    if kind == _BATCH:
        place = _field(header, root, 2)
        table = place + struct.unpack_from("<I", header, place)[0]
        length = _field(header, table, 0)
        rows = struct.unpack_from("<q", header, length)[0] if length else 0
    return kind, body_bytes, rows


def _field(header: bytes, table: int, index: int) -> int:
    """Returns where a field of a flatbuffer's table is; 0 if it has its default value."""
    (back,) = struct.unpack_from("<i", header, table)
    vtable, slot = table - back, 4 + 2 * index
    if vtable < 0:
        raise ValueError("a header names a place before it")
    (size,) = struct.unpack_from("<H", header, vtable)
    offset = struct.unpack_from("<H", header, vtable + slot)[0] if slot + 2 <= size else 0
    return table + offset if offset else 0


@contextlib.contextmanager
def _sound(file: str) -> Iterator[None]:
    """Turns what is wrong with a file into a DataError; the storage's errors stay."""
    try:
        yield
    except (pa.ArrowException, ValueError, OverflowError, MemoryError, struct.error, OSError) as error:
        raise DataError(f"{file} is no Arrow stream, or damaged: {error}", reason="arrow_layout") from error
