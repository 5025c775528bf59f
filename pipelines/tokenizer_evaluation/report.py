"""The report of an evaluation: one self-contained page, and its pictures as files.

    OUT/report/index.html          tables, plots, worst masks by area, images drawn at random
    OUT/report/worst_masks.png     the same close-ups as one picture
    OUT/report/contact_sheet.png   the same images as one picture
    OUT/report/iou_histogram.png, iou_area.png, code_usage.png

Only the row groups of drawn images are read, and only their images are encoded again.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipelines import rejects
from pipelines.reports import gallery, html, training, words_page
from pipelines.reports import pictures as report_pictures
from pipelines.reports.pictures import Gallery
from pipelines.tokenizer_evaluation.summary import Corpus, codes_of, column, table_of
from samtok.metrics import codebook, regions
from samtok.model.tokenizer import MaskTokenizer
from samtok.plots.base import code_usage_plot, histogram_plot
from samtok.plots.masks import iou_area_plot

IOU_BINS = 20
_LIMITS = {"small": "below 32 x 32 px", "medium": "below 96 x 96 px", "large": "from 96 x 96 px"}


def write_report(
    out: str,
    corpora: Sequence[Corpus],
    metrics: Mapping[str, Any],
    *,
    tokenizer: MaskTokenizer,
    max_images: int,
    seed: int,
    caveats: Iterable[str] = (),
) -> None:
    """Writes ``OUT/report``.

    Args:
        out: Folder of the evaluation.
        corpora: What was measured.
        metrics: From ``summary.metrics_of``.
        tokenizer: The one that was measured; decodes the words of what is drawn.
        max_images: Images to draw at random; a third of this many worst masks are drawn of each area bucket.
        seed: Decides which.
        caveats: What speaks against this tokenizer on a corpus.
    """
    rng = np.random.default_rng(seed)
    rows = draw_rows(corpora, max_images, rng)
    threshold = float(corpora[0].manifest["fingerprint"]["threshold"])
    shown = report_pictures.make_gallery(rows, tokenizer, threshold=threshold, rng=rng, max_worst=0)
    worst = worst_masks(corpora, -(-max_images // len(regions.AREA_BUCKETS)), tokenizer, threshold, rng)
    counts = _code_counts(corpora, metrics)
    plots = _plots(corpora, metrics, counts)
    overall = metrics["overall"]
    usage, num_codes = codebook.usage(counts), overall["codes"]["num_codes"]
    reasons = {one.name: rejects.of_corpus(one.out, one.manifest) for one in corpora}
    drawn = f"{len(shown.cards)} images drawn at random, seed {seed}."
    lowest = "The lowest IoUs of all masks in each area bucket, cropped."
    page = html.page(
        "Reconstruction of masks from words",
        out,
        *words_page.caveats(caveats),
        html.tiles(_tiles(overall)),
        html.section("Datasets", _datasets(metrics)),
        html.section("By area", _by_area(overall)),
        html.beside(
            html.card(html.plot(plots["iou_histogram.png"], "masks by IoU", wide=False)),
            html.card(html.plot(plots["iou_area.png"], "IoU against area", wide=False)),
        ),
        html.section(
            "Words",
            html.beside(
                words_page.codebooks(usage, num_codes, plots["code_usage.png"]),
                html.card(html.settings(metrics["measured_with"].items()), title="Measured with"),
            ),
        ),
        html.section("Counts", _counts(metrics)),
        *(
            html.section(f"Without words in {name}", words_page.rejects_table(lines))
            for name, lines in reasons.items()
            if lines
        ),
        html.section("Worst masks", *_worst(worst), note=html.join(lowest, html.legend())),
        html.section("Images", gallery.images(shown), note=html.join(drawn, html.legend())),
    )
    if panels := [close_up.panel for bucket in worst.values() for close_up in bucket.worst]:
        plots["worst_masks.png"] = report_pictures.sheet_of(panels, report_pictures.CLOSE_UP_SIDE)
    if shown.panels:
        plots["contact_sheet.png"] = shown.contact_sheet()
    training.write_page(out, page, plots)


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
    return report_pictures.rows_of_masks(corpus.out, corpus.manifest["shards"], wanted)


def _plots(
    corpora: Sequence[Corpus], metrics: Mapping[str, Any], code_counts: np.ndarray
) -> dict[str, bytes]:
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
        "code_usage.png": code_usage_plot(code_counts),
    }


def _pooled(corpora: Sequence[Corpus], name: str) -> np.ndarray:
    return np.concatenate([column(corpus.masks, name) for corpus in corpora])


def _code_counts(corpora: Sequence[Corpus], metrics: Mapping[str, Any]) -> np.ndarray:
    codes = np.concatenate([codes_of(corpus.masks) for corpus in corpora])
    return codebook.histogram(codes, metrics["overall"]["codes"]["num_codes"])


# ---------------------------------------------------------------- the page


def _tiles(overall: Mapping[str, Any]) -> list[tuple[str, str]]:
    codes = overall["codes"]
    used = " / ".join(str(level["used"]) for level in codes["levels"])
    return [
        (html.decimal(overall["r_acc"]), "r-Acc: mean IoU over masks"),
        (html.decimal(overall["boundary_iou"]), "mean boundary IoU"),
        (f"{overall['share_below_half']:.1%}", "of the masks below IoU 0.5"),
        (f"{overall['masks']:,}", "masks measured"),
        (used, f"of {codes['num_codes']} codes used, by level"),
        (f"{codes['distinct_tuples']:,}", "different words of masks"),
    ]


def _datasets(metrics: Mapping[str, Any]) -> html.Block:
    (head, *lines), found = table_of(metrics), metrics["measured_with"]
    prompt = "masks and boxes" if found["box_prompt"] else "masks alone"
    note = (
        f"The last columns are r-Acc by area of the mask. Logits were cut at {found['threshold']}; the "
        f"encoder was prompted with {prompt}. Boundaries are a fiftieth of the image's diagonal wide."
    )
    return html.card(html.grid(head, lines, numbers=range(1, len(head))), note=note)


def _by_area(overall: Mapping[str, Any]) -> html.Block:
    sections = [(f"{name}, {_LIMITS[name]}", overall["by_area"][name]) for name, _ in regions.AREA_BUCKETS]
    quantiles = list(overall["iou_quantiles"])
    head = ["area", "masks", "share", "r-Acc", "boundary IoU", "IoU < 0.5", *(f"IoU {q}" for q in quantiles)]
    lines = []
    for name, found in [*sections, ("all", overall)]:
        below = found["share_below_half"]
        of_masks = found["iou_quantiles"] or dict.fromkeys(quantiles)
        lines.append(
            [
                name,
                f"{found['masks']:,}",
                html.share_of(found["masks"], overall["masks"]),
                html.decimal(found["r_acc"]),
                html.decimal(found["boundary_iou"]),
                "-" if below is None else f"{below:.1%}",
                *(html.decimal(of_masks[quantile], 2) for quantile in quantiles),
            ]
        )
    note = "IoU p5: 5 percent of the masks are below it."
    return html.card(html.grid(head, lines, numbers=range(1, len(head))), note=note)


def _counts(metrics: Mapping[str, Any]) -> html.Block:
    sections = dict(metrics["datasets"])
    if len(sections) > 1:
        sections["all"] = metrics["overall"]
    heads = ["dataset", "images in", "rejected", "masks in", "= measured", "+ rejected", "+ filtered", ""]
    lines = []
    for name, section in sections.items():
        counts = section["counts"]
        parts = [counts[f"masks_{part}"] for part in ("measured", "rejected", "filtered")]
        verdict = "adds up" if counts["masks_in"] == sum(parts) else html.bad("does not add up")
        numbers = [counts["images_in"], counts["images_rejected"], counts["masks_in"], *parts]
        lines.append([name, *(f"{number:,}" for number in numbers), verdict])
    return html.card(html.grid(heads, lines, numbers=range(1, 7)))


def _worst(worst: Mapping[str, Gallery]) -> Iterator[html.Block]:
    for name, shown in worst.items():
        if not shown.cards:
            continue
        lost = sum(card.problem is not None for card in shown.cards)
        text = f"{lost} images can no longer be read, so their masks are missing."
        yield html.subsection(
            f"{name}, {_LIMITS[name]}",
            *([html.banner(text)] if lost else []),
            gallery.close_ups(shown.worst, numbered=False),
        )
