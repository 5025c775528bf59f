"""The steps of a run as prepared data: which items, read by whom, in which order.

Step t is draws [t * S, (t + 1) * S) of the mixture, with S items per step, and each worker has a slice of
them; so the same items come in the same order whatever the number of workers and loader processes, and a run
can begin at any step. They are prepared ahead of time, in a thread or in processes.
"""

import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader

from pipelines.ingestion import apart
from pipelines.training import world
from pipelines.training.config import TrainingConfig, TrainWorkerConfig
from pipelines.training.draws import Draw
from pipelines.training.mixture import Mixture
from samtok.errors import ClusterError, SamtokError

T = TypeVar("T")
R = TypeVar("R")


class StepLoader(Generic[R]):
    """Prepares a worker's share of every step, ahead of time.

    Args:
        prepare: Turns draws into what a step takes; picklable, since it goes to loader processes.
        config: The run; ``config.worker.loaders`` processes prepare, or a thread if 0.
        per_call: Draws that are prepared together.
    """

    def __init__(
        self,
        prepare: Callable[[tuple[Draw, ...]], R],
        mixture: Mixture,
        config: TrainingConfig,
        *,
        rank: int,
        per_call: int = 1,
    ) -> None:
        if not 0 <= rank < config.workers:
            raise ValueError(f"rank must be in [0, {config.workers}), got {rank}")
        self.prepare, self.mixture, self.config, self.rank = prepare, mixture, config, rank
        self.per_call = per_call

    def steps(self, start: int) -> Iterator[list[R]]:
        """Yields what was prepared for the steps from ``start`` to the last one of the run. Raises DataError
        if many draws in a row from a corpus are unusable, ClusterError if a loader process dies."""
        calls = self.config.per_worker // self.per_call
        tasks = (task for step in range(start, self.config.steps) for task in self._tasks(step))
        processes = self.config.worker.loaders and not apart.is_careful()  # which may have no children
        start_loading = _in_processes if processes else _in_thread
        with closing(start_loading(self.prepare, tasks, self.config.worker, calls)) as made:
            while step := list(islice(made, calls)):
                yield step

    def _tasks(self, step: int) -> Iterator[tuple[Draw, ...]]:
        share = self.config.per_worker
        first = step * self.config.per_step + self.rank * share
        draws = [Draw(first + i, *drawn) for i, drawn in enumerate(self.mixture.turns(first, share))]
        for begin in range(0, share, self.per_call):
            yield tuple(draws[begin : begin + self.per_call])


def _in_thread(
    prepare: Callable[[T], R], tasks: Iterable[T], _worker: TrainWorkerConfig, ahead: int
) -> Generator[R, None, None]:
    """Yields ``prepare(task)`` for every task in order, ``ahead`` of them before they are asked for."""
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
    prepare: Callable[[T], R], tasks: Iterable[T], worker: TrainWorkerConfig, ahead: int
) -> Generator[R, None, None]:
    """As ``_in_thread``, a few more ahead; what ``prepare`` returns travels: tensors, plain data."""
    loader: Any = DataLoader(
        _Dataset(prepare),  # type: ignore[arg-type] what DataLoader needs of a dataset is __getitem__
        batch_size=None,
        sampler=tasks,
        num_workers=worker.loaders,
        multiprocessing_context="spawn",
        prefetch_factor=max(2, -(-2 * ahead // worker.loaders)),
        pin_memory=worker.gpus != 0 and torch.cuda.is_available(),
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
            "--worker.loaders, or give the workers' machines more memory or a larger /dev/shm."
        ) from error
