"""Actors answer and score shards of questions; the driver commits them."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines import shards
from pipelines.mllm_evaluation.job import QUESTIONS
from pipelines.mllm_evaluation.prepare import Evaluation
from pipelines.mllm_evaluation.stage import AnswerQuestions, AnswerSettings
from pipelines.shard_job import Work, do_shards
from pipelines.shard_pool import through_actors
from pipelines.shards import Plan
from pipelines.tracking import Tracker


def settings_of(job: Evaluation) -> AnswerSettings:
    """Returns how questions are asked and scored."""
    return AnswerSettings(
        generation=job.config.generation,
        readings=job.readings,
        precision=job.config.precision,
        grammar=job.config.grammar,
        answers_only=job.config.scored_part == "answer",
    )


def answer_all(job: Evaluation, plan: Plan, tracker: Tracker | None = None) -> tuple[dict[str, Any], Work]:
    """Does what is left of an evaluation; returns its manifest, and what this call did.

    Raises:
        ClusterError: If the cluster is too small, or an actor dies again and again.
        CheckpointError: If model or tokenizer cannot be loaded.
    """
    config = job.config

    def stream(todo: Sequence[int]) -> Iterator[dict[str, Any]]:
        make = functools.partial(
            AnswerQuestions,
            config.model,
            config.tokenizer,
            settings_of(job),
            device=job.fingerprint["device"],
            threads=config.worker.threads,
            model_sha256=job.fingerprint["model_sha256"],
            tokenizer_sha256=job.fingerprint["tokenizer_sha256"],
        )
        for answers in through_actors(
            make,
            plan,
            todo,
            workers=config.workers,
            worker=config.worker,
            remedy="--workers or --generation.batch-size",
            num_cpus=config.num_cpus,
        ):
            yield commit(plan, answers)

    return do_shards(plan, stream, units=(QUESTIONS,), tracker=tracker)


def commit(plan: Plan, answers: dict[str, Any]) -> dict[str, Any]:
    """Commits what ``AnswerQuestions`` returned; returns the commit record that holds."""
    summary = {"counts": answers["counts"], "reject_reasons": answers["reasons"]}
    return shards.commit(
        plan, answers["shard"], rows=answers["rows"], rejects=answers["rejects"], summary=summary
    )
