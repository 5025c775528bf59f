"""Plots of numbers as PNG files, in the colours of ``samtok.viz``.

They draw on their own Agg canvas, so matplotlib's global state and backend stay as they are; matplotlib loads
with the first plot.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from samtok.metrics import codebook
from samtok.viz import MISSED, Colour

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BARS: Colour = (0, 114, 178)
_INK: Colour = (32, 34, 38)
_FAINT: Colour = (110, 114, 120)


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
        title: Above the plot.
        x_label: Quantity and unit.
        y_label: What is counted.
        mean: Marked by a line if given.

    Raises:
        ValueError: If the edges do not fit the counts.
    """
    if len(edges) != len(counts) + 1:
        raise ValueError(f"got {len(edges)} edges for {len(counts)} bins, expected {len(counts) + 1}")
    figure, (axes,) = _figure(1, title, height_in=4.4)
    widths = np.diff(edges)
    axes.bar(edges[:-1], counts, width=widths, align="edge", color=_share(_BARS), edgecolor="white")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, max(int(np.max(counts, initial=0)), 1) * 1.12)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if mean is not None:
        axes.axvline(mean, color=_share(MISSED), linewidth=1.8)
        _subtitle(axes, f"line: mean {mean:.3f}")
    return _png_of(figure)


def code_usage_plot(counts: Int[np.ndarray, "level num_codes"]) -> bytes:
    """Returns, per level, how many masks use each code, the most used first, as a PNG file.

    A healthy codebook is a flat curve near the dashed line (all codes alike); the grey area is codes that no
    mask uses.
    """
    figure, all_axes = _figure(len(counts), "Use of the codebooks", height_in=2.4)
    for level, (row, used, axes) in enumerate(zip(counts, codebook.usage(counts), all_axes, strict=True)):
        ranked = np.sort(row)[::-1]
        shown = ranked[: used.used]
        axes.bar(np.arange(len(shown)), shown, width=1.0, color=_share(_BARS))
        axes.axvspan(used.used - 0.5, len(row) - 0.5, color="0.9", zorder=0)
        axes.axhline(max(row.sum() / len(row), 1e-3), color=_share(MISSED), linestyle="--", linewidth=1.4)
        axes.set_xlim(-0.5, len(row) - 0.5)
        axes.set_ylim(bottom=0)
        _subtitle(
            axes, f"level {level}: {used.used} of {len(row)} codes used, perplexity {used.perplexity:.1f}"
        )
        axes.set_xlabel("codes, by rank")
        axes.set_ylabel("masks per code")
    return _png_of(figure)


def _share(colour: Colour) -> tuple[float, float, float]:
    red, green, blue = colour
    return red / 255, green / 255, blue / 255


def _subtitle(axes: Any, text: str) -> None:
    axes.set_title(text, fontsize=10, color=_share(_FAINT), loc="left")


def _figure(num_axes: int, title: str, *, height_in: float) -> "tuple[Figure, list[Any]]":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(6.4, 0.4 + height_in * num_axes), dpi=120, layout="constrained", facecolor="white"
    )
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12, color=_share(_INK), x=0.02, ha="left")
    all_axes = list(figure.subplots(num_axes, squeeze=False)[:, 0])
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
    return figure, all_axes


def _png_of(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
