"""The report of a training run: one self-contained HTML page, and its pictures as files.

    OUT/report/index.html   final and best IoU, curves, validations, what was left out, lineage
    OUT/report/curves.png   losses, IoU, perplexity, rate and gradient over the steps
    OUT/report/masks.png    held-out masks and their reconstructions from words, if there is a sheet

The page leaves out whatever of the record, the history or the validations is missing.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.reports import html, training
from pipelines.reports.pictures import MAX_SHOWN, SHEET_SIDE, short_words
from pipelines.reports.training import Row, column, names_of
from pipelines.tokenizer_training.sources import Sample
from samtok.model.tokenizer import MaskTokenizer
from samtok.plots import pictures as viz
from samtok.plots.curves import Curve, CurvePanel, Events, curves_plot
from samtok.words import format_words


def write_report(
    out: str,
    *,
    config: Mapping[str, Any],
    record: Mapping[str, Any],
    history: Sequence[Row],
    sheet: bytes | None,
) -> dict[str, bytes]:
    """Writes ``OUT/report`` and returns its pictures by file name; raises StorageError if the folder cannot
    be written.

    Args:
        record: What became of the run: ``final``, ``best``, ``validations`` (``step`` is the number of steps
            done), ``times``, ``workers``, ``rejects``, ``lineage``.
        history: One row per step, which counts from 0: ``loss``, ``loss_*``, ``iou``, ``perplexity_*``, ...
        sheet: From ``contact_sheet_of``.
    """
    validations = record.get("validations") or []
    pictures = {"curves.png": _curves(record, history, validations)}
    masks = []
    if sheet is not None:
        pictures["masks.png"] = sheet
        shown = html.picture(sheet, "held-out masks and their reconstructions")
        masks = [html.section("Reconstruction from words", html.card(shown))]
    page = html.page(
        f"Training of the tokenizer {config.get('model', '')}".rstrip(),
        out,
        html.tiles(_tiles(record)),
        html.card(html.plot(pictures["curves.png"], "curves over the steps")),
        html.section("Held-out masks", _validations(validations)),
        *masks,
        *training.ending(record, history, config, _codebooks(record), what="image"),
    )
    training.write_page(out, page, pictures)
    return pictures


def contact_sheet_of(tokenizer: MaskTokenizer, samples: Iterable[Sample]) -> bytes:
    """Returns a PNG of images with their masks, what comes back from the words, and the difference.

    A dozen images make a page; of one with very many masks, the first are shown.
    """
    panels = [_panel(tokenizer, sample) for sample in samples]
    return viz.png_bytes(viz.contact_sheet(panels, side=SHEET_SIDE))


def _panel(tokenizer: MaskTokenizer, sample: Sample) -> viz.Panel:
    shown = [mask.dense() for mask in sample.masks[:MAX_SHOWN]]
    made = tokenizer.reconstruct(sample.image, shown)
    words = [short_words(format_words(c, num_codes=tokenizer.num_codes)) for c in made.codes]
    return viz.Panel(
        viz.fit(sample.image, SHEET_SIDE),
        [viz.fit_mask(mask, SHEET_SIDE) for mask in shown],
        [viz.fit_mask(mask, SHEET_SIDE) for mask in made.masks],
        captions=[f"{iou:.2f}  {text}" for iou, text in zip(made.iou, words, strict=True)],
        title=sample.name,
    )


# ---------------------------------------------------------------- curves


def _curves(record: Mapping[str, Any], history: Sequence[Row], validations: Sequence[Row]) -> bytes:
    done = column(history, "step") + 1  # as validations count
    validated = column(validations, "step")

    def train(name: str, label: str) -> Curve:
        return Curve(label, done, column(history, name), noisy=True)

    parts = [(name, name.removeprefix("loss_")) for name in names_of(history, "loss_")]
    levels = [train(name, name.removeprefix("perplexity_")) for name in names_of(history, "perplexity_")]
    held_out = [
        Curve("held out", validated, column(validations, "iou")),
        Curve("held out, codes of others", validated, column(validations, "iou_shuffled")),
    ]
    panels = [
        CurvePanel("loss", [train("loss", "total"), *(train(*part) for part in parts)], log=True),
        CurvePanel("IoU", [train("iou", "train"), *held_out], limits=(0.0, 1.0)),
        CurvePanel("perplexity of the codes, by level", levels),
        CurvePanel("codes restarted at a step", [train("codes_restarted", "restarted")]),
        CurvePanel("gradient norm before clipping", [train("gradient_norm", "norm")], log=True),
        CurvePanel("learning rate", [Curve("rate", done, column(history, "lr"))]),
    ]
    skipped = [step + 1 for step in training.skipped_steps(history)]
    best = (record.get("best") or {}).get("step")
    return curves_plot(panels, Events(_quantized_from(history), best, skipped))


def _quantized_from(history: Sequence[Row]) -> int | None:
    """Returns the steps done before codes had a part; None if they had one from the start, or never."""
    steps = [int(row["step"]) for row in history if "loss_commitment" in row or "perplexity_0" in row]
    return min(steps, default=0) or None


# ---------------------------------------------------------------- page


def _tiles(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    final, best, times = (record.get(name) or {} for name in ("final", "best", "times"))
    at = f", after step {best['step']:,}" if "step" in best else ""
    masks = html.decimal(final["masks"], 0) if final.get("masks") is not None else "the"
    return [
        (html.decimal(final.get("iou")), "mean IoU at the end, held out"),
        (html.decimal(best.get("iou")), f"best mean IoU{at}"),
        (html.decimal(final.get("iou_shuffled")), "with the codes of another image's masks"),
        (html.decimal(final.get("iou_continuous")), "without quantization"),
        (html.decimal(final.get("distinct"), 0), f"different words of {masks} masks"),
        (html.decimal(times.get("masks_per_s"), 0), f"masks trained per second, {training.took(record)}"),
    ]


def _validations(validations: Sequence[Row]) -> html.Block:
    levels = names_of(validations, "perplexity_")
    shown, note = training.validations_shown(validations, training.place_of_best(validations))
    rows = []
    for row, best in shown:
        used = " / ".join(html.decimal(row[name], 1) for name in levels if name in row)
        rows.append(
            [
                html.decimal(row.get("step"), 0),
                html.decimal(row.get("iou"), 4),
                html.decimal(row.get("iou_shuffled"), 4),
                html.share_of(row["below_half"], 1) if "below_half" in row else "-",
                used or "-",
                html.decimal(row.get("masks"), 0),
                best or ("" if row.get("quantized", True) else "not quantized yet"),
            ]
        )
    heads = ["steps done", "IoU", "codes of others", "below 0.5", "perplexity by level", "masks", ""]
    empty = "There was no validation before the end."
    return html.card(html.grid(heads, rows, numbers=range(len(heads) - 1), empty=empty), note=note)


def _codebooks(record: Mapping[str, Any]) -> html.Block:
    final = record.get("final") or {}
    rows = []
    for name in names_of([final], "perplexity_"):
        level = name.removeprefix("perplexity_")
        used = html.decimal(final.get(f"used_{level}"), 0)
        rows.append([level, used, html.decimal(final[name], 1)])
    heads = ["level", "codes used", "perplexity"]
    table = html.grid(heads, rows, numbers=(1, 2), empty="No codes were measured.")
    below = final.get("below_half")
    note = "" if below is None else f"{html.share_of(below, 1)} of the masks have an IoU below 0.5."
    return html.card(table, title="Codebooks", note=note)
