"""From the code rows of tokenized corpora to the numbers of an evaluation.

r-Acc is the mean IoU of masks with their reconstructions, at the image's size and over masks, not images
(paper, section D). Everything follows from the committed shards alone, in their order, so a run that was
killed and repeated gives the same bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import schema, storage
from pipelines.reports import html
from samtok.errors import DataError
from samtok.metrics import codebook, regions

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95)
_OF_MASKS = ("mask_id", "area_px", "iou", "boundary_iou", "codes")
_COLUMNS = ["dataset", "split", "image_id", *(f"masks.list.element.{name}" for name in _OF_MASKS)]


@dataclass(frozen=True)
class Corpus:
    """A corpus whose masks were all reconstructed."""

    name: str  # of the dataset
    out: str  # folder of its code rows
    manifest: Mapping[str, Any]  # of that folder
    masks: pa.Table  # ``schema.MASK_ROW``, in the order of the code rows
    rows: np.ndarray  # of each mask, the place of its code row in the corpus

    @property
    def counts(self) -> dict[str, int]:
        """Images and masks that went in, were measured, rejected and filtered."""
        totals = self.manifest["totals"]
        return {
            "images_in": totals["rows_in"],
            "images_rejected": totals["rows_rejected"],
            "masks_in": totals["masks_in"],
            "masks_measured": len(self.masks),
            "masks_rejected": totals["masks_rejected"],
            "masks_filtered": totals["masks_filtered"],
        }


def read_corpus(name: str, out: str, manifest: Mapping[str, Any]) -> Corpus:
    """Reads the scores of a finished corpus, without its masks.

    Raises:
        DataError: If it has no mask that could be used.
        RuntimeError: If masks are unaccounted for, which is a defect of ours.
    """
    parts, rows, start = [], [], 0
    for record in manifest["shards"]:
        with storage.open_input(storage.join(out, record["data"]["file"])) as stream:
            table = pq.ParquetFile(stream).read(columns=_COLUMNS)
        owners, part = _flat(table)
        parts.append(part)
        rows.append(owners + start)
        start += len(table)
    masks = pa.concat_tables([schema.table([], schema.MASK_ROW), *parts]).combine_chunks()
    corpus = Corpus(name, out, manifest, masks, np.concatenate([np.zeros(0, np.int64), *rows]))
    _check(corpus)
    return corpus


def _flat(table: pa.Table) -> tuple[np.ndarray, pa.Table]:
    """Returns the row of each mask, and a row for each mask."""
    lists = table["masks"].combine_chunks()
    owners = np.repeat(np.arange(len(table)), lists.value_lengths().to_numpy(zero_copy_only=False))
    flat = lists.flatten()
    columns = {name: table[name].combine_chunks().take(pa.array(owners)) for name in _COLUMNS[:3]}
    columns |= {name: flat.field(name) for name in _OF_MASKS}
    return owners, pa.table(columns).cast(schema.MASK_ROW)


def _check(corpus: Corpus) -> None:
    counts = corpus.counts
    found = counts["masks_measured"] + counts["masks_rejected"] + counts["masks_filtered"]
    if counts["masks_in"] != found:
        raise RuntimeError(
            f"{corpus.name}: {counts['masks_in']} masks went in, {found} are accounted for; this is a defect "
            "of samtok"
        )
    if not counts["masks_measured"]:
        raise DataError(
            f"{corpus.name} has no mask that can be measured: of {counts['masks_in']} in "
            f"{counts['images_in']} images, {counts['masks_rejected']} were rejected and "
            f"{counts['masks_filtered']} filtered. Are source and images of --corpora right, and mounted? "
            f"See `python -m pipelines.tools.browse {corpus.out}` for the reasons; then choose another --out."
        )


def metrics_of(corpora: Sequence[Corpus]) -> dict[str, Any]:
    """Returns all numbers of an evaluation, as ``metrics.json`` has them.

    ``overall`` pools the masks of all corpora; ``datasets`` has the same of each one by its name.
    """
    size = corpora[0].manifest["fingerprint"]["num_codes"]
    return {
        "overall": _section([corpus.masks for corpus in corpora], size) | {"counts": total_counts(corpora)},
        "datasets": {
            corpus.name: _section([corpus.masks], size) | {"counts": corpus.counts} for corpus in corpora
        },
    }


def total_counts(corpora: Sequence[Corpus]) -> dict[str, int]:
    """Adds up the counts of corpora."""
    return {name: sum(corpus.counts[name] for corpus in corpora) for name in corpora[0].counts}


def _section(tables: Sequence[pa.Table], num_codes: int) -> dict[str, Any]:
    masks = pa.concat_tables(tables)
    iou, boundary, area_px = (column(masks, name) for name in ("iou", "boundary_iou", "area_px"))
    buckets, start = {}, 0.0
    for name, end in regions.AREA_BUCKETS:
        inside = (area_px >= start) & (area_px < end)
        buckets[name], start = scores(iou[inside], boundary[inside]), end
    return {**scores(iou, boundary), "by_area": buckets, "codes": _codes(codes_of(masks), num_codes)}


def column(masks: pa.Table, name: str) -> np.ndarray:
    """Returns a number of each mask in double precision."""
    return masks[name].to_numpy().astype(np.float64)


def codes_of(masks: pa.Table) -> np.ndarray:
    """Returns the codes of masks: int64, mask x level; of no masks there are no levels."""
    flat = masks["codes"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.astype(np.int64).reshape(len(masks), -1) if len(masks) else np.zeros((0, 0), np.int64)


def scores(iou: np.ndarray, boundary_iou: np.ndarray) -> dict[str, Any]:
    """Returns the averages of masks; of no masks they are None."""
    if not len(iou):
        names = ("r_acc", "boundary_iou", "share_below_half")
        return {"masks": 0, **dict.fromkeys(names), "iou_quantiles": None}
    quantiles = np.quantile(iou, QUANTILES)
    return {
        "masks": len(iou),
        "r_acc": float(iou.mean()),
        "boundary_iou": float(boundary_iou.mean()),
        "share_below_half": float((iou < 0.5).mean()),
        "iou_quantiles": {f"p{100 * q:g}": float(v) for q, v in zip(QUANTILES, quantiles, strict=True)},
    }


def _codes(codes: np.ndarray, num_codes: int) -> dict[str, Any]:
    levels = [
        {"used": level.used, "dead": level.dead, "perplexity": level.perplexity}
        for level in codebook.usage(codebook.histogram(codes, num_codes))
    ]
    return {"num_codes": num_codes, "levels": levels, "distinct_tuples": codebook.distinct(codes)}


def table_of(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Returns the closing table as texts: a head, a line per dataset and, of several, one of all together."""
    buckets = [name for name, _ in regions.AREA_BUCKETS]
    head = ["dataset", "masks", "r-Acc", "boundary IoU", "IoU < 0.5", *buckets]
    sections = dict(metrics["datasets"])
    if len(sections) > 1:
        sections["all"] = metrics["overall"]
    lines = []
    for name, found in sections.items():
        scores = (html.decimal(found[score], 4) for score in ("r_acc", "boundary_iou"))
        by_area = (html.decimal(bucket["r_acc"], 4) for bucket in found["by_area"].values())
        lines.append([name, f"{found['masks']:,}", *scores, f"{found['share_below_half']:.1%}", *by_area])
    return [head, *lines]
