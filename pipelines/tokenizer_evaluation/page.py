"""Lays out the report of an evaluation from the parts of ``report_html``.

Texts of datasets are untrusted: every value goes through ``escape``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.reports import gallery as report_gallery
from pipelines.reports import html
from pipelines.reports import words_page as report_page
from pipelines.reports.pictures import Gallery
from pipelines.tokenizer_evaluation.summary import table_of
from samtok.metrics.codebook import LevelUsage
from samtok.metrics.regions import AREA_BUCKETS

_LIMITS = {"small": "below 32 x 32 px", "medium": "below 96 x 96 px", "large": "from 96 x 96 px"}


@dataclass(frozen=True, kw_only=True)
class Content:
    """All that the page says; ``pipelines.tokenizer_evaluation.report`` collects it."""

    out: str
    metrics: Mapping[str, Any]
    usage: Sequence[LevelUsage]
    rejects: Mapping[str, Sequence[report_page.RejectLine]]
    plots: Mapping[str, bytes]
    worst: Mapping[str, Gallery]
    """By area bucket."""
    gallery: Gallery
    seed: int


def render(content: Content) -> str:
    """Returns the page as HTML."""
    title = "What comes back of masks in words"
    body = [
        html.heading(title, content.out),
        _tiles(content),
        f"<h2>Datasets</h2>{_datasets(content)}",
        f"<h2>By area</h2>{_by_area(content)}",
        f"<div class=two>{_plot(content, 'iou_histogram.png', 'masks by IoU')}"
        f"{_plot(content, 'iou_area.png', 'IoU against area')}</div>",
        f"<h2>Words</h2><div class=two>{_codebooks(content)}{_measured_with(content)}</div>",
        f"<h2>Counts</h2>{_counts(content)}",
        *_rejects(content),
        _worst(content),
        f"<h2>Images</h2><p class=faint>{len(content.gallery.cards)} images drawn at random, seed "
        f"{content.seed}.{html.legend()}</p>{report_gallery.images(content.gallery)}",
    ]
    return html.page(title, body)


def _tiles(content: Content) -> str:
    overall = content.metrics["overall"]
    codes = overall["codes"]
    return html.tiles(
        [
            (html.decimal(overall["r_acc"]), "r-Acc: mean IoU over masks"),
            (html.decimal(overall["boundary_iou"]), "mean boundary IoU"),
            (f"{overall['share_below_half']:.1%}", "of the masks below IoU 0.5"),
            (f"{overall['masks']:,}", "masks measured"),
            (
                " / ".join(str(level["used"]) for level in codes["levels"]),
                f"of {codes['num_codes']} codes used",
            ),
            (f"{codes['distinct_tuples']:,}", "different sets of words"),
        ]
    )


def _datasets(content: Content) -> str:
    head, *lines = table_of(content.metrics)
    note = "The last columns are r-Acc by area of the mask."
    return html.card(
        html.grid(head, lines, numbers=range(1, len(head))) + f"<p class=faint>{note} {_cut(content)}</p>"
    )


def _cut(content: Content) -> str:
    found = content.metrics["measured_with"]
    prompt = "masks and boxes" if found["box_prompt"] else "masks alone"
    return (
        f"Logits were cut at {html.escape(found['threshold'])}; the encoder was prompted with {prompt}. "
        "Boundaries are a fiftieth of the image's diagonal wide."
    )


def _by_area(content: Content) -> str:
    overall = content.metrics["overall"]
    sections = [(f"{name}, {_LIMITS[name]}", overall["by_area"][name]) for name, _ in AREA_BUCKETS]
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
    return html.card(html.grid(head, lines, numbers=range(1, len(head))))


def _plot(content: Content, name: str, alt: str) -> str:
    return html.card(html.image(content.plots[name], alt, kind="plot"))


def _codebooks(content: Content) -> str:
    num_codes = content.metrics["overall"]["codes"]["num_codes"]
    return report_page.codebooks(content.usage, num_codes, content.plots["code_usage.png"])


def _measured_with(content: Content) -> str:
    settings = html.settings(content.metrics["measured_with"].items())
    return html.card(f"<h3>Measured with</h3>{settings}")


def _counts(content: Content) -> str:
    sections = dict(content.metrics["datasets"])
    if len(sections) > 1:
        sections["all"] = content.metrics["overall"]
    heads = ["dataset", "images in", "rejected", "masks in", "= measured", "+ rejected", "+ filtered", ""]
    lines = []
    for name, section in sections.items():
        counts = section["counts"]
        parts = [counts[f"masks_{part}"] for part in ("measured", "rejected", "filtered")]
        verdict = "adds up" if counts["masks_in"] == sum(parts) else "DOES NOT ADD UP"
        numbers = [counts["images_in"], counts["images_rejected"], counts["masks_in"], *parts]
        lines.append([name, *(f"{number:,}" for number in numbers), verdict])
    return html.card(html.grid(heads, lines, numbers=range(1, 7)))


def _rejects(content: Content) -> list[str]:
    return [
        f"<h2>Without words in {html.escape(name)}</h2>{report_page.rejects_table(lines)}"
        for name, lines in content.rejects.items()
        if lines
    ]


def _worst(content: Content) -> str:
    parts = []
    for name, gallery in content.worst.items():
        if not gallery.cards:
            continue
        lost = sum(card.problem is not None for card in gallery.cards)
        note = f"<p class=banner>{lost} images can no longer be read, so their masks are missing.</p>"
        parts.append(
            f"<h3>{name}, {_LIMITS[name]}</h3>{note if lost else ''}"
            f"{report_gallery.close_ups(gallery.worst, numbered=False)}<p></p>"
        )
    return (
        "<h2>Worst masks</h2><p class=faint>The lowest IoUs of all masks in each area bucket, cropped."
        f"{html.legend()}</p>{''.join(parts)}"
    )
