"""What came out of an evaluation: files, MLflow, the closing table."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipelines import provenance, shards, storage
from pipelines.tokenization.outcome import Work
from pipelines.tokenization.prepare import Job
from pipelines.tokenizer_evaluation.config import EvaluateTokenizerConfig
from pipelines.tokenizer_evaluation.prepare import LINEAGE, MASKS, METRICS
from pipelines.tokenizer_evaluation.summary import Corpus
from pipelines.tracking import Tracker
from samtok.metrics import regions

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


def tags_of(jobs: Mapping[str, Job]) -> dict[str, str]:
    """Returns what an MLflow run is found by: weights, fingerprint of all corpora, versions."""
    prints = {name: dict(job.fingerprint) for name, job in jobs.items()}
    weights = next(iter(prints.values()))["weights_sha256"]
    return {"weights_sha256": weights, "fingerprint": shards.digest(prints), **provenance.versions()}


def write(out: str, corpora: Sequence[Corpus], metrics: Mapping[str, Any]) -> None:
    """Writes the table of masks, the lineage, and then ``metrics.json``; none of them holds a time."""
    masks = pa.concat_tables([corpus.masks for corpus in corpora])
    data = shards.parquet_bytes(masks, row_group_rows=ROW_GROUP_ROWS)
    storage.write_bytes(storage.join(out, MASKS), data)
    storage.write_bytes(storage.join(out, LINEAGE), _json(lineage_of(corpora)))
    storage.write_bytes(storage.join(out, METRICS), _json(metrics))


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def track(
    tracker: Tracker, corpora: Sequence[Corpus], metrics: Mapping[str, Any], works: Mapping[str, Work]
) -> None:
    """Sends numbers, rates of what this call did, and lineage to MLflow."""
    rates = {f"throughput/{name}/masks_per_s": work.masks_per_s for name, work in works.items() if work.masks}
    tracker.metrics(flat_metrics(metrics) | rates)
    tracker.text(json.dumps(lineage_of(corpora), indent=2), "lineage/lineage.json")


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


def table_of(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Returns the closing table as texts: a head, a line per dataset and, of several, one of all together."""
    buckets = [name for name, _ in regions.AREA_BUCKETS]
    head = ["dataset", "masks", "r-Acc", "boundary IoU", "IoU < 0.5", *buckets]
    sections = dict(metrics["datasets"])
    if len(sections) > 1:
        sections["all"] = metrics["overall"]
    return [head, *([name, *_line(section)] for name, section in sections.items())]


def _line(section: Mapping[str, Any]) -> list[str]:
    return [
        f"{section['masks']:,}",
        number(section["r_acc"]),
        number(section["boundary_iou"]),
        f"{section['share_below_half']:.1%}",
        *(number(bucket["r_acc"]) for bucket in section["by_area"].values()),
    ]


def number(value: float | None) -> str:
    """Returns a score as text; none is ``-``."""
    return "-" if value is None else f"{value:.4f}"


def print_table(
    config: EvaluateTokenizerConfig,
    metrics: Mapping[str, Any],
    works: Mapping[str, Work],
    seconds: float,
    tracker: Tracker,
) -> None:
    """Prints the numbers of each dataset and overall, what went in and out, and where to look."""
    counts, codes = metrics["overall"]["counts"], metrics["overall"]["codes"]
    used = " / ".join(str(level["used"]) for level in codes["levels"])
    masks, busy = sum(work.masks for work in works.values()), sum(work.seconds for work in works.values())
    lines = [
        *aligned(table_of(metrics)),
        "",
        f"images   in {counts['images_in']}  rejected {counts['images_rejected']}",
        f"masks    in {counts['masks_in']}  measured {counts['masks_measured']}  "
        f"rejected {counts['masks_rejected']}  filtered {counts['masks_filtered']}",
        f"codes    {used} of {codes['num_codes']} used by level, {codes['distinct_tuples']} different tuples",
        f"time     {seconds:.0f} s in all, {busy:.0f} s of it at {masks / busy if busy else 0:.1f} masks/s",
        f"numbers  {storage.join(config.out, METRICS)}",
    ]
    if config.report_images:
        lines.append(f"report   {storage.join(config.out, 'report/index.html')}")
    lines.append(f"mlflow   {tracker.link}")
    sys.stdout.write("\n".join(lines) + "\n")


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a table; the first column is set to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]
