"""How well masks come back, against their size, as one picture."""

import numpy as np
from jaxtyping import Float

from samtok.metrics.regions import AREA_BUCKETS
from samtok.plots.base import BARS, FAINT, figure_of, png_of, rgb, subtitle
from samtok.plots.pictures import MISSED

MAX_DOTS = 5000
"""Masks that are drawn one by one; of more, their density is drawn."""
_MIN_MASKS = 5  # a quartile of fewer means little
_STEPS_PER_DECADE = 4


def iou_area_plot(iou: Float[np.ndarray, " mask"], area_px: Float[np.ndarray, " mask"]) -> bytes:
    """Returns IoU against area in pixels, at least 1, on a logarithmic axis as a PNG file.

    The line is the median of masks of like size, the band their quartiles; vertical lines are the borders of
    COCO's area buckets.

    Raises:
        ValueError: If an area is below 1.
    """
    if len(area_px) and area_px.min() < 1:
        raise ValueError(f"areas must be >= 1 px, the smallest is {area_px.min():g}.")
    figure, (axes,) = figure_of(1, "Reconstruction against size", height_in=4.4)
    axes.set_xscale("log")
    if len(iou) > MAX_DOTS:
        axes.hexbin(area_px, iou, xscale="log", gridsize=(48, 30), bins="log", mincnt=1, cmap="Blues")
    else:
        axes.plot(area_px, iou, ".", color=rgb(BARS), alpha=0.5, markersize=4, markeredgewidth=0)
    steps = np.floor(np.log10(area_px) * _STEPS_PER_DECADE).astype(int)
    kept = [step for step in np.unique(steps) if (steps == step).sum() >= _MIN_MASKS]
    if kept:
        centres = [10 ** ((step + 0.5) / _STEPS_PER_DECADE) for step in kept]
        parts = [np.quantile(iou[steps == step], (0.25, 0.5, 0.75)) for step in kept]
        low, middle, high = np.array(parts).T
        axes.fill_between(centres, low, high, color=rgb(MISSED), alpha=0.18, linewidth=0)
        axes.plot(centres, middle, color=rgb(MISSED), linewidth=1.8, marker="o", markersize=3.5)
    for _, end in AREA_BUCKETS[:-1]:
        axes.axvline(end, color=rgb(FAINT), linestyle=":", linewidth=1.2)
    axes.set(ylim=(-0.02, 1.02), xlabel="area of the mask in pixels", ylabel="IoU with its reconstruction")
    subtitle(axes, "line and band: median and quartiles; dotted: small, medium, large")
    return png_of(figure)
