"""What there is of a corpus of words: numbers, rejects and schema.

A finished corpus is read through its manifest, an unfinished one through its plan and commit records. Sums
come from the records.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import rejects, schema, shards, storage
from samtok.errors import DataError
from samtok.metrics import codebook

FOLDER = "report"
GPUS = "gpus.json"
"""Kinds of GPU that made the words, each with its PyTorch; no file for CPUs."""


@dataclass(frozen=True)
class Corpus:
    """What is there of a corpus.

    Attributes:
        manifest: As ``_MANIFEST.json`` holds it; of an unfinished corpus, what it would hold now.
        missing: Shards without a commit record.
        num_planned: Images of the plan, those that could not be listed included; None where there is no plan.
        gpus: Kinds of GPU that made the words.
    """

    out: str
    manifest: Mapping[str, Any]
    missing: tuple[int, ...]
    num_planned: int | None
    gpus: tuple[str, ...] = ()

    @property
    def records(self) -> list[Mapping[str, Any]]:
        """Commit records, in the order of the shards."""
        return self.manifest["shards"]

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """All that decided the content of the corpus."""
        return self.manifest["fingerprint"]


def load_corpus(out: str) -> Corpus:
    """Reads what is known about a corpus, finished or not.

    Raises:
        DataError: If there is neither a manifest nor a plan.
        StorageError: If it cannot be read.
    """
    plan = shards.load_plan(out)
    if plan is not None and (kind := shards.kind_of(plan.fingerprint)) != "words":
        raise DataError(f"{out} is a corpus of {kind}, not of words; its pictures are in report/index.html.")
    where = storage.join(out, GPUS)
    gpus = tuple(storage.read_json(where)) if storage.exists(where) else ()
    if storage.exists(storage.join(out, shards.MANIFEST)):
        planned = None if plan is None else _num_planned(plan)
        return Corpus(out, shards.load_manifest(out), (), planned, gpus)
    if plan is None:
        raise DataError(
            f"{out} is no corpus of words: it has neither {shards.MANIFEST} nor {shards.PLAN}. "
            "Expected the --out folder of jobs/tokenize_corpus.py."
        )
    manifest = shards.manifest_of(plan)
    records = {record["shard"] for record in manifest["shards"]}
    missing = tuple(shard for shard in range(len(plan.shard_rows)) if shard not in records)
    return Corpus(out, manifest, missing, _num_planned(plan), gpus)


def _num_planned(plan: shards.Plan) -> int:
    return plan.num_inputs + (plan.rejects or {}).get("rows", 0)


def summary(manifest: Mapping[str, Any]) -> dict[str, float]:
    """Returns the flat metrics of a corpus, for tracking.

    ``counts/*`` (rows and masks), ``corpus/shards`` and ``corpus/size_bytes``, per level
    ``codes/level0_used``, ``_dead`` and ``_perplexity``, ``flags/<flag>`` (masks with words that have it),
    ``rejects/<stage>/<reason>`` (entries), and if reconstructions were compared ``iou/count``, ``iou/mean``,
    ``iou/median`` (interpolated in a histogram) and ``iou/share_below_half``.
    """
    records = manifest["shards"]
    metrics: dict[str, float] = {f"counts/{name}": count for name, count in manifest["totals"].items()}
    metrics["corpus/shards"] = len(records)
    metrics["corpus/size_bytes"] = sum(record["data"]["bytes"] for record in records)
    for level, use in enumerate(codebook.usage(code_counts(manifest))):
        metrics |= {f"codes/level{level}_{name}": value for name, value in dataclasses.asdict(use).items()}
    metrics |= {f"flags/{flag}": count for flag, count in manifest.get("flags", {}).items()}
    metrics |= {f"rejects/{reason}": count for reason, count in rejects.counts_of(records).items()}
    if manifest["plan_rejects"]:
        metrics["rejects/plan"] = manifest["plan_rejects"]["entries"]
    return metrics | _iou_metrics(manifest["iou"])


def _iou_metrics(iou: Mapping[str, Any]) -> dict[str, float]:
    count, bins = iou["count"], iou["histogram"]
    if not count:
        return {}
    edges = np.linspace(0, 1, len(bins) + 1)
    below = np.concatenate([[0], np.cumsum(bins)])
    first = int(np.searchsorted(below, count / 2, side="left")) - 1  # where half of the masks is reached
    share = (count / 2 - below[first]) / bins[first]
    return {
        "iou/count": count,
        "iou/mean": iou["sum"] / count,
        "iou/median": float(edges[first] + share * (edges[first + 1] - edges[first])),
        "iou/share_below_half": float(below[len(bins) // 2] / count),
    }


def code_counts(manifest: Mapping[str, Any]) -> np.ndarray:
    """Returns how often each code occurs in the corpus: int64 counts of level x num_codes."""
    return np.array(manifest["code_histogram"], np.int64)


def row_schema(corpus: Corpus) -> pa.Schema:
    """Returns the schema of the shards as written; what would be written if there is none yet."""
    if not corpus.records:
        return schema.CODE_ROW
    with storage.open_input(storage.join(corpus.out, corpus.records[0]["data"]["file"])) as stream:
        return pq.ParquetFile(stream).schema_arrow
