"""Lays out the report of a corpus of words."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.reports import gallery, html
from pipelines.reports.pictures import MAX_WORST, Gallery
from samtok.metrics.codebook import LevelUsage


@dataclass(frozen=True)
class RejectLine:
    """Entries of the reject table with one stage and reason."""

    stage: str
    reason: str
    count: int
    example: str


@dataclass(frozen=True, kw_only=True)
class Content:
    """All that the page shows; ``pipelines.reports.words`` collects it."""

    out: str
    manifest: Mapping[str, Any]
    missing: Sequence[int]
    num_planned: int | None
    metrics: Mapping[str, float]
    usage: Sequence[LevelUsage]
    rejects: Sequence[RejectLine]
    schema: pa.Schema
    plots: Mapping[str, bytes]
    gallery: Gallery
    decoded: bool
    seed: int


def render(content: Content) -> str:
    """Returns the page as HTML."""
    fingerprint, shown = content.manifest["fingerprint"], content.gallery
    kind = html.legend() if content.decoded else " Without a tokenizer, only original masks are shown."
    drawn = html.join(f"{len(shown.cards)} images drawn at random, seed {content.seed}.", kind)
    return html.page(
        f"{fingerprint.get('dataset', 'corpus')} {fingerprint.get('split', '')} in mask words",
        content.out,
        *_unfinished(content),
        html.tiles(_tiles(content)),
        html.section("Counts", _counts(content)),
        html.beside(
            _reconstruction(content),
            codebooks(content.usage, fingerprint["num_codes"], content.plots["code_usage.png"]),
        ),
        html.section("Rejects", rejects_table(content.rejects)),
        *_worst(shown),
        html.section("Images", gallery.images(shown), note=drawn),
        html.section("Fingerprint", html.card(html.settings(sorted(fingerprint.items())))),
        html.section("Schema", _schema(content.schema)),
    )


def _unfinished(content: Content) -> list[html.Block]:
    if not content.missing:
        return []
    done = len(content.manifest["shards"])
    text = (
        f"{done} of {done + len(content.missing)} shards are committed; without a commit record: "
        f"{some_of(content.missing)}. Numbers and images are of the committed shards. "
        "Run the job again to resume it."
    )
    return [html.banner(text, "Unfinished.")]


def some_of(numbers: Sequence[int]) -> str:
    """Returns the first eight of some numbers as text."""
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")


def _tiles(content: Content) -> list[tuple[str, str]]:
    metrics, totals = content.metrics, content.manifest["totals"]
    lost = totals["masks_rejected"] + totals["masks_filtered"]
    num_codes = content.manifest["fingerprint"]["num_codes"]
    return [
        (f"{totals['rows_out']:,}", "images with rows"),
        (f"{totals['masks_out']:,}", "masks with words"),
        (html.share_of(lost, totals["masks_in"]), "of the masks without words"),
        (html.decimal(metrics.get("iou/mean")), "mean IoU of reconstructions"),
        (" / ".join(str(level.used) for level in content.usage), f"of {num_codes} codes used, by level"),
        (_size(metrics["corpus/size_bytes"]), f"in {len(content.manifest['shards'])} shards"),
    ]


def _counts(content: Content) -> html.Block:
    totals, rows = content.manifest["totals"], []
    for name, kind in (("images", "rows"), ("masks", "masks")):
        into, out, rejected = (totals[f"{kind}_{part}"] for part in ("in", "out", "rejected"))
        filtered = totals.get(f"{kind}_filtered", 0)
        off = into - out - rejected - filtered
        verdict = html.bad(f"does not add up: {off:+,} unaccounted for") if off else "adds up"
        parts = [f"= {out:,}", f"+ {rejected:,}", f"+ {filtered:,}" if kind == "masks" else ""]
        rows.append([name, f"{into:,}", *parts, html.share_of(rejected, into), verdict])
    heads = ["", "in", "out", "rejected", "filtered by policy", "reject rate", ""]
    planned = content.num_planned if content.missing else None
    note = "" if planned is None else f"The plan has {planned:,} images."
    return html.card(html.grid(heads, rows, numbers=range(1, 6), kind="narrow"), note=note)


def _reconstruction(content: Content) -> html.Block:
    metrics, title = content.metrics, "Reconstruction"
    if "iou/mean" not in metrics:
        note = "No reconstruction was compared while the corpus was made (--reconstruct 0)."
        return html.card(title=title, note=note)
    text = (
        f"{metrics['iou/count']:,.0f} masks: mean IoU {metrics['iou/mean']:.3f}, median about "
        f"{metrics['iou/median']:.3f}, {metrics['iou/share_below_half']:.1%} below 0.5."
    )
    plot = html.plot(content.plots["iou_histogram.png"], "IoU histogram", wide=False)
    return html.card(html.paragraph(text), plot, title=title)


def codebooks(usage: Sequence[LevelUsage], num_codes: int, plot: bytes) -> html.Block:
    """Returns a card about the use of the codebooks.

    Args:
        usage: Of each level.
        num_codes: Entries of each codebook.
        plot: From ``samtok.plots.base.code_usage_plot``.
    """
    rows = [
        [str(level), f"{use.used} of {num_codes}", str(use.dead), f"{use.perplexity:.1f}"]
        for level, use in enumerate(usage)
    ]
    return html.card(
        html.grid(["level", "used", "dead", "perplexity"], rows, numbers=range(1, 4)),
        html.plot(plot, "masks per code, by rank", wide=False),
        title="Codebooks",
        note="Dashed: all codes used alike. Grey: codes that no mask uses.",
    )


def rejects_table(rejects: Iterable[RejectLine]) -> html.Block:
    """Returns a card of what got no words, and why."""
    rows = [
        [line.stage, html.code(line.reason), f"{line.count:,}", html.shortened(line.example)]
        for line in rejects
    ]
    return html.card(html.grid(["stage", "reason", "entries", "example"], rows, numbers=[2], kind="whole"))


def _worst(shown: Gallery) -> list[html.Block]:
    if not shown.worst:
        return []
    text = f"The lowest IoUs among the images below, at most {MAX_WORST}, cropped."
    note = html.join(text, html.legend())
    return [html.section("Worst masks", gallery.close_ups(shown.worst), note=note)]


def _schema(rows: pa.Schema) -> html.Block:
    lines = [
        [html.code("\u2003" * depth + name), html.code(kind), "may be null" if nullable else ""]
        for depth, name, kind, nullable in flat_schema(rows)
    ]
    return html.card(html.grid(["column", "type", ""], lines))


def flat_schema(fields: Iterable[pa.Field], depth: int = 0) -> list[tuple[int, str, str, bool]]:
    """Returns (depth, name, type, nullable) of all fields, those of nested lists below their list."""
    found = []
    for field in fields:
        kind, inner = field.type, []
        while pa.types.is_list(kind):
            kind, inner = kind.value_type, ["list of", *inner]
        nested = pa.types.is_struct(kind)
        name = " ".join([*inner, "struct" if nested else str(kind)])
        found.append((depth, field.name, name, field.nullable))
        found += flat_schema(kind.fields, depth + 1) if nested else []
    return found


def _size(num_bytes: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"
