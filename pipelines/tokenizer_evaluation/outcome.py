"""What came out of an evaluation: files, what MLflow shows, the table of numbers."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipelines import provenance, shards, storage
from pipelines.shard_job import Work
from pipelines.shards import Plan
from pipelines.tokenization.outcome import tokenizer_of_reports
from pipelines.tokenization.prepare import Tokenization
from pipelines.tokenizer_evaluation import report
from pipelines.tokenizer_evaluation.config import EvaluateTokenizerConfig
from pipelines.tokenizer_evaluation.prepare import LINEAGE, MASKS, METRICS
from pipelines.tokenizer_evaluation.summary import Corpus, metrics_of
from pipelines.tracking import Tracker

ROW_GROUP_ROWS = 65_536
"""Masks per row group of the table of masks."""

_TOKENIZER = ("tokenizer", "weights_sha256", "num_codes", "num_levels", "threshold", "box_prompt", "dtype")
"""What the fingerprint of a tokenization says of the tokenizer and its use."""


def measured_with(corpus: Corpus) -> dict[str, Any]:
    """Returns which tokenizer was measured, and how."""
    return {name: corpus.manifest["fingerprint"][name] for name in _TOKENIZER}


def lineage_of(corpora: Sequence[Corpus]) -> dict[str, Any]:
    """Returns all that decided the numbers: tokenizer, every corpus's fingerprint, versions of software."""
    prints = {corpus.name: dict(corpus.manifest["fingerprint"]) for corpus in corpora}
    return {"tokenizer": measured_with(corpora[0]), "corpora": prints, "versions": provenance.versions()}


def tags_of(tokenizations: Mapping[str, Tokenization], plans: Mapping[str, Plan]) -> dict[str, str]:
    """Returns what an MLflow run is found by: weights, fingerprint of all corpora."""
    prints = {name: dict(plan.fingerprint) for name, plan in plans.items()}
    told = (one.tags(plans[name]) for name, one in tokenizations.items())
    tags = {name: value for tags in told for name, value in tags.items()}
    weights = next(iter(prints.values()))["weights_sha256"]
    return {**tags, "weights_sha256": weights, "fingerprint": shards.digest(prints)}


def publish(
    config: EvaluateTokenizerConfig,
    checked: Mapping[str, Tokenization],
    corpora: Sequence[Corpus],
    works: Mapping[str, Work],
    tracker: Tracker,
) -> dict[str, Any]:
    """Writes numbers and report, tells MLflow, and returns the metrics."""
    metrics = {"measured_with": measured_with(corpora[0]), **metrics_of(corpora)}
    write(config.out, corpora, metrics)
    done = {name: work.rate("masks_out") for name, work in works.items() if work.shards}
    rates = {f"throughput/{name}/masks_per_s": rate for name, rate in done.items()}
    tracker.metrics(flat_metrics(metrics) | rates)
    tracker.text(json.dumps(lineage_of(corpora), indent=2), "lineage/lineage.json")
    if config.report_images:
        report.write_report(
            config.out,
            corpora,
            metrics,
            tokenizer=tokenizer_of_reports(config),
            max_images=config.report_images,
            seed=config.seed,
            caveats=[one.caveat for one in checked.values()],
        )
        tracker.folder(storage.join(config.out, "report"), "report")
    return metrics


def write(out: str, corpora: Sequence[Corpus], metrics: Mapping[str, Any]) -> None:
    """Writes the table of masks, the lineage, and then ``metrics.json``; none of them holds a time."""
    masks = pa.concat_tables([corpus.masks for corpus in corpora])
    data = shards.parquet_bytes(masks, row_group_rows=ROW_GROUP_ROWS)
    storage.write_bytes(storage.join(out, MASKS), data)
    storage.write_bytes(storage.join(out, LINEAGE), _json(lineage_of(corpora)))
    storage.write_bytes(storage.join(out, METRICS), _json(metrics))


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def flat_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers for tracking: ``evaluation/r_acc``, ``evaluation/area/small/r_acc``,
    ``evaluation/codes/level0_used``, ``evaluation/counts/masks_in``, ``evaluation/dataset/NAME/...``.

    What there is no number for is left out.
    """
    flat = _flat_section(metrics["overall"], "evaluation")
    for name, section in metrics["datasets"].items():
        flat |= _flat_section(section, f"evaluation/dataset/{name}")
    return flat


def _flat_section(section: Mapping[str, Any], prefix: str) -> dict[str, float]:
    flat = _flat_scores(section, prefix)
    for name, bucket in section["by_area"].items():
        flat |= _flat_scores(bucket, f"{prefix}/area/{name}")
    for number, level in enumerate(section["codes"]["levels"]):
        flat |= {f"{prefix}/codes/level{number}_{name}": value for name, value in level.items()}
    flat[f"{prefix}/codes/distinct_tuples"] = section["codes"]["distinct_tuples"]
    return flat | {f"{prefix}/counts/{name}": value for name, value in section["counts"].items()}


def _flat_scores(found: Mapping[str, Any], prefix: str) -> dict[str, float]:
    numbers = {**found, **{f"iou_{name}": value for name, value in (found["iou_quantiles"] or {}).items()}}
    return {f"{prefix}/{name}": value for name, value in numbers.items() if isinstance(value, int | float)}
