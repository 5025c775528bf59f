"""The report of an evaluation: one self-contained page, and its pictures as files.

    OUT/report/index.html          tables, plots, worst masks by area, images drawn at random
    OUT/report/worst_masks.png     the same close-ups as one picture
    OUT/report/contact_sheet.png   the same images as one picture
    OUT/report/iou_histogram.png, iou_area.png, code_usage.png

Only the row groups of drawn images are read, and only their images are encoded again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines import storage
from pipelines.reports import pictures as report_pictures
from pipelines.reports import words as corpus_reports
from pipelines.reports.pictures import Gallery
from pipelines.tokenizer_evaluation import page
from pipelines.tokenizer_evaluation.summary import Corpus, codes_of, column
from samtok.metrics import codebook, regions
from samtok.model.tokenizer import MaskTokenizer
from samtok.plots.base import code_usage_plot, histogram_plot
from samtok.plots.masks import iou_area_plot

IOU_BINS = 20


def write_report(
    out: str,
    corpora: Sequence[Corpus],
    metrics: Mapping[str, Any],
    *,
    tokenizer: MaskTokenizer,
    max_images: int,
    seed: int,
) -> str:
    """Writes ``OUT/report`` and returns the URI of its page.

    Args:
        out: Folder of the evaluation.
        corpora: What was measured.
        metrics: From ``summary.metrics_of``.
        tokenizer: The one that was measured; decodes the words of what is drawn.
        max_images: Images to draw at random; a third of this many worst masks are drawn of each area bucket.
        seed: Decides which.
    """
    rng = np.random.default_rng(seed)
    rows = draw_rows(corpora, max_images, rng)
    threshold = float(corpora[0].manifest["fingerprint"]["threshold"])
    gallery = report_pictures.make_gallery(rows, tokenizer, threshold=threshold, rng=rng, max_worst=0)
    worst = worst_masks(corpora, -(-max_images // len(regions.AREA_BUCKETS)), tokenizer, threshold, rng)
    pictures = _plots(corpora, metrics)
    listed = {one.name: corpus_reports.Corpus(one.out, one.manifest, (), None) for one in corpora}
    body = page.render(
        out,
        metrics,
        usage=codebook.usage(_code_counts(corpora, metrics)),
        rejects={name: corpus_reports.rejects(corpus) for name, corpus in listed.items()},
        plots=pictures,
        worst=worst,
        shown=gallery,
        seed=seed,
    )
    panels = [close_up.panel for bucket in worst.values() for close_up in bucket.worst]
    if panels:
        pictures["worst_masks.png"] = report_pictures.sheet_of(panels, report_pictures.CLOSE_UP_SIDE)
    if gallery.panels:
        pictures["contact_sheet.png"] = gallery.contact_sheet()
    for name, data in pictures.items():
        storage.write_bytes(storage.join(out, corpus_reports.FOLDER, name), data)
    where = storage.join(out, corpus_reports.FOLDER, "index.html")
    storage.write_bytes(where, body.encode())
    return where


def draw_rows(corpora: Sequence[Corpus], max_images: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Draws code rows, all alike whatever their corpus; all of them if there are no more than asked for."""
    ends = np.cumsum([0, *(corpus.manifest["totals"]["rows_out"] for corpus in corpora)])
    chosen = np.sort(rng.choice(ends[-1], min(max_images, int(ends[-1])), replace=False))
    rows: list[dict[str, Any]] = []
    for corpus, first, end in zip(corpora, ends[:-1], ends[1:], strict=True):
        inside = chosen[(chosen >= first) & (chosen < end)] - first
        rows += report_pictures.rows_at(corpus.out, corpus.manifest["shards"], inside)
    return rows


def worst_masks(
    corpora: Sequence[Corpus],
    per_bucket: int,
    tokenizer: MaskTokenizer,
    threshold: float,
    rng: np.random.Generator,
) -> dict[str, Gallery]:
    """Returns close-ups of the masks with the lowest IoUs of each area bucket, the lowest first."""
    galleries, start = {}, 0.0
    for name, end in regions.AREA_BUCKETS:
        rows = _rows_of_worst(corpora, per_bucket, start, end)
        galleries[name] = report_pictures.make_gallery(
            rows, tokenizer, threshold=threshold, rng=rng, max_worst=per_bucket
        )
        start = end
    return galleries


def _rows_of_worst(
    corpora: Sequence[Corpus], count: int, least_px: float, most_px: float
) -> list[dict[str, Any]]:
    """Returns the code rows of the masks with the lowest IoUs, without their other masks."""
    iou, area_px = (_pooled(corpora, name) for name in ("iou", "area_px"))
    home = np.repeat(np.arange(len(corpora)), [len(corpus.masks) for corpus in corpora])
    place = np.concatenate([np.arange(len(corpus.masks)) for corpus in corpora])
    inside = np.flatnonzero((area_px >= least_px) & (area_px < most_px))
    lowest = inside[np.argsort(iou[inside], kind="stable")[:count]]
    home, place = home[lowest], place[lowest]
    rows: list[dict[str, Any]] = []
    for number, corpus in enumerate(corpora):
        rows += _only(corpus, np.sort(place[home == number]))
    return rows


def _only(corpus: Corpus, masks: np.ndarray) -> list[dict[str, Any]]:
    """Returns the code rows of some masks of a corpus, each with these masks alone."""
    wanted: dict[int, set[str]] = {}
    for row, mask_id in zip(
        corpus.rows[masks].tolist(), corpus.masks["mask_id"].take(masks).to_pylist(), strict=True
    ):
        wanted.setdefault(row, set()).add(mask_id)
    chosen = np.array(sorted(wanted), np.int64)
    found = report_pictures.rows_at(corpus.out, corpus.manifest["shards"], chosen)
    return [
        {**row, "masks": [mask for mask in row["masks"] if mask["mask_id"] in wanted[place]]}
        for place, row in zip(chosen.tolist(), found, strict=True)
    ]


def _plots(corpora: Sequence[Corpus], metrics: Mapping[str, Any]) -> dict[str, bytes]:
    iou, area_px = (_pooled(corpora, name) for name in ("iou", "area_px"))
    counts, edges = np.histogram(iou, IOU_BINS, (0, 1))
    return {
        "iou_histogram.png": histogram_plot(
            counts,
            edges,
            title="Reconstruction from words",
            x_label="IoU of a mask with its reconstruction (no unit, 0 to 1)",
            y_label="masks",
            mean=metrics["overall"]["r_acc"],
        ),
        "iou_area.png": iou_area_plot(iou, area_px),
        "code_usage.png": code_usage_plot(_code_counts(corpora, metrics)),
    }


def _pooled(corpora: Sequence[Corpus], name: str) -> np.ndarray:
    return np.concatenate([column(corpus.masks, name) for corpus in corpora])


def _code_counts(corpora: Sequence[Corpus], metrics: Mapping[str, Any]) -> np.ndarray:
    codes = np.concatenate([codes_of(corpus.masks) for corpus in corpora])
    return codebook.histogram(codes, metrics["overall"]["codes"]["num_codes"])
