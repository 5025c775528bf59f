"""Where the time of a training step goes, as one picture."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from samtok.plots.base import LINES, figure_of, png_of, rgb
from samtok.plots.curves import thinned

MOST_STAIRS = 300
"""Steps that are drawn one by one; of more, neighbours are averaged."""


def parts_plot(
    steps: Sequence[float] | np.ndarray,
    parts: Mapping[str, Sequence[float] | np.ndarray],
    *,
    title: str,
    y_label: str,
) -> bytes:
    """Returns parts of a whole over ascending steps, stacked in their order, as a PNG file.

    A part has one value per step, from 0; what is not finite counts as 0.

    Raises:
        ValueError: If there is no step or no part, or a part has not one value per step.
    """
    places = np.asarray(steps, np.float64)
    if not len(places) or not parts:
        raise ValueError(f"there is nothing to plot: got {len(places)} steps and {len(parts)} parts.")
    figure, (axes,) = figure_of(1, title, height_in=3.2, width_in=11.0)
    shown, foot = thinned(places, places, MOST_STAIRS)[0], np.zeros(min(len(places), MOST_STAIRS))
    inner = (shown[1:] + shown[:-1]) / 2  # a stair goes halfway to its neighbours
    first, last = (inner[0] - shown[0], shown[-1] - inner[-1]) if len(inner) else (0.5, 0.5)
    edges = np.concatenate([[shown[0] - first], inner, [shown[-1] + last]])
    for (name, values), colour in zip(parts.items(), itertools.cycle(LINES), strict=False):
        heights = np.asarray(values, np.float64)
        if heights.shape != places.shape:
            raise ValueError(
                f"part {name!r} has {len(heights)} values for {len(places)} steps, expected one each."
            )
        heights = thinned(places, np.where(np.isfinite(heights), heights, 0.0), MOST_STAIRS)[1]
        top = foot + heights
        axes.stairs(top, edges, baseline=foot, fill=True, color=rgb(colour), label=name, linewidth=0)
        foot = top
    highest = 1.05 * float(foot.max()) or 1.0
    axes.set(xlim=(edges[0], edges[-1]), ylim=(0, highest), xlabel="step", ylabel=y_label)
    figure.legend(loc="outside lower left", ncols=len(parts), frameon=False, fontsize=9)
    return png_of(figure)
