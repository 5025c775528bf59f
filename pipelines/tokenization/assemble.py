"""Collects the chunks of each shard as they come back in any order, and says what a whole shard is."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines import shards
from pipelines.tokenization.chunks import read_ipc
from pipelines.tokenization.read import COUNTS
from samtok.metrics import codebook

IOU_BINS = 20
"""Equal bins over [0, 1] in a commit record's IoU histogram."""


@dataclass(frozen=True)
class Shard:
    """All rows and rejects of a shard, in the order of the plan."""

    number: int
    rows: pa.Table
    rejects: pa.Table
    counts: Mapping[str, int]


@dataclass
class Assembler:
    """Holds the chunks of shards in flight; a shard leaves as soon as it is whole."""

    _parts: dict[int, dict[int, dict[str, Any]]] = field(default_factory=dict)
    _left: set[int] = field(default_factory=set)

    def add(self, chunk: Mapping[str, Any]) -> Shard | None:
        """Takes one finished chunk; returns its shard if that is now whole.

        A chunk that comes twice (its actor died after the answer was on its way) changes nothing.
        """
        number = chunk["shard"]
        if number in self._left:
            return None
        parts = self._parts.setdefault(number, {})
        parts[chunk["index"]] = {name: chunk[name] for name in ("rows", "rejects", "counts")}
        if len(parts) < chunk["num_chunks"]:
            return None
        self._left.add(number)
        ordered = [parts[index] for index in sorted(self._parts.pop(number))]
        counts: Counter[str] = Counter()
        for part in ordered:
            counts.update(json.loads(part["counts"]))
        return Shard(
            number,
            pa.concat_tables([read_ipc(part["rows"]) for part in ordered]).combine_chunks(),
            pa.concat_tables([read_ipc(part["rejects"]) for part in ordered]).combine_chunks(),
            {name: counts[name] for name in COUNTS},
        )

    @property
    def in_flight(self) -> int:
        """Shards of which some chunks are here and others not."""
        return len(self._parts)


def commit_shard(plan: shards.Plan, shard: Shard) -> dict[str, Any]:
    """Commits a whole shard with what its record says; returns the record that holds."""
    size = {name: plan.fingerprint[name] for name in ("num_codes", "num_levels")}
    summary = summarize(shard.rows, shard.rejects, shard.counts, **size)
    if plan.fingerprint.get("reader") == "mixture":
        summary["datasets"] = by_dataset(shard.rows, shard.rejects)
    return shards.commit(plan, shard.number, rows=shard.rows, rejects=shard.rejects, summary=summary)


def summarize(
    rows: pa.Table, rejects: pa.Table, counts: Mapping[str, int], *, num_codes: int, num_levels: int
) -> dict[str, Any]:
    """Returns what a commit record says about its shard besides its files.

    ``code_histogram`` has, per level, the pairs [code, count] of the codes that occur; ``iou_histogram``
    counts reconstruction IoUs in ``IOU_BINS`` equal bins over [0, 1]; ``flags`` counts masks with words by
    their flags, and is there if one has any.
    """
    masks = rows["masks"].combine_chunks().flatten()
    codes = masks.field("codes").flatten().to_numpy(zero_copy_only=False).reshape(-1, num_levels)
    iou = masks.field("iou").drop_null().to_numpy(zero_copy_only=False).astype(np.float64)
    histogram = codebook.histogram(codes.astype(np.int64), num_codes)
    reasons = Counter(f"{r['stage']}/{r['reason']}" for r in rejects.select(["stage", "reason"]).to_pylist())
    flags = Counter(masks.field("flags").flatten().to_pylist())
    return {
        "counts": dict(counts),
        "code_histogram": [[[int(c), int(row[c])] for c in np.flatnonzero(row)] for row in histogram],
        "iou_histogram": np.histogram(iou, bins=IOU_BINS, range=(0, 1))[0].tolist(),
        "iou_sum": float(iou.sum()),
        "iou_count": len(iou),
        "reject_reasons": dict(sorted(reasons.items())),
        **({"flags": dict(sorted(flags.items()))} if flags else {}),
    }


def by_dataset(rows: pa.Table, rejects: pa.Table) -> dict[str, dict[str, float]]:
    """Returns what became of each dataset of a mixture in a shard: ``rows``, ``masks``, ``masks_rejected``,
    ``masks_filtered``, ``iou_sum`` and ``iou_count``."""
    found: dict[str, dict[str, float]] = {}

    def add(dataset: str, **numbers: float) -> None:
        counts = found.setdefault(dataset, dict.fromkeys(shards.OF_DATASET, 0))
        for name, number in numbers.items():
            counts[name] += number

    ious = rows["masks"].combine_chunks()
    for dataset, masks in zip(rows["dataset"].to_pylist(), ious, strict=True):
        known = [mask["iou"] for mask in masks.as_py() if mask["iou"] is not None]
        add(dataset, rows=1, masks=len(masks), iou_sum=sum(known), iou_count=len(known))
    for entry in rejects.select(["dataset", "stage", "num_masks"]).to_pylist():
        lost = "masks_filtered" if entry["stage"] == "filter" else "masks_rejected"
        add(entry["dataset"], **{lost: entry["num_masks"]})
    return dict(sorted(found.items()))
