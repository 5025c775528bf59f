"""Runs an evaluation of an MLLM: actors answer and score shards of questions, the driver commits and sums.

OUT/config.json                the resolved config
OUT/plan.json, plan/           the questions by image, frozen when the job first ran
OUT/data/shard-*.parquet       one row per question: answer, codes, masks, pixel counts (rows.ANSWER_ROW)
OUT/rejects/, commits/, _MANIFEST.json
OUT/lineage.json               model, tokenizer, chats, versions
OUT/metrics.json               the numbers, in every mode, beside the baseline
OUT/report/index.html          tables, and questions with truth and prediction
"""

import json
import logging
import time
from collections.abc import Iterator
from typing import Any

from pipelines import job as runs
from pipelines import provenance, shards, storage
from pipelines.cluster import session
from pipelines.mllm_evaluation import outcome, report
from pipelines.mllm_evaluation.outcome import Work
from pipelines.mllm_evaluation.prepare import Job, dry_run, plan_of, prepare
from pipelines.mllm_evaluation.scores import metrics_of, read_answers
from pipelines.mllm_evaluation.stage import AnswerSettings, LazyAnswers
from pipelines.shards import Plan
from pipelines.tracking import Tracker
from samtok.errors import ClusterError

log = logging.getLogger(__name__)

MAX_RETRIES = 4
"""Times a shard is repeated after its actor died; without a bound, one that kills actors never ends."""

IN_FLIGHT = 2
"""Shards that an actor has at a time: the one it works on, and the next."""

WAIT_S = 60.0
"""Seconds without a finished shard after which a line says that the job still waits."""


def evaluate_mllm(config: Any) -> int:
    """Runs the job; returns its exit code."""
    return runs.guard(lambda: _evaluate(config))


def _evaluate(config: Any) -> int:
    started = time.monotonic()
    job = prepare(config)
    config = job.config
    beside = outcome.read_beside(job)
    if config.dry_run:
        return dry_run(job)
    plan = plan_of(job)
    storage.write_bytes(storage.join(config.out, "config.json"), provenance.config_json(config).encode())
    tracker = Tracker(config.tracking, experiment="evaluate_mllm", home=config.out)
    tracker.params(json.loads(provenance.config_json(config)))
    tracker.tags(outcome.tags_of(job))
    try:
        work = _answer_all(job, plan)
        manifest = shards.finish(plan)
        rows = read_answers(config.out, manifest)
        metrics = metrics_of(
            rows, benchmark=config.benchmark, readings=job.readings, min_pixels=config.min_pixels
        )
        metrics = {"measured_with": outcome.measured_with(job), **metrics}
        outcome.write(job, metrics)
        outcome.track(tracker, job, metrics, work)
        if config.report_pictures:
            report.write_report(job, manifest, rows, metrics, beside)
            tracker.folder(storage.join(config.out, "report"), "report")
        outcome.print_table(job, metrics, beside, work, time.monotonic() - started, tracker)
        outcome.check_rejects(config, metrics["counts"])
    except BaseException:
        tracker.end("FAILED")
        raise
    tracker.end()
    return 0


def _answer_all(job: Job, plan: Plan) -> Work:
    """Does the shards that have no commit record; returns what this call did."""
    done = shards.committed(plan)
    todo = [shard for shard in range(len(plan.shard_rows)) if shard not in done]
    log.info("%d images in %d shards, %d committed", plan.num_inputs, len(plan.shard_rows), len(done))
    work, pool = Work(), job.config.pool
    if not todo:
        return work
    cpus = pool.actors * pool.cpus_per_actor
    with session(num_cpus=pool.num_cpus, at_least_cpus=cpus) as cluster:
        cluster.require(cpus=cpus, gpus=pool.actors * (pool.gpus_per_actor or 0))
        started = time.monotonic()
        for answers in _stream(job, plan, todo):
            shards.commit(
                plan,
                answers["shard"],
                rows=answers["rows"],
                rejects=answers["rejects"],
                summary={"counts": answers["counts"], "reject_reasons": answers["reasons"]},
            )
            work.add(answers["counts"], time.monotonic() - started)
            log.info(
                "shard %d/%d  %d questions  %.2f questions/s",
                len(done) + work.shards,
                len(plan.shard_rows),
                work.questions,
                work.questions_per_s,
            )
    return work


def _stream(job: Job, plan: Plan, todo: list[int]) -> Iterator[dict[str, Any]]:
    """Has actors answer shards; yields them as they come."""
    import ray
    from ray.exceptions import ActorDiedError, ActorUnavailableError

    waiting = iter(todo)
    flying: dict[Any, Any] = {}

    def send(actor: Any) -> None:
        shard = next(waiting, None)
        if shard is not None:
            flying[actor.answer_shard.remote(plan_ref, shard)] = actor

    plan_ref = ray.put(plan)
    actors = _start(job, min(job.config.pool.actors, len(todo)))
    try:
        for actor in actors * IN_FLIGHT:
            send(actor)
        while flying:
            done, _ = ray.wait(list(flying), num_returns=1, timeout=WAIT_S)
            if not done:
                log.info("%d shards are being answered", len(flying))
                continue
            actor = flying.pop(done[0])
            answers = ray.get(done[0])
            send(actor)
            yield answers
    except (ActorDiedError, ActorUnavailableError) as error:
        raise ClusterError(
            f"An actor died {MAX_RETRIES + 1} times ({runs.last_line(error)}). Usually memory is short: "
            "lower --pool.actors or --generation.batch-size."
        ) from error
    finally:
        for actor in actors:
            ray.kill(actor)


def _start(job: Job, count: int) -> list[Any]:
    import ray

    config, pool = job.config, job.config.pool
    settings = AnswerSettings(
        generation=config.generation,
        readings=job.readings,
        grammar=config.grammar,
        answers_only=config.scored_part == "answer",
    )
    kind = ray.remote(LazyAnswers).options(
        num_cpus=pool.cpus_per_actor,
        num_gpus=pool.gpus_per_actor or 0,
        max_restarts=MAX_RETRIES,
        max_task_retries=MAX_RETRIES,
    )
    return [
        kind.remote(
            config.model,
            config.tokenizer,
            settings,
            device=job.fingerprint["device"],
            threads=pool.threads_per_actor,
            model_sha256=job.fingerprint["model_sha256"],
            tokenizer_sha256=job.fingerprint["tokenizer_sha256"],
        )
        for _ in range(count)
    ]
