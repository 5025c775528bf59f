"""Many calls that are mostly waiting, and the many objects that they give."""

import contextlib
import gc
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = 32
"""Requests to an object store at a time."""


def map_ahead(
    call: Callable[[Item], Result], items: Iterable[Item], *, threads: int = THREADS
) -> Iterator[Result]:
    """Yields what a call returns for each item, in their order. At most twice as many results as threads wait
    to be taken, so memory is bounded; ``items`` are taken as they are needed. Raises what a call raises."""
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:  # which at its end waits for what was begun
        for item in items:
            waiting.append(pool.submit(call, item))
            while waiting and (waiting[0].done() or len(waiting) >= 2 * threads):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Leaves cycles of objects alone for a while: none are made here, and looking for them among millions of
    rows takes a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
