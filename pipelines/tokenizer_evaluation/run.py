"""Runs an evaluation: every corpus through the tokenization pipeline with all masks reconstructed, then sums.

OUT/config.json                the resolved config
OUT/<dataset>/                 code rows with IoUs, committed shard by shard: what resuming looks at
OUT/masks.parquet              one row per mask
OUT/lineage.json               tokenizer, fingerprints of all corpora, versions
OUT/metrics.json               the numbers
OUT/report/index.html          tables, plots, the worst masks, images drawn at random
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from pipelines import job as runs
from pipelines import provenance, shards, storage
from pipelines.shards import Plan
from pipelines.tokenization.outcome import Work, check_rejects, tokenizer_of_reports, track_report
from pipelines.tokenization.prepare import Job, plan_of
from pipelines.tokenization.run import make_words, ray_for
from pipelines.tokenizer_evaluation import outcome, report
from pipelines.tokenizer_evaluation.config import EvaluateTokenizerConfig
from pipelines.tokenizer_evaluation.prepare import dry_run, jobs_of, resolved
from pipelines.tokenizer_evaluation.summary import Corpus, metrics_of, read_corpus
from pipelines.tracking import Tracker

log = logging.getLogger(__name__)


def evaluate_tokenizer(config: EvaluateTokenizerConfig) -> int:
    """Runs the job; returns its exit code."""
    return runs.guard(lambda: _evaluate(config))


def _evaluate(config: EvaluateTokenizerConfig) -> int:
    started = time.monotonic()
    jobs = jobs_of(config)
    config = resolved(config, jobs)
    if config.dry_run:
        return dry_run(config, jobs)
    plans = {name: plan_of(job) for name, job in jobs.items()}
    storage.write_bytes(storage.join(config.out, "config.json"), provenance.config_json(config).encode())
    tracker = Tracker(config.tracking, experiment="evaluate_tokenizer", home=config.out)
    tracker.params(json.loads(provenance.config_json(config)))
    tracker.tags(outcome.tags_of(jobs))
    try:
        corpora, works = _measure(jobs, plans)
        metrics = {"measured_with": outcome.measured_with(corpora[0]), **metrics_of(corpora)}
        _publish(config, corpora, metrics, works, tracker)
        outcome.print_table(config, metrics, works, time.monotonic() - started, tracker)
        for name, corpus in zip(jobs, corpora, strict=True):
            check_rejects(jobs[name].config, corpus.manifest["totals"])
    except BaseException:
        tracker.end("FAILED")
        raise
    tracker.end()
    return 0


def _measure(jobs: Mapping[str, Job], plans: Mapping[str, Plan]) -> tuple[list[Corpus], dict[str, Work]]:
    """Reconstructs what is left of each corpus, in one Ray session, and reads all scores."""
    corpora: list[Corpus] = []
    works: dict[str, Work] = {}
    quiet = Tracker("off", experiment="", home="")
    with ExitStack() as stack:
        if any(len(shards.committed(plan)) < len(plan.shard_rows) for plan in plans.values()):
            stack.enter_context(ray_for(next(iter(jobs.values())).config.pool))
        for number, (name, job) in enumerate(jobs.items(), start=1):
            log.info("corpus %d/%d: %s", number, len(jobs), name)
            manifest, works[name] = make_words(job, plans[name], quiet)
            corpora.append(read_corpus(name, job.config.out, manifest))
    return corpora, works


def _publish(
    config: EvaluateTokenizerConfig,
    corpora: Sequence[Corpus],
    metrics: Mapping[str, Any],
    works: Mapping[str, Work],
    tracker: Tracker,
) -> None:
    outcome.write(config.out, corpora, metrics)
    outcome.track(tracker, corpora, metrics, works)
    if config.report_images:
        tokenizer = tokenizer_of_reports(config.tokenizer, config.pool)
        report.write_report(
            config.out,
            corpora,
            metrics,
            tokenizer=tokenizer,
            max_images=config.report_images,
            seed=config.seed,
        )
        track_report(config.out, tracker)
