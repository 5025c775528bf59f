"""Sorting more rows than fit into memory: an external merge sort on the local disk.

Rows are tuples that compare by their first values; the others can be anything that can be pickled. They are
collected, sorted and written as runs; reading merges the runs. Memory is that of one run while rows come in,
and of one batch per run while they go out. Rows that fit into one run never touch the disk. Runs lie in the
folder for temporary files (``TMPDIR``), about as large as the rows.
"""

import heapq
import pickle
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO, Generic, TypeVar

from samtok.errors import StorageError

Row = TypeVar("Row", bound=tuple[Any, ...])

RUN_ROWS, RUN_CHARS = 400_000, 2**25
"""Most rows and characters of a run."""
BATCH_ROWS, BATCH_CHARS = 1000, 2**17
"""About the most that is read of a run at a time."""


class ExternalSort(Generic[Row]):
    """Takes rows in any order and gives them back in ascending order; a context that removes its runs."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._chars = 0
        self._runs: list[BinaryIO] = []

    def __enter__(self) -> "ExternalSort[Row]":
        return self

    def __exit__(self, *_: object) -> None:
        for run in self._runs:
            run.close()  # which deletes it

    def add(self, row: Row, chars: int) -> None:
        """Takes a row of about so many characters; raises StorageError if a run cannot be written."""
        self._rows.append(row)
        self._chars += chars
        if len(self._rows) >= RUN_ROWS or self._chars >= RUN_CHARS:
            self._write_run()

    def __iter__(self) -> Iterator[Row]:
        """Yields all rows in ascending order."""
        self._rows.sort()
        if not self._runs:
            return iter(self._rows)
        self._write_run()
        return heapq.merge(*map(_rows_of, self._runs))

    def _write_run(self) -> None:
        self._rows.sort()
        try:
            run: Any = tempfile.TemporaryFile(prefix="samtok-sort-")  # noqa: SIM115  (closed at the end)
            self._runs.append(run)
            size = max(1, min(BATCH_ROWS, BATCH_CHARS * len(self._rows) // max(1, self._chars)))
            for start in range(0, len(self._rows), size):
                pickle.dump(self._rows[start : start + size], run, pickle.HIGHEST_PROTOCOL)
            run.flush()
        except OSError as error:
            raise StorageError(
                f"Cannot write temporary files to {tempfile.gettempdir()}: {error.strerror}. A corpus that "
                "does not fit into memory is sorted there and needs as much space as its annotations; TMPDIR "
                "names another folder."
            ) from error
        self._rows, self._chars = [], 0


def _rows_of(run: BinaryIO) -> Iterator[Any]:
    run.seek(0)
    while True:
        try:
            batch = pickle.load(run)
        except EOFError:
            return
        yield from batch
