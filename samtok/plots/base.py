"""Plots of numbers as PNG files, in the colours of ``samtok.plots.pictures``.

They draw on their own Agg canvas, so matplotlib's global state and backend stay as they are; matplotlib loads
with the first plot. ``curves`` draws a training run, ``tradeoff`` a sweep.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from samtok.metrics import codebook
from samtok.plots.pictures import MISSED, Colour

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BARS: Colour = (0, 114, 178)
INK: Colour = (32, 34, 38)
FAINT: Colour = (110, 114, 120)
GOOD: Colour = (0, 158, 115)
LINES: tuple[Colour, ...] = (
    BARS,
    (230, 159, 0),
    GOOD,
    (204, 121, 167),
    (86, 180, 233),
    (150, 108, 60),
    (120, 94, 240),
    FAINT,
)
"""Colours of curves, in order. Vermilion stays for marks: means, ceilings, what went wrong."""


def histogram_plot(
    counts: Sequence[int] | np.ndarray,
    edges: Sequence[float] | np.ndarray,
    *,
    title: str,
    x_label: str,
    y_label: str,
    mean: float | None = None,
) -> bytes:
    """Returns a bar plot of counts per bin as a PNG file.

    Args:
        counts: One per bin.
        edges: Borders of the bins, one more than counts.
        mean: Marked by a line if given.

    Raises:
        ValueError: If the edges do not fit the counts.
    """
    if len(edges) != len(counts) + 1:
        raise ValueError(f"got {len(edges)} edges for {len(counts)} bins, expected {len(counts) + 1}.")
    figure, (axes,) = figure_of(1, title, height_in=4.4)
    widths = np.diff(edges)
    axes.bar(edges[:-1], counts, width=widths, align="edge", color=rgb(BARS), edgecolor="white")
    highest = max(int(np.max(counts, initial=0)), 1)
    axes.set(xlim=(edges[0], edges[-1]), ylim=(0, highest * 1.12), xlabel=x_label, ylabel=y_label)
    if mean is not None:
        axes.axvline(mean, color=rgb(MISSED), linewidth=1.8)
        subtitle(axes, f"line: mean {mean:.3f}")
    return png_of(figure)


def code_usage_plot(counts: Int[np.ndarray, "level num_codes"]) -> bytes:
    """Returns, per level, how many masks use each code, the most used first, as a PNG file.

    A healthy codebook is a flat curve near the dashed line (all codes alike); the grey area is codes that no
    mask uses.
    """
    figure, all_axes = figure_of(len(counts), "Use of the codebooks", height_in=2.4)
    for level, (row, used, axes) in enumerate(zip(counts, codebook.usage(counts), all_axes, strict=True)):
        ranked = np.sort(row)[::-1]
        shown = ranked[: used.used]
        axes.bar(np.arange(len(shown)), shown, width=1.0, color=rgb(BARS))
        axes.axvspan(used.used - 0.5, len(row) - 0.5, color="0.9", zorder=0)
        axes.axhline(max(row.sum() / len(row), 1e-3), color=rgb(MISSED), linestyle="--", linewidth=1.4)
        axes.set(xlim=(-0.5, len(row) - 0.5), xlabel="codes, by rank", ylabel="masks per code")
        axes.set_ylim(bottom=0)
        text = f"level {level}: {used.used} of {len(row)} codes used, perplexity {used.perplexity:.1f}"
        subtitle(axes, text)
    return png_of(figure)


def rgb(colour: Colour) -> tuple[float, float, float]:
    """Returns a colour as matplotlib has it: red, green and blue in [0, 1]."""
    red, green, blue = colour
    return red / 255, green / 255, blue / 255


def subtitle(axes: Any, text: str, *, raised: bool = False) -> None:
    """Writes a small title above axes, on the left; a raised one leaves a line for a legend below it."""
    axes.set_title(text, fontsize=10, color=rgb(FAINT), loc="left", pad=20 if raised else None)


def figure_of(
    num_axes: int, title: str, *, height_in: float, width_in: float = 6.4, columns: int = 1
) -> "tuple[Figure, list[Any]]":
    """Returns a figure in our style, and its axes row by row.

    Args:
        height_in: Of a row, in inches.
        width_in: Of the figure, in inches.
        columns: Axes beside each other.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-num_axes // columns)
    figure = Figure(
        figsize=(width_in, 0.4 + height_in * rows), dpi=120, layout="constrained", facecolor="white"
    )
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12, color=rgb(INK), x=0.02 * 6.4 / width_in, ha="left")
    all_axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in all_axes[num_axes:]:
        unused.remove()
    for axes in all_axes[:num_axes]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
    return figure, all_axes[:num_axes]


def png_of(figure: "Figure") -> bytes:
    """Returns a figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
