"""Composes shards, in this process or in Ray tasks.

A shard is composed and committed where it runs, so nothing but commit records travels.
"""

import functools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines import storage
from pipelines.chats.commit import compose_shard
from pipelines.cluster import pool_session
from pipelines.config import WorkerConfig
from pipelines.dialogues.config import ComposeDialoguesConfig
from pipelines.dialogues.job import ITEMS
from pipelines.dialogues.prepare import Composition
from pipelines.shard_job import Work, do_shards
from pipelines.shard_pool import through_tasks
from pipelines.shards import Plan
from pipelines.tracking import Tracker
from samtok.errors import ConfigError

log = logging.getLogger(__name__)

TASK = WorkerConfig(gpus=0.0)
"""What a Ray task that composes holds."""


def make_chats(job: Composition, plan: Plan, tracker: Tracker | None = None) -> tuple[dict[str, Any], Work]:
    """Does what is left of a corpus; returns its manifest, and what this call did.

    Raises:
        ConfigError: If there was nothing to ask: the tasks do not fit the annotations.
    """
    compose, workers = functools.partial(compose_shard, plan, job.take), job.config.workers

    def stream(todo: Sequence[int]) -> Iterator[dict[str, Any]]:
        if not workers:
            yield from map(compose, todo)
            return
        with pool_session(workers, TASK) as cluster:
            if not cluster.started_here:
                _warn_of_local_folders(job.config)
            remedy = "--workers or --shard-rows"
            yield from through_tasks(compose, todo, at_once=workers, worker=TASK, remedy=remedy)

    manifest, work = do_shards(plan, stream, units=(ITEMS,), tracker=tracker)
    totals = manifest["totals"]
    if not totals["items_in"]:
        raise ConfigError(
            f"--tasks {job.config.tasks} found nothing to ask about {totals['rows_in']} images with "
            f"{totals['annotations_in']} annotations. Name tasks that these corpora have annotations for; "
            "instances needs only labels of masks."
        )
    return manifest, work


def _warn_of_local_folders(config: ComposeDialoguesConfig) -> None:
    local = [uri for uri in (config.out, *config.words) if not storage.is_remote(uri)]
    if local:
        log.warning(
            "Workers of this cluster read and write %s; it must be the same folder on every node. If it is "
            "not, use s3:// or --workers 0.",
            ", ".join(local),
        )
