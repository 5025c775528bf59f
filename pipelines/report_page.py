"""Lays out the report of a corpus from the parts of ``report_html``.

Texts of datasets are untrusted: every value goes through ``html.escape``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines import report_html as html
from pipelines.report_pictures import MAX_WORST, Card, CloseUp, Gallery, MaskLine, short_words
from samtok.metrics.codebook import LevelUsage

BESIDE = 8
"""Masks whose table fits beside the pictures; a longer one goes below them, in three columns."""
_LABEL_LENGTH = 60


@dataclass(frozen=True)
class RejectLine:
    """Entries of the reject table with one stage and reason."""

    stage: str
    reason: str
    count: int
    example: str


@dataclass(frozen=True, kw_only=True)
class Content:
    """All that the page says; ``pipelines.report`` collects it."""

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
        f"<h2>Rejects</h2>{_rejects(content)}",
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
    lines = [
        f"<tr><td>{level}</td><td class=num>{use.used} of {num_codes}</td><td class=num>{use.dead}</td>"
        f"<td class=num>{use.perplexity:.1f}</td></tr>"
        for level, use in enumerate(content.usage)
    ]
    head = "<th>level</th><th class=num>used</th><th class=num>dead</th><th class=num>perplexity</th>"
    table = html.table(head, lines)
    plot = _plot(content, "code_usage.png", "masks per code, by rank")
    note = "Dashed: all codes used alike. Grey: codes that no mask uses."
    return html.card(f"<h3>Codebooks</h3>{table}{plot}<p class=faint>{note}</p>")


def _rejects(content: Content) -> str:
    if not content.rejects:
        return html.card("<p class=faint>None.</p>")
    lines = [
        f"<tr><td>{html.escape(line.stage)}</td><td class=whole><code>{html.escape(line.reason)}</code></td>"
        f"<td class=num>{line.count:,}</td><td class=text>{html.escape(line.example[:400])}</td></tr>"
        for line in content.rejects
    ]
    return html.card(
        html.table("<th>stage</th><th>reason</th><th class=num>entries</th><th>example</th>", lines)
    )


def _worst(worst: Sequence[CloseUp]) -> str:
    if not worst:
        return ""
    cards = []
    for close_up in worst:
        line, row = close_up.line, close_up.row
        text = f"<b>IoU {_iou(line)}</b> <code>{html.escape(short_words(line.words))}</code> {_label(line)}"
        where = f"{_name(row)}, mask {line.number}, {line.area_px:,} px"
        cards.append(
            f"<div class=card><p class=text>{text}<br><span class=faint>{where}</span></p>"
            f"{_shots(close_up.pictures)}</div>"
        )
    return (
        "<h2>Worst masks</h2>"
        f"<p class=faint>The lowest IoUs among the images below, at most {MAX_WORST}, cropped."
        f"{html.legend()}</p><div class=two>{''.join(cards)}</div>"
    )


def _images(content: Content) -> str:
    gallery = content.gallery
    parts = [f"<p class=faint>{len(gallery.cards)} images drawn at random, seed {content.seed}."]
    parts.append(
        f"{html.legend()}</p>"
        if content.decoded
        else " Without a tokenizer, only original masks are shown.</p>"
    )
    if gallery.num_differing:
        parts.append(
            f"<p class=banner>{gallery.num_differing} of {gallery.num_compared} recorded IoUs are not those "
            "of the pictures. The tokenizer is not the one that made these words, or it computes "
            "differently here.</p>"
        )
    return "".join(parts) + "".join(map(_image, gallery.cards))


def _image(card: Card) -> str:
    row = card.row
    size = f"{row['width']} x {row['height']} px, {len(row['masks'])} masks"
    head = f"<h3 class=text>{_name(row)} <span class=faint>{size}</span></h3>"
    shots = _shots(card.pictures)
    if card.problem is not None:
        shots = f"<div class=problem>The image cannot be shown: {html.escape(card.problem)}</div>"
    step = len(card.lines) if len(card.lines) <= BESIDE else -(-len(card.lines) // 3)
    tables = [_masks(card.lines[start : start + step]) for start in range(0, len(card.lines), step or 1)]
    note = f"<p class=faint>{html.escape(card.note)}</p>" if card.note else ""
    if not tables:
        note = "<p class=faint>No masks.</p>"
    kind = "beside" if len(tables) < 2 else "below"
    return (
        f"<div class=card>{head}<div class='image {kind}'>{shots}"
        f"<div class=lists>{''.join(tables)}</div></div>{note}</div>"
    )


def _masks(lines: Iterable[MaskLine]) -> str:
    rows = [
        f"<tr><td>{_chip(line)}</td><td class=num>{_iou(line)}</td>"
        f"<td><code>{html.escape(short_words(line.words))}</code></td><td class=text>{_label(line)}</td></tr>"
        for line in lines
    ]
    return html.table("<th></th><th class=num>IoU</th><th>words</th><th>label</th>", rows, "masks")


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


def _shots(pictures: Iterable[tuple[str, bytes]]) -> str:
    figures = [
        f"<figure>{html.image(data, caption, media='jpeg')}"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, data in pictures
    ]
    return f"<div class=shots>{''.join(figures)}</div>"


def _plot(content: Content, name: str, alt: str) -> str:
    return html.image(content.plots[name], alt, kind="plot")


def _chip(line: MaskLine) -> str:
    return f"<span class=chip style='background:{html.css(line.colour)}'>{line.number}</span>"


def _label(line: MaskLine) -> str:
    label = line.label or ""
    return html.escape(label if len(label) <= _LABEL_LENGTH else label[: _LABEL_LENGTH - 3] + "...")


def _name(row: Mapping[str, Any]) -> str:
    return f"{html.escape(row['dataset'])} {html.escape(row['image_id'])}"


def _iou(line: MaskLine) -> str:
    return "-" if line.iou is None else f"{line.iou:.2f}"


def _size(num_bytes: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"
