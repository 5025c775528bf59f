"""Actors answer and score shards of questions; the driver commits them."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.generation.environment import python_of
from pipelines.mllm_evaluation.job import QUESTIONS
from pipelines.mllm_evaluation.prepare import Evaluation
from pipelines.mllm_evaluation.stage import AnswerQuestions
from pipelines.shard_job import Work, do_shards
from pipelines.shard_pool import through_actors
from pipelines.shards import Plan
from pipelines.tracking import Tracker
from samtok.images import DECODE_BYTES_PER_PIXEL


def answer_all(job: Evaluation, plan: Plan, tracker: Tracker | None = None) -> tuple[dict[str, Any], Work]:
    """Does what is left of an evaluation; returns its manifest, and what this call did.

    Raises:
        ClusterError: If the cluster is too small, or an actor dies again and again.
        CheckpointError: If model or tokenizer cannot be loaded.
    """
    config = job.config

    def stream(todo: Sequence[int]) -> Iterator[dict[str, Any]]:
        hashes = {name: job.fingerprint[name] for name in ("model_sha256", "tokenizer_sha256")}
        return through_actors(
            functools.partial(AnswerQuestions, config, job.asked, job.readings, **hashes),
            plan,
            todo,
            workers=config.workers,
            worker=config.worker,
            remedy="--workers or --generation.batch-size",
            num_cpus=config.num_cpus,
            python=python_of(config.generation),
            memory_bytes=config.max_image_pixels * DECODE_BYTES_PER_PIXEL,
        )

    return do_shards(plan, stream, units=(QUESTIONS,), tracker=tracker)
