"""Quality against size of the words: the result of a codebook sweep as one picture."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from samtok.plots.base import FAINT, LINES, figure_of, png_of, rgb, subtitle
from samtok.plots.pictures import MISSED, Colour

_MARKERS = "os^Dvp*X"
_LABEL_PT = 8.5
_MARKER_PT = 7.0


@dataclass(frozen=True)
class TradeoffPoint:
    """One tokenizer: what a mask costs, and how well it comes back."""

    series: str
    """Points of one series share colour and marker, such as ``rq shared``."""
    label: str
    """Written beside the point, such as ``256x2``."""
    bits: float
    """Of one mask."""
    score: float
    """In [0, 1]; what is not finite leaves the point out."""


def tradeoff_plot(
    points: Sequence[TradeoffPoint], *, ceiling: float | None = None, baseline: float | None = None
) -> bytes:
    """Returns score against bits per mask as a PNG file; a line joins the best of a series up to each size.

    The ceiling, the score of the weights that all share, without quantization, is a dashed line; the
    baseline, the score of something to compare with, a dotted one.
    """
    points = [point for point in points if math.isfinite(point.score)]
    figure, (axes,) = figure_of(1, "Quantizers", height_in=5.2, width_in=9.6)
    marks = [("dashed: the common start, not quantized,", "--", ceiling), ("dotted: baseline", ":", baseline)]
    lines = [(name, style, score) for name, style, score in marks if score is not None]
    for _, style, score in lines:
        axes.axhline(score, color=rgb(MISSED), linestyle=style, linewidth=1.4, zorder=1)
    subtitle(axes, "    ".join(f"{name} {score:.3f}" for name, _, score in lines))
    axes.set_xlabel("bits per mask: levels x log2(codes of a level)")
    axes.set_ylabel("r-Acc: mean IoU of reconstructions")
    axes.margins(x=0.08, y=0.1)
    names = sorted({point.series for point in points})
    colours = dict(zip(names, itertools.cycle(LINES), strict=False))
    for name, marker in zip(names, itertools.cycle(_MARKERS), strict=False):
        _draw_series(axes, [point for point in points if point.series == name], marker, colours[name])
    if points:
        axes.legend(loc="lower right", frameon=False, fontsize=9)
        _label_points(axes, points, colours, [score for _, _, score in lines])
    else:
        axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", color=rgb(FAINT))
        axes.set(xticks=[], yticks=[])
    return png_of(figure)


def label_spots(
    centres: Float[np.ndarray, "point 2"],
    sizes: Float[np.ndarray, "point 2"],
    area: Float[np.ndarray, "4"],
    taken: Float[np.ndarray, "box 4"],
    marker: float,
) -> Float[np.ndarray, "point 2"]:
    """Chooses the middle of every point's label: near the point, where least else is hidden.

    Args:
        centres: x and y of the points; all lengths are of one unit, such as pixels.
        sizes: Width and height of the labels.
        area: Where labels may be: x0, y0, x1, y1.
        taken: Boxes that should stay free, alike.
        marker: Half the width of a point's marker.
    """
    boxes = [*taken, *np.hstack([centres - marker, centres + marker])]
    spots = np.empty_like(centres)
    for index, (centre, size) in enumerate(zip(centres, sizes, strict=True)):
        candidates = np.array([centre + offset for offset in _offsets(size, marker)])
        corners = np.hstack([candidates - size / 2, candidates + size / 2])
        hidden = sum((_overlaps(corners, box) for box in np.array(boxes)), np.zeros(len(corners)))
        costs = hidden + size.prod() - _overlaps(corners, area)
        chosen = int(np.argmin(costs + 0.2 * np.arange(len(costs))))  # near ones first, among equals
        spots[index] = candidates[chosen]
        boxes.append(corners[chosen])
    return spots


def _offsets(size: np.ndarray, marker: float) -> Iterator[np.ndarray]:
    directions = [(0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1)]
    for gap in (0.2, 1.5, 3.0, 5.0, 7.5):
        for direction in directions:
            yield np.array(direction) * (size / 2 + marker * (1 + gap))


def _overlaps(corners: np.ndarray, box: np.ndarray) -> np.ndarray:
    width = np.minimum(corners[:, 2], box[2]) - np.maximum(corners[:, 0], box[0])
    height = np.minimum(corners[:, 3], box[3]) - np.maximum(corners[:, 1], box[1])
    return np.clip(width, 0, None) * np.clip(height, 0, None)


def _draw_series(axes: Any, points: Sequence[TradeoffPoint], marker: str, colour: Colour) -> None:
    best: list[TradeoffPoint] = []
    for point in sorted(points, key=lambda p: (p.bits, -p.score)):
        if not best or point.score > best[-1].score:
            best.append(point)
    axes.plot([p.bits for p in best], [p.score for p in best], color=rgb(colour), linewidth=1.2, alpha=0.5)
    xs, ys = [p.bits for p in points], [p.score for p in points]
    style = {"markersize": _MARKER_PT, "markeredgecolor": "white", "label": points[0].series}
    axes.plot(xs, ys, marker, color=rgb(colour), **style)


def _label_points(
    axes: Any, points: Sequence[TradeoffPoint], colours: Mapping[str, Colour], lines: Sequence[float]
) -> None:
    """Writes the labels, with a thin line to those that had to move away."""
    figure = axes.figure
    figure.canvas.draw()  # only now it is known where things are, in pixels
    renderer, pixels = figure.canvas.get_renderer(), figure.dpi / 72
    centres = axes.transData.transform([(point.bits, point.score) for point in points])
    sizes = []
    for point in points:
        text = axes.text(0, 0, point.label, fontsize=_LABEL_PT)
        sizes.append(np.array(text.get_window_extent(renderer).size))
        text.remove()
    taken = [axes.get_legend().get_window_extent(renderer).extents]
    for line in lines:
        height = axes.transData.transform((0, line))[1]
        taken.append(np.array([axes.bbox.x0, height - 2, axes.bbox.x1, height + 2]))
    half = _MARKER_PT * pixels / 2
    spots = label_spots(centres, np.array(sizes), axes.bbox.extents, np.array(taken), half)
    for point, size, offset in zip(points, sizes, spots - centres, strict=True):
        far = (np.abs(offset) > size / 2 + 2 * half).any()
        _write_label(axes, point, offset / pixels, colours[point.series], far=bool(far))


def _write_label(
    axes: Any, point: TradeoffPoint, offset_pt: np.ndarray, colour: Colour, *, far: bool
) -> None:
    from matplotlib.patheffects import withStroke

    dark = tuple(0.62 * part for part in rgb(colour))  # light colours are no colours for text
    line = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.7, "shrinkA": 1, "shrinkB": 3}
    note = axes.annotate(
        point.label,
        (point.bits, point.score),
        xytext=tuple(offset_pt),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=_LABEL_PT,
        color=dark,
        path_effects=[withStroke(linewidth=2, foreground="white")],
        arrowprops=line if far else None,
    )
    note.set_in_layout(False)  # the layout is settled: labels stay inside of the axes
