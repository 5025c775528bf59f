"""The curves of a training run as one picture of small multiples, as clear for 5 steps as for 200000."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from samtok.plots.base import FAINT, GOOD, INK, LINES, figure_of, png_of, rgb, subtitle
from samtok.plots.pictures import MISSED, Colour

MOST_POINTS = 2000
"""Points of a curve that are drawn; of more, neighbours are averaged."""
_FEW_POINTS = 60  # up to here, every point is marked
_ROOM_IN = 4.3  # width of a panel without its numbers
_SMOOTHING = 0.02  # window of the running mean, as a share of the curve
_LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 9, "handlelength": 1.4, "columnspacing": 1.2}


@dataclass(frozen=True)
class Curve:
    """One line over training steps.

    Attributes:
        steps: Ascending.
        values: One per step; what is not finite leaves a gap.
        noisy: Draw a running mean, and the values themselves faintly behind it.
    """

    label: str
    steps: Sequence[float] | np.ndarray
    values: Sequence[float] | np.ndarray
    noisy: bool = False


@dataclass(frozen=True)
class CurvePanel:
    """Curves with one axis.

    Attributes:
        curves: Those without a single number are left out.
        log: Logarithmic axis; values of 0 and below leave a gap.
        limits: Lowest and highest value shown; by default those of the curves.
    """

    title: str
    curves: Sequence[Curve]
    log: bool = False
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Events:
    """What is marked in every panel, in steps.

    Attributes:
        quantized_from: Where codes begin: a dashed line.
        best: With the best held-out result: a dotted line.
        skipped: Left out: ticks at the foot.
    """

    quantized_from: int | None = None
    best: int | None = None
    skipped: Sequence[int] = ()


def curves_plot(
    panels: Sequence[CurvePanel], events: Events | None = None, *, title: str = "Training"
) -> bytes:
    """Returns panels over the same steps, two beside each other, as a PNG file.

    Raises:
        ValueError: If there is no panel, or a curve has not one value per step.
    """
    from matplotlib.ticker import MaxNLocator

    if not panels:
        raise ValueError("there is nothing to plot, expected at least one panel.")
    events, columns = events or Events(), min(2, len(panels))
    figure, all_axes = figure_of(len(panels), title, height_in=2.7, width_in=5.5 * columns, columns=columns)
    extent = _extent(panels)
    for place, (panel, axes) in enumerate(zip(panels, all_axes, strict=True)):
        _draw_panel(axes, panel)
        _draw_events(axes, events)
        axes.set_xlim(*extent)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(_short_number)
        if place // columns == (len(panels) - 1) // columns:
            axes.set_xlabel("step")
    if marks := _legend_of(events):
        figure.legend(handles=marks, loc="outside lower left", ncols=len(marks), **_LEGEND)
    return png_of(figure)


def thinned(
    steps: Float[np.ndarray, " point"], values: Float[np.ndarray, " point"], most: int = MOST_POINTS
) -> tuple[Float[np.ndarray, " kept"], Float[np.ndarray, " kept"]]:
    """Averages neighbours until at most ``most`` points are left; only NaNs among themselves stay NaN."""
    if len(steps) <= most:
        return steps, values
    starts = np.linspace(0, len(steps), most + 1)[:-1].astype(np.int64)
    known = np.isfinite(values)
    counts = np.add.reduceat(known.astype(np.float64), starts)
    sums = np.add.reduceat(np.where(known, values, 0.0), starts)
    means = np.divide(sums, counts, out=np.full(most, np.nan), where=counts > 0)
    return np.add.reduceat(steps, starts) / np.diff(starts, append=len(steps)), means


def running_mean(values: Float[np.ndarray, " point"], window: int) -> Float[np.ndarray, " point"]:
    """Returns means over a centred odd window, narrower at the ends; NaN stays and counts for nothing."""
    reach = min(window, len(values)) // 2
    known, kernel = np.isfinite(values), np.ones(2 * reach + 1)
    sums = np.convolve(np.pad(np.where(known, values, 0.0), reach), kernel, mode="valid")
    counts = np.convolve(np.pad(known.astype(np.float64), reach), kernel, mode="valid")
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=known)


def _extent(panels: Sequence[CurvePanel]) -> tuple[float, float]:
    ends = [float(end) for p in panels for c in p.curves if len(c.steps) for end in (c.steps[0], c.steps[-1])]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    room = 0.015 * (high - low) or 0.5
    return low - room, high + room


def _draw_panel(axes: Any, panel: CurvePanel) -> None:
    shown = [(curve, *_numbers_of(curve, positive=panel.log)) for curve in panel.curves]
    shown = [entry for entry in shown if np.isfinite(entry[2]).any()]
    for (curve, steps, values), colour in zip(shown, itertools.cycle(LINES), strict=False):
        _draw_curve(axes, curve, steps, values, colour)
    labels = [curve.label for curve, *_ in shown] if len(shown) > 1 else []
    width_in = 0.075 * len(panel.title) + sum(0.43 + 0.068 * len(label) for label in labels)  # about
    subtitle(axes, panel.title, raised=width_in > _ROOM_IN)
    if not shown:
        axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", color=rgb(FAINT))
        axes.set_yticks([])
        return
    _scale(axes, panel)
    if labels:
        corner = {"loc": "lower right", "bbox_to_anchor": (1.0, 0.985), "borderaxespad": 0.2}
        axes.legend(ncols=len(shown), **corner, **_LEGEND)


def _numbers_of(curve: Curve, *, positive: bool) -> tuple[np.ndarray, np.ndarray]:
    steps, values = np.asarray(curve.steps, np.float64), np.asarray(curve.values, np.float64)
    if steps.shape != values.shape:
        raise ValueError(
            f"curve {curve.label!r} has {len(values)} values for {len(steps)} steps, expected one each."
        )
    usable = np.isfinite(values) & (values > 0 if positive else True)
    return thinned(steps, np.where(usable, values, np.nan))


def _draw_curve(axes: Any, curve: Curve, steps: np.ndarray, values: np.ndarray, colour: Colour) -> None:
    known, line = np.isfinite(values), {"color": rgb(colour), "linewidth": 1.6, "label": curve.label}
    if known.sum() <= _FEW_POINTS:
        axes.plot(steps[known], values[known], marker="o", markersize=3.4, **line)
        return
    if curve.noisy:
        axes.plot(steps, values, color=rgb(colour), linewidth=0.6, alpha=0.3)
        values = running_mean(values, max(3, round(_SMOOTHING * len(values))))
    axes.plot(steps[known], values[known], **line)


def _scale(axes: Any, panel: CurvePanel) -> None:
    if panel.limits is not None:
        axes.set_ylim(*panel.limits)
    if not panel.log:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.6g}")
        return
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
    axes.yaxis.set_minor_formatter(_between_decades(math.log10(high / low)))
    axes.tick_params(axis="y", which="minor", labelsize=8)


def _between_decades(shown: float) -> Callable[[float, int | None], str]:
    """Returns what writes the numbers between powers of ten: all of them, 2 and 5, or none."""

    def text(value: float, _: int | None) -> str:
        digit = round(value / 10 ** math.floor(math.log10(value)), 6)
        return f"{value:.4g}" if shown < 0.5 or (shown < 3 and digit in (2, 5)) else ""

    return text


def _draw_events(axes: Any, events: Events) -> None:
    for at, colour, style in ((events.quantized_from, INK, "--"), (events.best, GOOD, ":")):
        if at is not None:
            axes.axvline(at, color=rgb(colour), linestyle=style, linewidth=1.3, zorder=1)
    if len(events.skipped):
        heights = np.full(len(events.skipped), 0.03)
        place = {"transform": axes.get_xaxis_transform(), "markersize": 9, "markeredgewidth": 1.5}
        axes.plot(events.skipped, heights, "|", color=rgb(MISSED), **place)


def _legend_of(events: Events) -> list[Any]:
    from matplotlib.lines import Line2D

    found: list[tuple[str, Colour, dict[str, Any]]] = []
    if events.quantized_from is not None:
        found.append((f"quantized from step {events.quantized_from:,}", INK, {"linestyle": "--"}))
    if events.best is not None:
        found.append((f"best on held-out data: step {events.best:,}", GOOD, {"linestyle": ":"}))
    if count := len(events.skipped):
        tick = {"linestyle": "", "marker": "|", "markersize": 9, "markeredgewidth": 1.5}
        found.append((f"{count:,} skipped step{'s' if count > 1 else ''}", MISSED, tick))
    return [
        Line2D([], [], color=rgb(colour), linewidth=1.3, label=label, **style)
        for label, colour, style in found
    ]


def _short_number(value: float, _: int | None = None) -> str:
    """Writes 20000 as 20k."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"
