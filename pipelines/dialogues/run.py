"""Runs a composition: shards that have no commit record, in this process or in Ray tasks.

A shard is composed and committed where it runs, so nothing but commit records travels. Running the job again
resumes it.
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipelines import job as runs
from pipelines import provenance, shards, storage
from pipelines.chats.corpus import load_chat_corpus, rows_of_shard
from pipelines.cluster import session
from pipelines.dialogues.config import ComposeDialoguesConfig
from pipelines.dialogues.exchange import lines_of
from pipelines.dialogues.prepare import dry_run, plan_of, prepare
from pipelines.reports import chats as report
from pipelines.shards import Plan
from pipelines.tracking import Tracker
from samtok.errors import ConfigError, DataError

log = logging.getLogger(__name__)

MAX_RETRIES = 8
"""Times a shard is repeated after its worker died."""

REPORT = "report/index.html"

ComposeOne = Callable[[int], dict[str, Any]]


def compose_dialogues(config: ComposeDialoguesConfig) -> int:
    """Runs the job; returns its exit code."""
    return runs.guard(lambda: _compose(config))


def _compose(config: ComposeDialoguesConfig) -> int:
    started = time.monotonic()
    job = prepare(config)
    config = job.config
    if config.dry_run:
        return dry_run(job)
    plan = plan_of(job)
    tracker = Tracker(config.tracking, experiment="compose_dialogues", home=config.out)
    tracker.params(json.loads(provenance.config_json(config)))
    tracker.tags({"fingerprint": shards.digest(job.fingerprint), **provenance.versions()})
    try:
        manifest = make_chats(config, plan, job.worker(plan))
        export(config)
        publish(config, manifest, tracker)
        print_table(config, manifest, time.monotonic() - started, tracker)
        check_rejects(config, manifest["totals"])
    except BaseException:
        tracker.end("FAILED")
        raise
    tracker.end()
    return 0


def make_chats(config: ComposeDialoguesConfig, plan: Plan, one: ComposeOne) -> dict[str, Any]:
    """Does what is left of a corpus and returns its manifest.

    Args:
        config: Says where it runs.
        plan: Of the corpus.
        one: Composes and commits one shard; must be picklable if there are workers.
    """
    storage.write_bytes(storage.join(plan.out, "config.json"), provenance.config_json(config).encode())
    records = shards.committed(plan)
    todo = [shard for shard in range(len(plan.shard_rows)) if shard not in records]
    log.info("%d shards, %d committed", len(plan.shard_rows), len(records))
    made = _in_ray(one, todo, config) if config.workers and todo else map(one, todo)
    samples, started = 0, time.monotonic()
    for number, record in enumerate(made, start=1):
        samples += record["counts"]["samples_out"]
        rate = samples / max(time.monotonic() - started, 1e-9)
        log.info("shard %d/%d  %d samples  %.0f samples/s", number, len(todo), samples, rate)
    return shards.finish(plan)


def _in_ray(one: ComposeOne, todo: Sequence[int], config: ComposeDialoguesConfig) -> Iterator[dict[str, Any]]:
    """Composes shards in Ray tasks, as many at a time as there are workers; yields records as they come."""
    with session(at_least_cpus=config.workers) as cluster:
        import ray

        cluster.require(cpus=config.workers)
        _check_reachable(config, cluster.started_here)
        task = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(_call)
        shared, waiting, left = ray.put(one), [], iter(todo)
        while True:
            while len(waiting) < config.workers and (shard := next(left, None)) is not None:
                waiting.append(task.remote(shared, shard))
            if not waiting:
                return
            ready, waiting = ray.wait(waiting, num_returns=1)
            yield ray.get(ready[0])


def _call(one: ComposeOne, shard: int) -> dict[str, Any]:
    return one(shard)


def _check_reachable(config: ComposeDialoguesConfig, started_here: bool) -> None:
    local = [uri for uri in (config.out, *config.words) if not storage.is_remote(uri)]
    if local and not started_here:
        log.warning(
            "Workers of this cluster read and write %s; it must be the same folder on every node. If it is "
            "not, use s3:// or --workers 0.",
            ", ".join(local),
        )


def export(config: ComposeDialoguesConfig) -> None:
    """Writes the corpus in another project's format, a file per shard, if that is asked for."""
    if config.export is None:
        return
    corpus = load_chat_corpus(config.out)
    for number, shard in enumerate(corpus.shards):
        name = f"export/{config.export}/shard-{number:05d}.jsonl"
        data = b"".join(lines_of(rows_of_shard(shard), config.export))
        storage.write_bytes(storage.join(config.out, name), data)


def publish(config: ComposeDialoguesConfig, manifest: dict[str, Any], tracker: Tracker) -> None:
    """Writes the report beside the shards; sends it, counts and lineage to MLflow."""
    tracker.metrics({f"counts/{name}": count for name, count in manifest["totals"].items()})
    tracker.text(json.dumps(manifest["fingerprint"], indent=2), "lineage/fingerprint.json")
    if config.report_samples and manifest["totals"]["samples_out"]:
        corpus = load_chat_corpus(config.out)
        page = report.make_page(corpus, max_samples=config.report_samples, seed=config.seed)
        storage.write_bytes(storage.join(config.out, REPORT), page.encode())
        tracker.text(page, REPORT)


def check_rejects(config: ComposeDialoguesConfig, totals: dict[str, int]) -> None:
    """Compares the share of unusable items with what is allowed.

    Raises:
        ConfigError: If nothing could be asked at all: the tasks do not fit the annotations.
        DataError: If too much is unusable. The corpus is complete all the same.
    """
    if not totals["items_in"]:
        raise ConfigError(
            f"--tasks {config.tasks} found nothing to ask about {totals['rows_in']} images with "
            f"{totals['annotations_in']} annotations. Name tasks that these corpora have annotations for; "
            "instances needs only labels of masks."
        )
    rate = totals["items_rejected"] / totals["items_in"]
    if rate > config.max_reject_rate:
        raise DataError(
            f"{rate:.1%} of what could be asked is unusable; --max-reject-rate allows "
            f"{config.max_reject_rate:.1%}. The reject table of {config.out} has the reasons."
        )


def print_table(
    config: ComposeDialoguesConfig, manifest: dict[str, Any], seconds: float, tracker: Tracker
) -> None:
    """Prints what went in and out, per task, and where to look."""
    totals = manifest["totals"]
    lines = [
        f"images       {totals['rows_in']}, {totals['rows_out']} of them with chats",
        f"annotations  {totals['annotations_in']}, {totals['annotations_unused']} of them for other tasks",
        f"samples      {totals['samples_out']} in {seconds:.0f} s",
    ]
    lines += report.table_lines(totals)
    lines.append(f"chats        {storage.join(config.out, shards.MANIFEST)}")
    if config.report_samples and totals["samples_out"]:
        lines.append(f"report       {storage.join(config.out, REPORT)}")
    lines.append(f"mlflow       {tracker.link}")
    sys.stdout.write("\n".join(lines) + "\n")
