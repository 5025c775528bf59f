"""Has Ray's actors or tasks do shards, a few at a time; yields what they return as it comes.

Ray restarts actors and repeats tasks that died, a bounded number of times: without a bound, a shard that
kills its workers would never end. After ``CAREFUL_AFTER`` deaths its records and images are read one by one
in a process apart, so the one that kills stands alone and becomes a reject (``pipelines.ingestion.apart``).
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipelines import shards
from pipelines.cluster import deaths, pool_session, runs_in
from pipelines.config import WorkerConfig
from pipelines.ingestion import apart
from pipelines.job import last_line
from pipelines.shards import Plan
from samtok.errors import ClusterError

log = logging.getLogger(__name__)

MAX_RETRIES = 4
"""Times a shard is repeated after its process died."""

IN_FLIGHT = 2
"""Shards that a process has at a time: the one it works on, and the next."""

WAIT_S = 60.0
"""Seconds without a finished shard after which a line says that the job still waits."""


@contextlib.contextmanager
def careful() -> Iterator[None]:
    """Within a Ray task: reads records and images apart if the task killed its workers before."""
    with apart.in_own_process() if deaths() >= apart.CAREFUL_AFTER else contextlib.nullcontext():
        yield


def _carefully(work: Callable[[int], Any], shard: int) -> Any:
    with careful():
        return work(shard)


class ShardWorker:
    """An actor that makes its stage with the first shard, so that errors of making it are those of a call.

    Of an error in an actor's constructor Ray returns only text, so its kind and exit code would be lost.
    """

    def __init__(self, make: Callable[[], Callable[[Plan, int], Any]]) -> None:
        self._make, self._stage = make, None

    def do(self, plan: Plan, shard: int) -> Any:
        """Returns what the stage returns for a shard."""
        if self._stage is None:
            self._stage = self._make()
        with careful():
            return self._stage(plan, shard)


def through_actors(
    make: Callable[[], Callable[[Plan, int], Any]],
    plan: Plan,
    todo: Sequence[int],
    *,
    workers: int,
    worker: WorkerConfig,
    remedy: str,
    num_cpus: int | None = None,
    memory_bytes: int = 0,
    python: str | None = None,
) -> Iterator[Any]:
    """Commits what actors return for each shard; yields the commit records that hold, as shards are done.
    Raises ClusterError if the cluster is too small, or an actor died too often.

    Args:
        make: Picklable; makes what an actor holds, which is called with a plan and a shard and returns
            what ``shards.commit`` takes.
        workers: Actors; no more than shards are started. With 0, this process does all.
        remedy: What to lower if actors die again and again, as flags.
        num_cpus: Logical CPUs of a Ray that is started here.
        memory_bytes: Memory that each actor reserves.
        python: What they run in, if not in this environment.
    """
    if not workers:
        stage = make()
        yield from (shards.commit(plan, **stage(plan, shard)) for shard in todo)
        return
    with pool_session(workers, worker, num_cpus=num_cpus, memory_bytes=memory_bytes):
        import ray

        kind = ray.remote(ShardWorker).options(
            num_cpus=worker.cpus,
            num_gpus=worker.gpus or 0,
            memory=memory_bytes or None,
            max_restarts=MAX_RETRIES,
            max_task_retries=MAX_RETRIES,
            **runs_in(python),
        )
        actors: list[Any] = [kind.remote(make) for _ in range(min(workers, len(todo)))]
        shared = ray.put(plan)
        try:
            slots = [*actors] * IN_FLIGHT
            for done in _stream(slots, lambda actor, n: actor.do.remote(shared, n), todo, remedy):
                yield shards.commit(plan, **done)
        finally:
            for actor in actors:
                ray.kill(actor)


def through_tasks(
    work: Callable[[int], Any], todo: Sequence[int], *, at_once: int, worker: WorkerConfig, remedy: str
) -> Iterator[Any]:
    """Yields what ``work`` (picklable) returns for each shard, called in so many Ray tasks at once."""
    import ray

    remote: Any = ray.remote(
        num_cpus=worker.cpus, num_gpus=worker.gpus or 0, max_retries=MAX_RETRIES, retry_exceptions=False
    )
    task = remote(_carefully)
    shared = ray.put(work)
    yield from _stream(range(at_once), lambda _, shard: task.remote(shared, shard), todo, remedy)


def _stream(
    slots: Sequence[Any], send: Callable[[Any, int], Any], todo: Sequence[int], remedy: str
) -> Iterator[Any]:
    """Keeps every slot busy with one shard; yields results."""
    import ray
    from ray import exceptions

    died = (
        *(exceptions.ActorDiedError, exceptions.ActorUnavailableError, exceptions.NodeDiedError),
        *(exceptions.OutOfMemoryError, exceptions.WorkerCrashedError),
    )
    waiting, flying = iter(todo), {}
    for slot in slots:
        if (shard := next(waiting, None)) is not None:
            flying[send(slot, shard)] = slot
    while flying:
        done, _ = ray.wait(list(flying), num_returns=1, timeout=WAIT_S)
        if not done:
            log.info("%d shards are being worked on", len(flying))
            continue
        slot = flying.pop(done[0])
        try:
            found = ray.get(done[0])
        except died as error:
            raise ClusterError(
                f"processes died {MAX_RETRIES + 1} times on the same shard ({last_line(error)}). Usually "
                f"memory is short: lower {remedy}."
            ) from error
        if (shard := next(waiting, None)) is not None:
            flying[send(slot, shard)] = slot
        yield found
