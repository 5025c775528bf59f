"""Files inside Parquet and Arrow files, as Hugging Face datasets embed images: a struct of ``bytes`` and
``path``, or a text that is a data URL.

One of them is written ``file.parquet#row:12:images``, row and column, and ``#row:12:images:2`` for an entry
after the first where a row has a list. A row group is what is read at once, of Arrow streams
(``arrow_cells``) a record batch, so images are cheap in the order of the file and dear at random: the group
that was read last is kept.
"""

import base64
import binascii
import contextlib
import functools
import re
from collections.abc import Iterator
from itertools import repeat
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.ingestion import arrow_cells
from samtok.errors import DataError

MAX_GROUP_BYTES = 2**31
"""Largest column of a row group that is read: it is held in memory."""

SUFFIX = ".parquet"

_CELL = re.compile(
    r"(?P<file>.+?\.(?:parquet|arrow))#row:(?P<row>\d{1,12}):(?P<column>[^:#]+)(:(?P<entry>\d{1,6}))?",
    re.DOTALL,
)


class Cell(NamedTuple):
    """A value of a Parquet or Arrow file."""

    file: str
    row: int
    column: str
    entry: int = 0

    @property
    def uri(self) -> str:
        """What ``parse`` reads."""
        return f"{self.file}#row:{self.row}:{self.column}" + (f":{self.entry}" if self.entry else "")


def parse(uri: str) -> Cell | None:
    """Returns the cell that a URI names; None if it names none."""
    match = _CELL.fullmatch(uri)
    return match and Cell(match["file"], int(match["row"]), match["column"], int(match["entry"] or 0))


def read(cell: Cell) -> bytes:
    """Returns the bytes of an embedded file.

    Raises:
        DataError: ``image_cell`` if there is no such row or column, or it holds no bytes.
        StorageError: If the file cannot be read.
    """
    found = entries(cell)
    if cell.entry >= len(found):
        raise _fault(cell, f"there are {len(found)} entries")
    if not found[cell.entry].data:
        raise _fault(cell, f"no bytes are embedded; its path is {found[cell.entry].path!r:.200}")
    return found[cell.entry].data


class Entry(NamedTuple):
    """An embedded file: its bytes, which may be none, and the name that it had."""

    data: bytes
    path: str | None


def entries(cell: Cell) -> list[Entry]:
    """Returns all files in the row and column of a cell; raises as ``read``."""
    value = _value(cell)
    return [_entry(one) for one in (value if isinstance(value, list) else [value])]


def _entry(value: Any) -> Entry:
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if isinstance(data, str):
        data, path = _of_data_url(data), data
    return Entry(data if isinstance(data, bytes) else b"", path if isinstance(path, str) else None)


def _group_of(cell: Cell) -> tuple[int, int]:
    """Returns the row group of a cell and the first row of that group."""
    first, names = 0, columns_of(cell.file)
    if cell.column not in names:
        raise _fault(cell, f"its columns are {', '.join(names)}")
    for number, rows in enumerate(rows_of_groups(cell.file)):
        if cell.row < first + rows:
            size = _size_bytes(cell.file, number, cell.column)
            if size > MAX_GROUP_BYTES:
                text = f"its row group has {size / 2**30:.1f} GB of this column, expected at most 2"
                raise _fault(cell, f"{text}; write it anew with smaller ones")
            return number, first
        first += rows
    raise _fault(cell, f"it has {first} rows")


def _size_bytes(file: str, number: int, column: str) -> int:
    """Returns how much of a row group is read for one column."""
    if file.endswith(arrow_cells.SUFFIX):
        return arrow_cells.opened(file).batches[number].size_bytes
    group = metadata(file).row_group(number)
    columns = [group.column(i) for i in range(group.num_columns)]
    own = [one for one in columns if one.path_in_schema.partition(".")[0] == column]
    return sum(one.total_uncompressed_size for one in own)


def _of_data_url(text: str) -> bytes | None:
    """Returns the bytes of ``data:image/png;base64,...``; None for another text."""
    head, _, data = text.partition(";base64,")
    if not head.startswith("data:"):
        return None
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return None


