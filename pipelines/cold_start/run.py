"""A teacher model writes replies on Ray, and replies become samples here, thousands a second."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines import schema
from pipelines.chats.commit import Composed, compose_shard
from pipelines.chats.source import ChatSource
from pipelines.cold_start.job import REPLIES, SAMPLES
from pipelines.cold_start.prepare import ColdStart
from pipelines.cold_start.replies import TeacherReply
from pipelines.cold_start.teacher import TeachSamples
from pipelines.cold_start.thoughts import Rules, with_thought
from pipelines.generation.environment import python_of
from pipelines.shard_job import do_shards
from pipelines.shard_pool import through_actors
from pipelines.shards import Plan
from pipelines.tracking import Tracker
from samtok.errors import DataError

STAGE = "think"
"""Stage of all rejects made here."""


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
            python=python_of(config.teacher),
        )

    return do_shards(plan, stream, units=(SAMPLES,), tracker=tracker)[0]


def write_thoughts(job: ColdStart, plan: Plan, tracker: Tracker | None = None) -> dict[str, Any]:
    """Makes the corpus of the replies; returns its manifest."""
    write = functools.partial(compose_shard, plan, functools.partial(_take, job.source, job.rules))
    return do_shards(plan, lambda todo: map(write, todo), units=(REPLIES,), tracker=tracker)[0]


def _take(source: ChatSource, rules: Rules, payload: dict[str, Any], done: Composed) -> None:
    reply = TeacherReply(**payload)
    row = None if reply.index is None else source.row(reply.index)
    try:
        if reply.reason is not None:
            raise DataError(reply.message, reason=reply.reason)
        assert row is not None  # a reply to no sample has a reason
        done.samples.append(with_thought(row, reply.reply, rules))
        rows, ends = ("rows_in", "rows_out"), ("items_in", "items_out", "samples_out")
    except DataError as error:
        dataset = row["dataset"] if row else ""
        done.rejects.append(schema.reject(STAGE, dataset, reply.sample_id, error.reason, str(error)))
        rows, ends = ("rows_in", "rows_rejected"), ("items_in", "items_rejected")
    done.counts.update([*rows, *ends])
    if row is not None:
        done.counts.update(f"{row['task']}/{end}" for end in ends)
