"""The report of a training run: one self-contained HTML page, and its pictures as files.

    OUT/report/index.html   final and best IoU, curves, looks at held-out masks, what was left out, lineage
    OUT/report/curves.png   losses, IoU, perplexity, rate and gradient over the steps
    OUT/report/masks.png    held-out masks and what their words say of them, if there is a sheet

The page shows what it is given: whatever of the record, the history or the looks is missing is left out.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines import storage
from pipelines.reports import html
from pipelines.reports.pictures import MAX_SHOWN, SHEET_SIDE, short_words
from pipelines.reports.training_parts import Row, column, lineage, lost, names_of, skipped_steps, spread
from pipelines.tokenizer_training.samples import Sample
from samtok.model.tokenizer import MaskTokenizer
from samtok.plots import pictures as viz
from samtok.plots.curves import Curve, CurvePanel, Events, curves_plot
from samtok.words import format_words

FOLDER = "report"
MAX_LOOKS = 20
"""Looks at held-out masks that the table shows; of more, so many at even distances, and the best one."""


def write_report(
    out: str,
    *,
    config: Mapping[str, Any],
    record: Mapping[str, Any],
    history: Sequence[Row],
    validations: Sequence[Row],
    sheet: bytes | None,
) -> dict[str, bytes]:
    """Writes ``OUT/report`` and returns its pictures by file name.

    Args:
        out: URI of the run's folder.
        config: The resolved config.
        record: What became of the run: ``final``, ``best``, ``times``, ``workers``, ``rejects``, ``lineage``.
        history: One row per step, which counts from 0: ``loss``, ``loss_*``, ``iou``, ``perplexity_*``, ...
        validations: One row per look at held-out masks; its ``step`` is the number of steps done.
        sheet: From ``contact_sheet_of``.

    Raises:
        StorageError: If the folder cannot be written.
    """
    pictures = {"curves.png": _curves(record, history, validations)}
    if sheet is not None:
        pictures["masks.png"] = sheet
    page = _page(out, config, record, history, validations, pictures)
    for name, data in {**pictures, "index.html": page.encode()}.items():
        storage.write_bytes(storage.join(out, FOLDER, name), data)
    return pictures


def contact_sheet_of(tokenizer: MaskTokenizer, samples: Iterable[Sample]) -> bytes:
    """Returns a PNG of images with their masks, what comes back from the words, and the difference.

    Args:
        tokenizer: Its codebooks are set.
        samples: A dozen makes a page; of an image with very many masks, the first are shown.
    """
    panels = [_panel(tokenizer, sample) for sample in samples]
    return viz.png_bytes(viz.contact_sheet(panels, side=SHEET_SIDE))


def _panel(tokenizer: MaskTokenizer, sample: Sample) -> viz.Panel:
    shown = sample.masks[:MAX_SHOWN]
    made = tokenizer.reconstruct(sample.image, shown)
    words = [short_words(format_words(c.tolist(), num_codes=tokenizer.num_codes)) for c in made.codes]
    return viz.Panel(
        viz.fit(sample.image, SHEET_SIDE),
        [viz.fit_mask(mask, SHEET_SIDE) for mask in shown],
        [viz.fit_mask(mask, SHEET_SIDE) for mask in made.masks],
        captions=[f"{iou:.2f}  {text}" for iou, text in zip(made.iou, words, strict=True)],
        title=sample.name,
    )


# ---------------------------------------------------------------- curves


def _curves(record: Mapping[str, Any], history: Sequence[Row], validations: Sequence[Row]) -> bytes:
    done = column(history, "step") + 1  # as the looks count
    looks = column(validations, "step")

    def train(name: str, label: str) -> Curve:
        return Curve(label, done, column(history, name), noisy=True)

    parts = [(name, name.removeprefix("loss_")) for name in names_of(history, "loss_")]
    levels = [train(name, name.removeprefix("perplexity_")) for name in names_of(history, "perplexity_")]
    held_out = [
        Curve("held out", looks, column(validations, "iou")),
        Curve("held out, codes of others", looks, column(validations, "iou_shuffled")),
    ]
    panels = [
        CurvePanel("loss", [train("loss", "total"), *(train(*part) for part in parts)], log=True),
        CurvePanel("IoU", [train("iou", "train"), *held_out], limits=(0.0, 1.0)),
        CurvePanel("perplexity of the codes, by level", levels),
        CurvePanel("codes restarted at a step", [train("codes_restarted", "restarted")]),
        CurvePanel("gradient norm before clipping", [train("gradient_norm", "norm")], log=True),
        CurvePanel("learning rate", [Curve("rate", done, column(history, "lr"))]),
    ]
    skipped = [step + 1 for step in skipped_steps(history)]
    best = (record.get("best") or {}).get("step")
    return curves_plot(panels, Events(_quantized_from(history), best, skipped))


def _quantized_from(history: Sequence[Row]) -> int | None:
    """Returns the steps done before codes had a part; None if they had one from the start, or never."""
    steps = [int(row["step"]) for row in history if "loss_commitment" in row or "perplexity_0" in row]
    return min(steps, default=0) or None


# ---------------------------------------------------------------- page


def _page(
    out: str,
    config: Mapping[str, Any],
    record: Mapping[str, Any],
    history: Sequence[Row],
    validations: Sequence[Row],
    pictures: Mapping[str, bytes],
) -> str:
    title = f"Training of the tokenizer {config.get('model', '')}".rstrip()
    curves = html.image(pictures["curves.png"], "curves over the steps", kind="plot wide")
    text = html.escape(json.dumps(config, indent=2, default=str))
    body = [
        html.heading(title, out),
        html.tiles(_tiles(record)),
        html.card(curves),
        f"<h2>Held-out masks</h2>{html.card(_looks(validations))}",
        f"<h2>At the end</h2><div class=two>{_codebooks(record)}{lost(record, history, what='image')}</div>",
        _masks(pictures),
        f"<h2>Lineage</h2>{html.card(html.settings(lineage(record)))}",
        html.card(html.folded("The whole config", f"<pre class=mono>{text}</pre>")),
    ]
    return html.page(title, body)


def _tiles(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    final, best, times = (record.get(name) or {} for name in ("final", "best", "times"))
    at = f", after step {best['step']:,}" if "step" in best else ""
    workers = record.get("workers") or 1
    took = f"{html.duration(times.get('training_s'))} on {workers} worker{'s' if workers != 1 else ''}"
    numbers = [
        (html.decimal(final.get("iou")), "mean IoU at the end, held out"),
        (html.decimal(best.get("iou")), f"best mean IoU{at}"),
        (html.decimal(final.get("iou_shuffled")), "with the codes of another image's masks"),
        (html.decimal(final.get("iou_continuous")), "without quantization"),
        (html.decimal(final.get("distinct"), 0), f"different words of {_count(final.get('masks'))} masks"),
        (html.decimal(times.get("masks_per_s"), 0), f"masks trained per second, {took}"),
    ]
    return [(number, text) for number, text in numbers if number != "-"]


def _count(number: float | None) -> str:
    return html.decimal(number, 0) if number is not None else "the"


def _looks(validations: Sequence[Row]) -> str:
    if not validations:
        return "<p class=faint>There was no look before the end.</p>"
    levels = names_of(validations, "perplexity_")
    heads = ["steps done", "IoU", "codes of others", "below 0.5", "perplexity by level", "masks", ""]
    best = max((place for place, row in enumerate(validations) if row.get("best")), default=None)
    rows = []
    for place in spread(len(validations), MAX_LOOKS, best):
        row = validations[place]
        used = " / ".join(html.decimal(row[name], 1) for name in levels if name in row)
        rows.append(
            [
                html.decimal(row.get("step"), 0),
                html.decimal(row.get("iou"), 4),
                html.decimal(row.get("iou_shuffled"), 4),
                html.share_of(row["below_half"], 1) if "below_half" in row else "-",
                used or "-",
                html.decimal(row.get("masks"), 0),
                "best" if place == best else "" if row.get("quantized", True) else "not quantized yet",
            ]
        )
    note = ""
    if len(rows) < len(validations):
        note = f"<p class=faint>{len(rows)} of {len(validations):,} looks.</p>"
    return html.grid(heads, rows, numbers=range(len(heads) - 1)) + note


def _codebooks(record: Mapping[str, Any]) -> str:
    final = record.get("final") or {}
    rows = []
    for name in names_of([final], "perplexity_"):
        level = name.removeprefix("perplexity_")
        used = html.decimal(final.get(f"used_{level}"), 0)
        rows.append([level, used, html.decimal(final[name], 1)])
    if not rows:
        return html.card("<h3>Codebooks</h3><p class=faint>No codes were measured.</p>")
    table = html.grid(["level", "codes used", "perplexity"], rows, numbers=(1, 2))
    below = final.get("below_half")
    text = "" if below is None else f"<p>{html.share_of(below, 1)} of the masks have an IoU below 0.5.</p>"
    return html.card(f"<h3>Codebooks</h3>{table}{text}")


def _masks(pictures: Mapping[str, bytes]) -> str:
    if "masks.png" not in pictures:
        return ""
    image = html.image(pictures["masks.png"], "held-out masks and their reconstructions")
    return f"<h2>Masks from words</h2>{html.card(image)}"