@functools.lru_cache(maxsize=64)
def rows_of_groups(file: str) -> tuple[int, ...]:
    """Returns the number of rows of each row group, of an Arrow stream of each batch.

    Raises:
        DataError: ``parquet_layout`` or ``arrow_layout`` if it is no such file.
        StorageError: If it cannot be read.
    """
    if file.endswith(arrow_cells.SUFFIX):
        return tuple(batch.rows for batch in arrow_cells.opened(file).batches)
    found = metadata(file)
    return tuple(found.row_group(number).num_rows for number in range(found.num_row_groups))


@functools.lru_cache(maxsize=64)
def metadata(file: str) -> pq.FileMetaData:
    """Returns what the end of a file says of its row groups.

    Raises:
        DataError: ``parquet_layout`` if it is no Parquet file.
        StorageError: If it cannot be read.
    """
    with storage.open_input(file) as stream:
        return _opened(stream, file).metadata


def columns_of(file: str) -> list[str]:
    """Returns the names of the columns; raises as ``rows_of_groups``."""
    if file.endswith(arrow_cells.SUFFIX):
        return arrow_cells.opened(file).schema.names
    return metadata(file).schema.to_arrow_schema().names


def rows_of(file: str, group: int, columns: list[str], at_once: int) -> Iterator[dict[str, Any]]:
    """Yields the rows of a row group, ``at_once`` in memory; raises as ``rows_of_groups``."""
    if file.endswith(arrow_cells.SUFFIX):
        yield from arrow_cells.rows_of(file, group, columns, at_once)
        return
    with storage.open_input(file) as stream:
        found = _opened(stream, file)
        batches = found.iter_batches(at_once, row_groups=[group], columns=columns)
        while True:
            with _sound(file):  # texts may be no UTF-8
                batch = next(batches, None)
                rows = None if batch is None else batch.to_pylist()
            if rows is None:
                return
            yield from rows


def each_row(file: str, group: int, columns: list[str], at_once: int) -> Iterator[dict[str, Any] | DataError]:
    """Yields as many as a row group has: its rows as ``rows_of``, and from where it is damaged on what is
    wrong, once for each row; raises as ``rows_of_groups``."""
    count = rows_of_groups(file)[group]
    try:
        for values in rows_of(file, group, columns, at_once):
            yield values
            count -= 1
    except DataError as error:
        yield from repeat(error, count)


def _value(cell: Cell) -> Any:
    group, first = _group_of(cell)
    if cell.file.endswith(arrow_cells.SUFFIX):
        return arrow_cells.value(cell.file, group, cell.column, cell.row - first)
    values = _values(cell.file, group, cell.column)
    with _sound(cell.file):
        return values[cell.row - first].as_py()


@functools.lru_cache(maxsize=1)
def _values(file: str, group: int, column: str) -> pa.ChunkedArray:
    with storage.open_input(file) as stream:
        found = _opened(stream, file)
        with _sound(file):
            return found.read_row_group(group, columns=[column])[column]


def _opened(stream: Any, file: str) -> pq.ParquetFile:
    with _sound(file):
        return pq.ParquetFile(stream)


@contextlib.contextmanager
def _sound(file: str) -> Iterator[None]:
    """Turns what Arrow says of a broken file into a DataError; the storage's errors stay."""
    try:
        yield
    except DataError:
        raise
    except (pa.ArrowException, ValueError, OverflowError, OSError) as error:
        raise DataError(f"{file} is no Parquet file, or damaged: {error}", reason="parquet_layout") from error


def _fault(cell: Cell, text: str) -> DataError:
    return DataError(f"{cell.uri}: {text}", reason="image_cell")


def files_of(source: str, suffix: str = SUFFIX) -> list[str]:
    """Returns the names of the files of one kind below a folder or prefix, or of the one that is the source.

    Raises:
        DataError: ``parquet_layout`` if there is none.
        StorageError: If the storage fails.
    """
    if source.endswith(suffix):
        return [PurePosixPath(source).name]
    start = source.rstrip("/") + "/"
    listed = [one.uri.removeprefix(start) for one in storage.list_files(source, suffix=suffix)]
    if not listed:
        raise DataError(f"there is no {suffix} file below {source}", reason="parquet_layout")
    return sorted(listed, key=stem)  # so that rows ascend by their keys


def stem(name: str) -> str:
    """Returns what the keys of a file's rows begin with."""
    return name.rpartition(".")[0] + "-"
