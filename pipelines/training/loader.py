"""Prepares what steps need ahead of time, in a thread or in processes, in the order of the tasks."""

import re
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader

from pipelines.training import world
from pipelines.training.config import WorkersConfig
from samtok.errors import ClusterError, SamtokError

T = TypeVar("T")
R = TypeVar("R")


def prepared(
    prepare: Callable[[T], R], tasks: Iterable[T], *, workers: WorkersConfig, ahead: int
) -> Generator[R, None, None]:
    """Yields ``prepare(task)`` for every task in order; close it to stop early.

    Args:
        prepare: A picklable callable. What it gives away to a process must travel: tensors, plain data.
        tasks: What is to be prepared.
        workers: ``workers.loaders`` processes do it, or a thread if 0.
        ahead: Tasks that are prepared before they are asked for; processes round it up.

    Raises:
        SamtokError: What ``prepare`` raised.
        ClusterError: If a loader process dies.
    """
    if workers.loaders:
        return _in_processes(prepare, tasks, workers, ahead)
    return _in_thread(prepare, tasks, ahead)


def _in_thread(prepare: Callable[[T], R], tasks: Iterable[T], ahead: int) -> Generator[R, None, None]:
    pool = ThreadPoolExecutor(1, thread_name_prefix="loader")
    waiting: deque[Future[R]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(prepare, task))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Failure:
    """An error on its way out of a loader process."""

    error: SamtokError


@dataclass(frozen=True)
class _Dataset(Generic[T, R]):
    """What DataLoader needs of a dataset; a task is its own index."""

    prepare: Callable[[T], R]

    def __getitem__(self, task: T) -> R | _Failure:
        try:
            return self.prepare(task)
        except SamtokError as error:
            return _Failure(error)  # DataLoader would replace the message by a traceback


def _in_processes(
    prepare: Callable[[T], R], tasks: Iterable[T], workers: WorkersConfig, ahead: int
) -> Generator[R, None, None]:
    loader: Any = DataLoader(
        _Dataset(prepare),  # type: ignore[arg-type] what DataLoader needs of a dataset is __getitem__
        batch_size=None,
        sampler=tasks,
        num_workers=workers.loaders,
        multiprocessing_context="spawn",
        prefetch_factor=max(2, -(-2 * ahead // workers.loaders)),
        pin_memory=workers.gpus != 0 and torch.cuda.is_available(),
        generator=torch.Generator(),  # else it would draw from the generator of the whole process
    )
    try:
        for result in loader:
            if isinstance(result, _Failure):
                raise result.error
            yield result
    except RuntimeError as error:
        if not re.search(r"exited unexpectedly|killed by signal", str(error)):
            raise
        raise ClusterError(
            f"a loader process of worker {world.rank()} died ({error}); often for lack of memory. Lower "
            "--workers.loaders, or give the workers' machines more memory or a larger /dev/shm."
        ) from error
