"""Lays out the report of an evaluation."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.reports import gallery, html, words_page
from pipelines.reports.pictures import Gallery
from pipelines.tokenizer_evaluation.summary import table_of
from samtok.metrics.codebook import LevelUsage
from samtok.metrics.regions import AREA_BUCKETS

_LIMITS = {"small": "below 32 x 32 px", "medium": "below 96 x 96 px", "large": "from 96 x 96 px"}


def render(
    out: str,
    metrics: Mapping[str, Any],
    *,
    usage: Sequence[LevelUsage],
    rejects: Mapping[str, Sequence[words_page.RejectLine]],
    plots: Mapping[str, bytes],
    worst: Mapping[str, Gallery],
    shown: Gallery,
    seed: int,
) -> str:
    """Returns the page as HTML; ``worst`` is by area bucket, ``shown`` are the images drawn at random."""
    overall = metrics["overall"]
    drawn = f"{len(shown.cards)} images drawn at random, seed {seed}."
    lowest = "The lowest IoUs of all masks in each area bucket, cropped."
    num_codes, usage_plot = overall["codes"]["num_codes"], plots["code_usage.png"]
    return html.page(
        "Reconstruction of masks from words",
        out,
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
                words_page.codebooks(usage, num_codes, usage_plot),
                html.card(html.settings(metrics["measured_with"].items()), title="Measured with"),
            ),
        ),
        html.section("Counts", _counts(metrics)),
        *(
            html.section(f"Without words in {name}", words_page.rejects_table(lines))
            for name, lines in rejects.items()
            if lines
        ),
        html.section("Worst masks", *_worst(worst), note=html.join(lowest, html.legend())),
        html.section("Images", gallery.images(shown), note=html.join(drawn, html.legend())),
    )


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
