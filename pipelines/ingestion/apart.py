"""Work on one record that must not end a run, whatever it does: raise anything, or kill its process.

An unforeseen exception is the record's fault. Work that killed its workers is repeated in a process of its
own (``in_own_process``), which may die alone. Both are a ``DataError`` with the reason ``CRASHED``.
"""

import contextlib
import logging
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TypeVar

from samtok.errors import DataError, SamtokError

log = logging.getLogger(__name__)

T = TypeVar("T")

CRASHED = "crashed_worker"
"""Reason of records that nothing can be done with, by a defect of ours or of a library."""

CAREFUL_AFTER = 2
"""Deaths of processes over the same work after which it is done in a process apart; one may be bad luck."""

_rooms: list["_Room"] = []
"""Of the innermost ``in_own_process``, where there is one."""


def isolated(work: Callable[[], T], what: str, *, mortal: tuple[type[Exception], ...] = ()) -> T:
    """Does work on a record, picklable within ``in_own_process``; raises errors of our family as they come,
    and those that are ``mortal``: faults of the machine.

    Raises:
        DataError: ``crashed_worker`` for any other exception, or if its process died; names ``what``.
    """
    try:
        return _rooms[-1].do(work, what) if _rooms else work()
    except (SamtokError, *mortal):
        raise
    except Exception as error:
        log.warning("%s cannot be used: an unforeseen %s", what, type(error).__name__, exc_info=True)
        raise DataError(
            f"{what}: an unforeseen {type(error).__name__}: {error}. Please report it with the file.",
            reason=CRASHED,
        ) from error


def is_careful() -> bool:
    """Returns whether ``isolated`` works in a child process here."""
    return bool(_rooms)


@contextlib.contextmanager
def in_own_process() -> Iterator[None]:
    """Within the block ``isolated`` works in a child process, which is replaced if it dies; all threads share
    it. Not for daemonic processes, which may have no children."""
    _rooms.append(_Room())
    try:
        yield
    finally:
        _rooms.pop().close()


class _Room:
    """A child process that does one thing after another, started with the first; ends with its parent."""

    def __init__(self) -> None:
        self._child: tuple[BaseProcess, Connection] | None = None
        self._lock = threading.Lock()

    def do(self, work: Callable[[], T], what: str) -> T:
        with self._lock:
            return self._do(work, what)

    def _do(self, work: Callable[[], T], what: str) -> T:
        process, pipe = self._child = self._child or _start()
        try:
            pipe.send(work)
            answer = pipe.recv()
        except (EOFError, OSError) as error:
            process.join()
            self.close()
            raise DataError(
                f"{what}: reading it killed its process (exit code {process.exitcode}). If memory is short, "
                "lower --workers; else the file is one that crashes its decoder.",
                reason=CRASHED,
            ) from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        if self._child is not None:
            process, pipe = self._child
            pipe.close()
            process.join()
            self._child = None


def _start() -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()  # so that each end sees the other one's death
    return process, ours


def _serve(pipe: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            work = pipe.recv()
            try:
                answer = work()
            except Exception as error:  # noqa: BLE001 raised again by the parent
                answer = error
            pipe.send(answer)
