"""Numbers of several models with their intervals, one panel per metric."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from samtok.plots.base import BARS, FAINT, INK, LINES, figure_of, png_of, rgb, subtitle

COLUMNS = 4
"""Most panels beside each other; rows of panels are about equally long."""
_ROOM_IN, _ROW_IN = 0.9, 0.3  # heights of a panel without its lines, and of a line


@dataclass(frozen=True)
class Mark:
    """One number: a dot with its interval, or a hollow diamond where there is none.

    Attributes:
        low: Lower end; None for a number without interval.
        high: Upper end.
        published: Of others, so it is drawn apart from what was measured here.
    """

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    published: bool = False


@dataclass(frozen=True)
class MarkPanel:
    """Numbers of one metric, from top to bottom; a dashed line stands at ``baseline``."""

    title: str
    marks: Sequence[Mark]
    baseline: float | None = None


def interval_plot(panels: Sequence[MarkPanel], *, title: str) -> bytes:
    """Returns panels of numbers with intervals, up to four beside each other, as a PNG file.

    Labels of all panels are the same lines, so a model is found at one height; one without a number in a
    panel leaves its line empty.

    Raises:
        ValueError: If there is no panel.
    """
    if not panels:
        raise ValueError("there must be a panel, got none.")
    labels = list(dict.fromkeys(mark.label for panel in panels for mark in panel.marks))
    columns = math.ceil(len(panels) / math.ceil(len(panels) / COLUMNS))
    height_in = _ROOM_IN + _ROW_IN * len(labels)
    figure, all_axes = figure_of(
        len(panels), title, height_in=height_in, width_in=2.2 + 2.6 * columns, columns=columns
    )
    for number, (panel, axes) in enumerate(zip(panels, all_axes, strict=True)):
        _draw(axes, panel, labels, with_labels=number % columns == 0)
    return png_of(figure)


def _draw(axes: Any, panel: MarkPanel, labels: Sequence[str], *, with_labels: bool) -> None:
    subtitle(axes, panel.title)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="0.9")
    axes.set(ylim=(len(labels) - 0.4, -0.6), yticks=range(len(labels)))
    axes.set_yticklabels(labels if with_labels else [], fontsize=9, color=rgb(INK))
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.locator_params(axis="x", nbins=4)
    if panel.baseline is not None and math.isfinite(panel.baseline):
        axes.axvline(panel.baseline, color=rgb(FAINT), linestyle="--", linewidth=1.0, zorder=1)
    for mark in panel.marks:
        _mark(axes, mark, labels.index(mark.label))
    axes.margins(x=0.12)


def _mark(axes: Any, mark: Mark, height: int) -> None:
    if not math.isfinite(mark.value):
        return
    colour, ends = rgb(LINES[3] if mark.published else BARS), [mark.low, mark.high]
    if None in ends:
        axes.plot([mark.value], [height], "D", color=colour, markersize=5.5, markerfacecolor="white")
    else:
        axes.plot(ends, [height, height], color=colour, linewidth=2.2, solid_capstyle="round")
        axes.plot([mark.value], [height], "o", color=colour, markersize=6.5, markeredgecolor="white")
