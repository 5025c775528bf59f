"""Has actors write thoughts: shards in, tables out, as they come. Dead actors start again."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines import job as runs
from pipelines.cluster import session
from pipelines.cold_start.prepare import Job
from pipelines.cold_start.teacher import TeachSamples
from pipelines.shards import Plan
from samtok.errors import ClusterError

log = logging.getLogger(__name__)

MAX_RETRIES = 4
"""Times a shard is repeated after its actor died; without a bound, one that kills actors never ends."""

IN_FLIGHT = 2
"""Shards that an actor has at a time: the one it works on, and the next."""

WAIT_S = 60.0
"""Seconds without a finished shard after which a line says that the job still waits."""


def teach(job: Job, plan: Plan, todo: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yields what ``TeachSamples.teach_shard`` returns for each shard, in the order in which they are done.

    Raises:
        ClusterError: The cluster is too small, or an actor dies again and again.
        CheckpointError: The teacher cannot be loaded.
    """
    pool = job.config.pool
    cpus = pool.actors * pool.cpus_per_actor
    with session(num_cpus=pool.num_cpus, at_least_cpus=cpus) as cluster:
        cluster.require(cpus=cpus, gpus=pool.actors * (pool.gpus_per_actor or 0))
        import ray
        from ray.exceptions import ActorDiedError, ActorUnavailableError

        actors = _start(job, min(pool.actors, len(todo)))
        try:
            yield from _stream(actors, ray.put(plan), todo)
        except (ActorDiedError, ActorUnavailableError) as error:
            raise ClusterError(
                f"An actor died {MAX_RETRIES + 1} times ({runs.last_line(error)}). Usually memory is short: "
                "lower --pool.actors or --teacher.batch-size."
            ) from error
        finally:
            for actor in actors:
                ray.kill(actor)


def _stream(actors: Sequence[Any], plan: Any, todo: Sequence[int]) -> Iterator[dict[str, Any]]:
    import ray

    waiting, flying = iter(todo), {}

    def send(actor: Any) -> None:
        shard = next(waiting, None)
        if shard is not None:
            flying[actor.teach_shard.remote(plan, shard)] = actor

    for actor in [*actors] * IN_FLIGHT:
        send(actor)
    while flying:
        done, _ = ray.wait(list(flying), num_returns=1, timeout=WAIT_S)
        if not done:
            log.info("%d shards are with the teacher", len(flying))
            continue
        actor = flying.pop(done[0])
        found = ray.get(done[0])
        send(actor)
        yield found


def _start(job: Job, count: int) -> list[Any]:
    import ray

    pool = job.config.pool
    kind = ray.remote(TeachSamples).options(
        num_cpus=pool.cpus_per_actor,
        num_gpus=pool.gpus_per_actor or 0,
        max_restarts=MAX_RETRIES,
        max_task_retries=MAX_RETRIES,
    )
    return [
        kind.remote(
            job.source,
            job.config.teacher,
            device=job.device,
            threads=pool.threads_per_actor,
            seed=job.config.seed,
            model_sha256=job.model_sha256,
        )
        for _ in range(count)
    ]
