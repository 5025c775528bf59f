"""Plots of training runs and sweeps: thinning, smoothing, marks, labels that hide nothing, odd input."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from samtok.plots.base import GOOD, INK, LINES
from samtok.plots.curves import Curve, CurvePanel, Events, curves_plot, running_mean, thinned
from samtok.plots.pictures import MISSED
from samtok.plots.tradeoff import TradeoffPoint, label_spots, tradeoff_plot

pytestmark = [pytest.mark.slow, pytest.mark.numerics]


def opened(png):
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


def where(png, colour):
    """Tells which pixels have about a colour; thin lines mix a little with the paper."""
    return (np.abs(opened(png).astype(int) - colour) < 30).all(axis=-1)


def pixels(png, colour):
    return int(where(png, colour).sum())


def panel(num_steps, **options):
    steps = np.arange(1.0, num_steps + 1)
    return CurvePanel("loss", [Curve("total", steps, 1 / steps, noisy=True)], **options)


def test_long_curves_are_thinned_to_means_of_neighbours():
    steps, values = thinned(np.arange(10.0), np.array([1, 3, np.nan, 5, 0, 2, np.nan, np.nan, 7, 7]), 5)
    assert steps.tolist() == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert np.array_equal(values, [2, 5, 1, np.nan, 7], equal_nan=True)


def test_thinning_keeps_the_mean_and_short_curves_whole():
    values = np.random.default_rng(0).normal(size=7001)
    steps, means = thinned(np.arange(7001.0), values)
    assert len(steps) == len(means) == 2000
    assert (np.diff(steps) > 0).all()
    weights = np.diff(np.linspace(0, 7001, 2001).astype(int))
    assert (means * weights).sum() == pytest.approx(values.sum())
    assert thinned(np.arange(3.0), values[:3])[1] is not means
    assert np.array_equal(thinned(np.arange(3.0), values[:3])[1], values[:3])


def test_a_running_mean_is_centred_and_leaves_gaps_as_they_are():
    smooth = running_mean(np.array([0, 3, 6, np.nan, 8, 10]), 3)
    assert np.array_equal(smooth, [1.5, 3, 4.5, np.nan, 9, 9], equal_nan=True)
    assert running_mean(np.array([4.0]), 5).tolist() == [4.0]


@pytest.mark.parametrize("num_steps", [1, 5, 200_000])
def test_a_curve_of_any_length_is_drawn(num_steps):
    assert pixels(curves_plot([panel(num_steps, log=True)]), LINES[0]) > 20


def test_events_are_drawn_in_every_panel_and_named_once():
    panels = [panel(100), panel(100)]
    plain = curves_plot(panels)
    for events, colour in (
        (Events(quantized_from=50), INK),
        (Events(best=70), GOOD),
        (Events(skipped=[10, 20]), MISSED),
    ):
        new = where(curves_plot(panels, events), colour)[:330] & ~where(plain, colour)[:330]
        for part in np.split(new, 2, axis=1):
            assert 5 < part.sum() < 1000, events


def test_rows_of_panels_make_the_picture_higher_and_a_second_column_makes_it_wider():
    sizes = [opened(curves_plot([panel(3)] * count)).shape[:2] for count in (1, 2, 3)]
    assert sizes[0][0] == sizes[1][0] < sizes[2][0]
    assert sizes[0][1] < sizes[1][1] == sizes[2][1]


def test_curves_without_numbers_leave_their_place_empty():
    nothing = [
        Curve("a", [], []),
        Curve("b", [1.0, 2.0], [np.nan, np.inf]),
        Curve("c", [1.0, 2.0], [0.0, -1.0]),
    ]
    png = curves_plot([CurvePanel("loss", nothing, log=True)])
    assert pixels(png, LINES[0]) == 0
    assert pixels(curves_plot([CurvePanel("loss", nothing)]), LINES[0]) > 0  # -1 shows on a plain axis


def test_a_curve_needs_one_value_per_step_and_a_plot_a_panel():
    with pytest.raises(ValueError, match="'total' has 1 values for 2 steps, expected one each"):
        curves_plot([CurvePanel("loss", [Curve("total", [1.0, 2.0], [1.0])])])
    with pytest.raises(ValueError, match="at least one panel"):
        curves_plot([])


def overlap(one, other):
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def test_labels_of_crowded_points_hide_neither_each_other_nor_a_point():
    rng = np.random.default_rng(0)
    centres = rng.uniform((40, 40), (860, 460), size=(40, 2))
    centres[1:4] = centres[0] + [[0, 0], [2, 1], [-1, 3]]  # the same place several times
    sizes = np.tile([44.0, 12.0], (40, 1))
    legend = np.array([[700.0, 0.0, 900.0, 100.0]])
    spots = label_spots(centres, sizes, np.array([0.0, 0.0, 900.0, 500.0]), legend, 6.0)
    boxes = np.hstack([spots - sizes / 2, spots + sizes / 2])
    points = np.hstack([centres - 6, centres + 6])
    assert sum(overlap(a, b) for a, b in itertools.combinations(boxes, 2)) == 0
    assert sum(overlap(a, b) for a in boxes for b in [*points, *legend]) < 0.1 * boxes[0, 2]
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= 900).all()
    assert np.abs(spots - centres).max() < 100


@pytest.mark.parametrize(
    ("centre", "spot"),
    [([50.0, 50.0], [50.0, 61.0]), ([50.0, 90.0], [50.0, 79.0]), ([2.0, 50.0], [18.0, 50.0])],
)
def test_a_lone_label_is_just_above_its_point_if_there_is_room(centre, spot):
    size, area = np.array([[20.0, 10.0]]), np.array([0.0, 0.0, 99.0, 99.0])
    assert label_spots(np.array([centre]), size, area, np.empty((0, 4)), 5.0).tolist() == [spot]


def test_every_series_has_a_colour_and_the_ceiling_a_line():
    points = [TradeoffPoint(kind, f"{n}x1", np.log2(n), n / 999) for kind in "ab" for n in (64, 256)]
    plain, limited = tradeoff_plot(points), tradeoff_plot(points, ceiling=0.9)
    assert all(pixels(plain, LINES[place]) > 20 for place in (0, 1))
    assert pixels(plain, LINES[2]) == pixels(plain, MISSED) == 0
    assert pixels(limited, MISSED) > 100
    assert pixels(tradeoff_plot(points, ceiling=0.9, baseline=0.4), MISSED) > pixels(limited, MISSED)


def test_points_without_a_score_are_left_out():
    failed = TradeoffPoint("a", "64x1", 6.0, float("nan"))
    assert np.array_equal(opened(tradeoff_plot([failed])), opened(tradeoff_plot([])))
