"""The report of a codebook sweep: one HTML page, one picture, and the same table for documents.

OUT/report/index.html     every trial: its quantizer, IoU, use of codes, time
OUT/report/tradeoff.png   r-Acc against bits per mask
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.reports import html, training
from samtok.plots.tradeoff import TradeoffPoint, tradeoff_plot

HEADS = (
    *("quantizer", "words", "bits", "r-Acc", "codes of others"),
    *("used, %", "perplexity", "distinct", "steps", "time", "status"),
)
_NUMBERS = range(1, len(HEADS) - 1)
_LEGEND = (
    "Quantizer: kind, codes of a level x levels. Words: vocabulary. Bits: of one mask. r-Acc: mean "
    "IoU of held-out masks with their reconstructions. Codes of others: the same with the codes of masks of "
    "another image, so what the decoder reads from the image alone. Used: share of each level's codes that "
    "occur. Distinct: different words of all held-out masks. A trial that was stopped has the numbers of its "
    "last validation."
)

Row = Mapping[str, Any]


def write_report(out: str, rows: Sequence[Row], *, ceiling: float | None = None) -> dict[str, bytes]:
    """Writes ``OUT/report`` and returns its pictures by file name; raises StorageError if the folder cannot
    be written.

    Args:
        rows: One per trial: ``name``, ``kind``, ``num_codes``, ``num_levels``, ``shared``, ``grid``,
            ``words`` (vocabulary), ``bits_per_mask``, ``status``; of those that were measured ``iou``,
            ``iou_shuffled``, ``used_*`` and ``perplexity_*`` by level, ``distinct``, ``steps``, ``seconds``;
            of failed ones ``error``.
        ceiling: IoU without quantization, of the weights that all trials started from.
    """
    points = [_point(row) for row in rows if _is_number(row.get("iou"))]
    pictures = {"tradeoff.png": tradeoff_plot(points, ceiling=ceiling)}
    table = html.grid(
        HEADS,
        [_cells(row) for row in _ordered(rows)],
        numbers=_NUMBERS,
        kind="dense many",
        empty="No trial was made.",
    )
    failed = [[str(row.get("name", "-")), str(row["error"])] for row in rows if row.get("error")]
    page = html.page(
        "Codebook sweep",
        out,
        html.tiles(_tiles(rows, ceiling)),
        html.card(html.plot(pictures["tradeoff.png"], "r-Acc against bits per mask")),
        html.section("Trials", html.card(table, note=_LEGEND)),
        *([html.section("Failed", html.card(html.grid(["trial", "error"], failed)))] if failed else []),
    )
    training.write_page(out, page, pictures)
    return pictures


def markdown_table(rows: Sequence[Row]) -> str:
    """Returns the trials as a Markdown table, by bits per mask and then the best first; the best is bold."""
    best = _best(rows)
    lines = [
        _markdown(HEADS),
        _markdown(["---:" if place in _NUMBERS else "---" for place in range(len(HEADS))]),
    ]
    for row in _ordered(rows):
        cells = _cells(row)
        lines.append(_markdown([f"**{cell}**" for cell in cells] if row is best else cells))
    return "\n".join(lines) + "\n"


def _markdown(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _tiles(rows: Sequence[Row], ceiling: float | None) -> list[tuple[str, str]]:
    done, best = sum(row.get("status") == "finished" for row in rows), _best(rows)
    tiles = [(f"{done} of {len(rows)}", "trials finished")]
    if best is not None:
        tiles.append((html.decimal(best["iou"]), f"best r-Acc: {_quantizer(best)}"))
    seconds = sum(row.get("seconds") or 0 for row in rows)
    tiles.append((html.decimal(ceiling), "without quantization"))
    return [*tiles, (html.duration(seconds), "training in all")]


def _cells(row: Row) -> list[str]:
    return [
        _quantizer(row),
        html.decimal(row.get("words"), 0),
        f"{row['bits_per_mask']:g}" if "bits_per_mask" in row else "-",
        html.decimal(row.get("iou"), 4),
        html.decimal(row.get("iou_shuffled"), 4),
        _by_level(row, "used_", 100 / row.get("num_codes", 1)),
        _by_level(row, "perplexity_", 1.0),
        html.decimal(row.get("distinct"), 0),
        html.decimal(row.get("steps"), 0),
        html.duration(row.get("seconds")),
        str(row.get("status", "-")),
    ]


def _by_level(row: Row, prefix: str, scale: float) -> str:
    names = [f"{prefix}{level}" for level in range(row.get("num_levels", 0))]
    return " / ".join(html.decimal(row[name] * scale, 0) for name in names if name in row) or "-"


def _kind(row: Row) -> str:
    return "rq shared" if row.get("shared") else str(row.get("kind", "-"))


def _quantizer(row: Row) -> str:
    """Returns a name such as ``rq 256 x 2``, for fsq with the grid of a word: ``fsq 256 (16x16) x 2``."""
    grid = "x".join(map(str, row.get("grid") or ()))
    codes = f"{row.get('num_codes', '-')}{f' ({grid})' if grid else ''}"
    return f"{_kind(row)} {codes} x {row.get('num_levels', '-')}"


def _point(row: Row) -> TradeoffPoint:
    label = f"{row['num_codes']}x{row['num_levels']}"
    return TradeoffPoint(_kind(row), label, float(row["bits_per_mask"]), float(row["iou"]))


def _ordered(rows: Sequence[Row]) -> list[Row]:
    def key(row: Row) -> tuple[float, float, str]:
        score = float(row["iou"]) if _is_number(row.get("iou")) else -math.inf
        return row.get("bits_per_mask", math.inf), -score, str(row.get("name"))

    return sorted(rows, key=key)


def _best(rows: Sequence[Row]) -> Row | None:
    """Returns the finished trial with the highest IoU."""
    able = [row for row in rows if row.get("status") == "finished" and _is_number(row.get("iou"))]
    return max(able, key=lambda row: row["iou"], default=None)


def _is_number(value: Any) -> bool:
    return value is not None and math.isfinite(value)
