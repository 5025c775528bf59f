"""Lays out the report of a corpus from the parts of ``report_html``.

Texts of datasets are untrusted: every value goes through ``html.escape``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.reports import gallery as report_gallery
from pipelines.reports import html
from pipelines.reports.pictures import MAX_WORST, CloseUp, Gallery
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
    """All that the page says; ``pipelines.reports.words`` collects it."""

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
    fingerprint = content.manifest["fingerprint"]
    title = f"{fingerprint.get('dataset', 'corpus')} {fingerprint.get('split', '')} in mask words"
    body = [
        html.heading(title, content.out),
        _unfinished(content),
        _tiles(content),
        f"<h2>Counts</h2>{_counts(content)}",
        f"<div class=two>{_reconstruction(content)}{_codebooks(content)}</div>",
        f"<h2>Rejects</h2>{rejects_table(content.rejects)}",
        _worst(content.gallery.worst),
        f"<h2>Images</h2>{_images(content)}",
        f"<h2>Fingerprint</h2>{_fingerprint(content)}",
        f"<h2>Schema</h2>{_schema(content.schema)}",
    ]
    return html.page(title, body)


def _unfinished(content: Content) -> str:
    if not content.missing:
        return ""
    done = len(content.manifest["shards"])
    first = ", ".join(map(str, content.missing[:8])) + (", ..." if len(content.missing) > 8 else "")
    return (
        f"<p class=banner><b>Unfinished.</b> {done} of {done + len(content.missing)} shards are committed; "
        f"without a commit record: {first}. Numbers and images are of the committed shards. "
        "Run the job again to resume it.</p>"
    )


def _tiles(content: Content) -> str:
    metrics, totals = content.metrics, content.manifest["totals"]
    lost = totals["masks_rejected"] + totals["masks_filtered"]
    tiles = [
        (f"{totals['rows_out']:,}", "images with rows"),
        (f"{totals['masks_out']:,}", "masks with words"),
        (html.share_of(lost, totals["masks_in"]), "of the masks without words"),
    ]
    if "iou/mean" in metrics:
        tiles.append((f"{metrics['iou/mean']:.3f}", "mean IoU of reconstructions"))
    used = " / ".join(str(level.used) for level in content.usage)
    tiles.append((used, f"of {content.manifest['fingerprint']['num_codes']} codes used, by level"))
    tiles.append((_size(metrics["corpus/size_bytes"]), f"in {len(content.manifest['shards'])} shards"))
    return html.tiles(tiles)


def _counts(content: Content) -> str:
    totals, lines = content.manifest["totals"], []
    for name, kind in (("images", "rows"), ("masks", "masks")):
        into, out, rejected = (totals[f"{kind}_{part}"] for part in ("in", "out", "rejected"))
        filtered = totals.get(f"{kind}_filtered", 0)
        off = into - out - rejected - filtered
        verdict = (
            "adds up" if off == 0 else f"<span class=bad>does not add up: {off:+,} unaccounted for</span>"
        )
        numbers = (f"{into:,}", f"= {out:,}", f"+ {rejected:,}", f"+ {filtered:,}" if kind == "masks" else "")
        cells = "".join(f"<td class=num>{number}</td>" for number in numbers)
        lines.append(
            f"<tr><td>{name}</td>{cells}<td class=num>{html.share_of(rejected, into)}</td>"
            f"<td>{verdict}</td></tr>"
        )
    heads = ["in", "out", "rejected", "filtered by policy", "reject rate"]
    head = "<th></th>" + "".join(f"<th class=num>{name}</th>" for name in heads) + "<th></th>"
    planned = ""
    if content.missing and content.num_planned is not None:
        planned = f"<p class=faint>The plan has {content.num_planned:,} images.</p>"
    return html.card(html.table(head, lines, "narrow") + planned)


def _reconstruction(content: Content) -> str:
    metrics = content.metrics
    if "iou/mean" not in metrics:
        text = "No reconstruction was compared while the corpus was made (--reconstruct 0)."
        return html.card(f"<h3>Reconstruction</h3><p class=faint>{text}</p>")
    below = metrics["iou/share_below_half"]
    text = (
        f"{metrics['iou/count']:,.0f} masks: mean IoU {metrics['iou/mean']:.3f}, median about "
        f"{metrics['iou/median']:.3f}, {below:.1%} below 0.5."
    )
    return html.card(
        f"<h3>Reconstruction</h3><p>{text}</p>{_plot(content, 'iou_histogram.png', 'IoU histogram')}"
    )


def _codebooks(content: Content) -> str:
    num_codes = content.manifest["fingerprint"]["num_codes"]
    return codebooks(content.usage, num_codes, content.plots["code_usage.png"])


def codebooks(usage: Sequence[LevelUsage], num_codes: int, plot: bytes) -> str:
    """Returns a card about the use of the codebooks.

    Args:
        usage: Of each level.
        num_codes: Entries of each codebook.
        plot: From ``samtok.plots.base.code_usage_plot``.
    """
    lines = [
        f"<tr><td>{level}</td><td class=num>{use.used} of {num_codes}</td><td class=num>{use.dead}</td>"
        f"<td class=num>{use.perplexity:.1f}</td></tr>"
        for level, use in enumerate(usage)
    ]
    head = "<th>level</th><th class=num>used</th><th class=num>dead</th><th class=num>perplexity</th>"
    table = html.table(head, lines)
    picture = html.image(plot, "masks per code, by rank", kind="plot")
    note = "Dashed: all codes used alike. Grey: codes that no mask uses."
    return html.card(f"<h3>Codebooks</h3>{table}{picture}<p class=faint>{note}</p>")


def rejects_table(rejects: Sequence[RejectLine]) -> str:
    """Returns a card of what got no words, and why."""
    if not rejects:
        return html.card("<p class=faint>None.</p>")
    lines = [
        f"<tr><td>{html.escape(line.stage)}</td><td class=whole><code>{html.escape(line.reason)}</code></td>"
        f"<td class=num>{line.count:,}</td><td class=text>{html.escape(line.example[:400])}</td></tr>"
        for line in rejects
    ]
    return html.card(
        html.table("<th>stage</th><th>reason</th><th class=num>entries</th><th>example</th>", lines)
    )


def _worst(worst: Sequence[CloseUp]) -> str:
    if not worst:
        return ""
    return (
        "<h2>Worst masks</h2>"
        f"<p class=faint>The lowest IoUs among the images below, at most {MAX_WORST}, cropped."
        f"{html.legend()}</p>{report_gallery.close_ups(worst)}"
    )


def _images(content: Content) -> str:
    gallery = content.gallery
    parts = [f"<p class=faint>{len(gallery.cards)} images drawn at random, seed {content.seed}."]
    parts.append(
        f"{html.legend()}</p>"
        if content.decoded
        else " Without a tokenizer, only original masks are shown.</p>"
    )
    return "".join(parts) + report_gallery.images(gallery)


def _fingerprint(content: Content) -> str:
    return html.card(html.settings(sorted(content.manifest["fingerprint"].items())))


def _schema(rows: pa.Schema) -> str:
    lines = [
        f"<tr><td class=mono style='padding-left:{22 * depth}px'>{html.escape(name)}</td>"
        f"<td class=mono>{html.escape(kind)}</td><td>{'may be null' if nullable else ''}</td></tr>"
        for depth, name, kind, nullable in flat_schema(rows)
    ]
    return html.card(html.table("<th>column</th><th>type</th><th></th>", lines))


def flat_schema(fields: Iterable[pa.Field], depth: int = 0) -> list[tuple[int, str, str, bool]]:
    """Returns (depth, name, type, nullable) of all fields, those of nested lists below their list."""
    found = []
    for field in fields:
        kind, inner = field.type, []
        while pa.types.is_list(kind):
            kind, inner = kind.value_type, ["list of", *inner]
        if pa.types.is_struct(kind):
            found.append((depth, field.name, " ".join([*inner, "struct"]), field.nullable))
            found += flat_schema(kind.fields, depth + 1)
        else:
            found.append((depth, field.name, " ".join([*inner, str(kind)]), field.nullable))
    return found


def _plot(content: Content, name: str, alt: str) -> str:
    return html.image(content.plots[name], alt, kind="plot")


def _size(num_bytes: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"
