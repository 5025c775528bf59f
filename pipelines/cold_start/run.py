"""A teacher model writes replies on Ray, and replies become samples here, thousands a second."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.cold_start.job import REPLIES, SAMPLES
from pipelines.cold_start.prepare import ColdStart
from pipelines.cold_start.stage import WriteThoughts
from pipelines.cold_start.teacher import TeachSamples
from pipelines.shard_job import do_shards
from pipelines.shard_pool import through_actors
from pipelines.shards import Plan
from pipelines.tracking import Tracker


def ask_teacher(job: ColdStart, plan: Plan, tracker: Tracker | None = None) -> dict[str, Any]:
    """Has the teacher model write what it has not written yet; returns the manifest.

    Raises:
        ClusterError: The cluster is too small, or an actor dies again and again.
        CheckpointError: The teacher cannot be loaded.
    """
    config = job.config

    def stream(todo: Sequence[int]) -> Iterator[dict[str, Any]]:
        return through_actors(
            functools.partial(TeachSamples, job.source, config, job.model_sha256),
            plan,
            todo,
            workers=config.workers,
            worker=config.worker,
            remedy="--workers or --teacher.batch-size",
            num_cpus=config.num_cpus,
        )

    return do_shards(plan, stream, units=(SAMPLES,), tracker=tracker)[0]


def write_thoughts(job: ColdStart, plan: Plan, tracker: Tracker | None = None) -> dict[str, Any]:
    """Makes the corpus of the replies; returns its manifest."""
    write = WriteThoughts(plan, job.source, job.rules)
    return do_shards(plan, lambda todo: map(write, todo), units=(REPLIES,), tracker=tracker)[0]
