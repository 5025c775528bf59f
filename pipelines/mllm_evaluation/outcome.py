"""What came out of an evaluation: files, the report, what MLflow shows."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines import provenance, shards, storage
from pipelines.judging.judge import Judge
from pipelines.judging.open_judge import open_judge, read_wording
from pipelines.mllm_evaluation import report
from pipelines.mllm_evaluation.answers import Row, Scoring, read_answers
from pipelines.mllm_evaluation.benchmarks import BENCHMARKS
from pipelines.mllm_evaluation.prepare import METRICS, Evaluation, questions_digest
from pipelines.mllm_evaluation.scores import metrics_of
from pipelines.shard_job import Work
from pipelines.tracking import Tracker

LINEAGE, REPORT, JUDGEMENTS = "lineage.json", "report", "judgements.jsonl"


def publish(job: Evaluation, manifest: Mapping[str, Any], done: Work, tracker: Tracker) -> dict[str, Any]:
    """Scores the answers; writes lineage, numbers and report, and sends them to MLflow.

    Returns:
        The numbers, as ``metrics.json`` has them; no file holds a time.
    """
    config = job.config
    rows = read_answers(config.out, manifest)
    scoring, judge = judged(job, rows)
    numbers = metrics_of(rows, benchmark=config.benchmark, readings=job.readings, scoring=scoring)
    metrics = {"measured_with": measured_with(job), **numbers}
    if judge is not None:
        metrics["judge"] = judge.summary()
    lineage = lineage_of(job)
    for name, value in ((LINEAGE, lineage), (METRICS, metrics)):
        data = (json.dumps(value, indent=1) + "\n").encode()
        storage.write_bytes(storage.join(config.out, name), data)
    rate = {"throughput/questions_per_s": done.rate("samples_in")} if done.shards else {}
    tracker.metrics(flat_metrics(metrics) | rate)
    tracker.text(json.dumps(lineage, indent=2), f"lineage/{LINEAGE}")
    if config.report_pictures:
        report.write_report(job, manifest, rows, metrics)
        tracker.folder(storage.join(config.out, REPORT), REPORT)
    if judge is not None:
        judge.check()
    return metrics


def judged(job: Evaluation, rows: Sequence[Row]) -> tuple[Scoring, Judge | None]:
    """Asks the judge of the config, if the benchmark has one; returns what the answers are scored by, and who
    judged.

    Raises:
        ClusterError: The server does not answer.
        ConfigError, DataError: As ``open_judge`` and ``Judge.ask``.
    """
    benchmark, config = BENCHMARKS[job.config.benchmark], job.config
    if benchmark.asks is None or benchmark.wording is None:
        return job.scoring, None
    scoring = dataclasses.replace(job.scoring, wording=read_wording(config.judge, benchmark.wording))
    record = storage.join(config.out, JUDGEMENTS)
    judge = open_judge(config.judge, record=record, device=config.worker.device)
    if judge is None:
        return scoring, None
    with judge:
        replies = judge.ask(benchmark.asks(rows, scoring))
    return dataclasses.replace(scoring, replies=replies), judge


def measured_with(job: Evaluation) -> dict[str, Any]:
    """Returns all that decided the numbers besides code: the fingerprint, and a hash of the questions."""
    beside = {"gcg_similarity": job.config.gcg_similarity} if job.config.benchmark == "gcg" else {}
    return {**job.fingerprint, **beside, "questions": questions_digest(job.fingerprint)}


def tags_of(job: Evaluation) -> dict[str, str]:
    """Returns what an MLflow run is found by."""
    found = {
        name: job.fingerprint[name] for name in ("benchmark", "model_sha256", "tokenizer_sha256", "chat")
    }
    return {**found, "fingerprint": shards.digest(dict(job.fingerprint))}


def lineage_of(job: Evaluation) -> dict[str, Any]:
    """Returns where everything came from: places, hashes, the chats' own fingerprint, versions."""
    config = job.config
    return {
        "model": {"uri": config.model, "sha256": job.fingerprint["model_sha256"]},
        "tokenizer": {"uri": config.tokenizer, "weights_sha256": job.fingerprint["tokenizer_sha256"]},
        "chat": {
            "uri": config.chats,
            "digest": job.fingerprint["chat"],
            "fingerprint": dict(job.corpus.manifest["fingerprint"]),
        },
        "fingerprint": dict(job.fingerprint),
        "versions": provenance.versions(),
    }


def flat_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers for tracking: ``evaluation/strict/gres/giou``, ``evaluation/counts/skipped``,
    ``evaluation/strict/tag/NAME/gres/giou``, ``baseline/strict/gres/giou``.

    What there is no number for is left out.
    """
    flat = {f"evaluation/counts/{name}": float(value) for name, value in metrics["counts"].items()}
    for mode, found in metrics["modes"].items():
        flat |= _flat(found["model"], f"evaluation/{mode}")
        flat |= _flat({k: v for k, v in found["no_target"].items() if k != "by_tag"}, f"baseline/{mode}")
    return flat


def _flat(section: Mapping[str, Any], prefix: str) -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in section.items():
        if name == "by_tag":
            for tag, found in value.items():
                flat |= _flat(found, f"{prefix}/tag/{_mlflow_name(tag)}")
        elif isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}/{name}")
        elif isinstance(value, int | float):
            flat[f"{prefix}/{name}"] = float(value)
    return flat


def _mlflow_name(tag: str) -> str:
    """Tags come from datasets; MLflow takes letters, digits and a few signs."""
    return "".join(sign if sign.isalnum() or sign in "_-. " else "_" for sign in tag)
