"""Runs a cold start: a teacher model writes replies, if there is one, and replies become samples.

OUT/config.json                the resolved config
OUT/teacher/                   what a teacher model wrote: plan, shards (teacher.REPLY_ROW), manifest
OUT/plan.json, plan/           the replies, each with its sample
OUT/data/, rejects/, commits/  the samples with thoughts (schema.CHAT_ROW), and what became of other replies
OUT/_MANIFEST.json             written last; the corpus is one of chats
OUT/report/index.html          counts, reasons, samples

Replies become samples in this process, at thousands per second. Running the job again resumes it.
"""

import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pipelines import job as runs
from pipelines import provenance, schema, shards, storage
from pipelines.chats.corpus import load_chat_corpus
from pipelines.cold_start.config import ColdStartConfig
from pipelines.cold_start.pool import teach
from pipelines.cold_start.prepare import Job, dry_run, prepare, teacher_plan, thoughts_plan
from pipelines.cold_start.stage import WriteThoughts
from pipelines.reports import chats as report
from pipelines.shards import Plan
from pipelines.tracking import Tracker
from samtok.errors import DataError

log = logging.getLogger(__name__)

REPORT = "report/index.html"


def cold_start(config: ColdStartConfig) -> int:
    """Runs the job; returns its exit code."""
    return runs.guard(lambda: _cold_start(config))


def _cold_start(config: ColdStartConfig) -> int:
    started = time.monotonic()
    job = prepare(config)
    config = job.config
    if config.dry_run:
        return dry_run(job)
    tracker = Tracker(config.tracking, experiment="cold_start", home=config.out)
    tracker.params(json.loads(provenance.config_json(config)))
    tracker.tags(provenance.versions())
    try:
        manifest = write_thoughts(job, ask_teacher(job))
        publish(config, manifest, tracker)
        print_table(config, manifest, time.monotonic() - started, tracker)
        check_rejects(config, manifest)
    except BaseException:
        tracker.end("FAILED")
        raise
    tracker.end()
    return 0


def ask_teacher(job: Job) -> dict[str, Any] | None:
    """Has the teacher model write what it has not written yet; returns the manifest, None without a model."""
    if job.model_sha256 is None:
        return None
    plan = teacher_plan(job)
    _keep_config(job.config)
    todo = _left(plan)
    samples, started = 0, time.monotonic()
    for number, done in enumerate(teach(job, plan, todo) if todo else (), start=1):
        shards.commit(
            plan,
            done["shard"],
            rows=done["rows"],
            rejects=schema.table([], schema.REJECT_ROW),
            summary={"counts": done["counts"], "reject_reasons": {}},
        )
        samples += done["counts"]["samples_in"]
        rate = samples / max(time.monotonic() - started, 1e-9)
        log.info("teacher: shard %d/%d  %d samples  %.2f samples/s", number, len(todo), samples, rate)
    return shards.finish(plan)


def write_thoughts(job: Job, teacher: Mapping[str, Any] | None) -> dict[str, Any]:
    """Makes the corpus of what the teacher wrote; returns its manifest."""
    plan = thoughts_plan(job, teacher)
    _keep_config(job.config)
    write = WriteThoughts(plan, job.source, job.rules)
    for shard in _left(plan):
        write(shard)
    return shards.finish(plan)


def _keep_config(config: ColdStartConfig) -> None:
    """Called once a plan is there, so that refused settings do not replace those of an earlier run."""
    storage.write_bytes(storage.join(config.out, "config.json"), provenance.config_json(config).encode())


def _left(plan: Plan) -> list[int]:
    done = shards.committed(plan)
    todo = [shard for shard in range(len(plan.shard_rows)) if shard not in done]
    log.info("%s: %d shards, %d committed", plan.out, len(plan.shard_rows), len(done))
    return todo


def publish(config: ColdStartConfig, manifest: Mapping[str, Any], tracker: Tracker) -> None:
    """Writes the report beside the shards; sends it, counts and lineage to MLflow."""
    tracker.tags({"fingerprint": shards.digest(manifest["fingerprint"])})
    tracker.metrics({f"counts/{name}": count for name, count in manifest["totals"].items()})
    tracker.text(json.dumps(manifest["fingerprint"], indent=2), "lineage/fingerprint.json")
    if config.report_samples and manifest["totals"]["samples_out"]:
        corpus = load_chat_corpus(config.out)
        page = report.make_page(corpus, max_samples=config.report_samples, seed=config.seed)
        storage.write_bytes(storage.join(config.out, REPORT), page.encode())
        tracker.text(page, REPORT)


def reasons_of(manifest: Mapping[str, Any]) -> Counter[str]:
    """Counts the rejected replies by reason."""
    reasons: Counter[str] = Counter()
    for record in manifest["shards"]:
        for reason, count in record["reject_reasons"].items():
            reasons[reason.partition("/")[2]] += count
    return reasons


def print_table(
    config: ColdStartConfig, manifest: Mapping[str, Any], seconds: float, tracker: Tracker
) -> None:
    """Prints what went in and out, and where to look."""
    totals = manifest["totals"]
    lost = ", ".join(f"{count} {reason}" for reason, count in reasons_of(manifest).most_common())
    lines = [
        f"replies   {totals['items_in']}",
        f"samples   {totals['samples_out']} in {seconds:.0f} s",
        f"rejected  {totals['items_rejected']}{f': {lost}' if lost else ''}",
        *report.table_lines(totals),
        f"chats     {storage.join(config.out, shards.MANIFEST)}",
    ]
    if config.report_samples and totals["samples_out"]:
        lines.append(f"report    {storage.join(config.out, REPORT)}")
    sys.stdout.write("\n".join([*lines, f"mlflow    {tracker.link}"]) + "\n")


def check_rejects(config: ColdStartConfig, manifest: Mapping[str, Any]) -> None:
    """Compares the share of unusable replies with what is allowed.

    Raises:
        DataError: If it is larger, or nothing is left. The corpus is complete all the same.
    """
    totals = manifest["totals"]
    if not totals["samples_out"]:
        raise DataError(
            f"none of {totals['items_in']} replies could be used: "
            f"{', '.join(reasons_of(manifest)) or 'there are none'}. The reject table of {config.out} has "
            "each one's message."
        )
    rate = totals["items_rejected"] / totals["items_in"]
    if rate > config.max_reject_rate:
        raise DataError(
            f"{rate:.1%} of the replies are unusable; --max-reject-rate allows {config.max_reject_rate:.1%}. "
            f"The reject table of {config.out} has the reasons."
        )
