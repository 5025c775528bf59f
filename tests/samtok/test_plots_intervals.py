"""Numbers with intervals as a picture: dots, whiskers, diamonds, panels of one height."""

import io

import numpy as np
import pytest
from PIL import Image

from samtok.plots.base import BARS, LINES
from samtok.plots.intervals import Mark, MarkPanel, interval_plot

pytestmark = [pytest.mark.slow, pytest.mark.numerics]

DOT, PUBLISHED = Mark("a", 50.0, 40.0, 60.0), Mark("paper", 70.0, published=True)


def pixels(png: bytes, colour) -> int:
    """Counts pixels of about a colour."""
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    return int((np.abs(picture - colour) < 30).all(axis=-1).sum())


def plotted(*marks: Mark, panels: int = 1, baseline: float | None = None) -> bytes:
    return interval_plot([MarkPanel("gIoU", marks, baseline)] * panels, title="gres")


def test_a_wide_interval_is_a_longer_line_than_a_narrow_one_and_a_diamond_has_none():
    far = Mark("b", 0.0, -60.0, 160.0)
    narrow, wide = (plotted(Mark("a", 50.0, 50.0 - side, 50.0 + side), far) for side in (1, 40))
    assert pixels(wide, BARS) > 1.2 * pixels(narrow, BARS)
    assert pixels(plotted(Mark("a", 50.0)), BARS) < pixels(plotted(DOT), BARS)


def test_published_numbers_have_a_colour_of_their_own():
    assert pixels(plotted(DOT), LINES[3]) == 0
    assert pixels(plotted(DOT, PUBLISHED), LINES[3]) > 20


def test_a_number_that_is_none_leaves_its_line_empty():
    found = plotted(Mark("a", float("nan"), 0.0, 1.0), PUBLISHED, baseline=float("nan"))
    assert pixels(found, BARS) == 0 and pixels(found, LINES[3]) > 20


@pytest.mark.parametrize(("panels", "wide"), [(1, 1), (4, 4), (5, 3), (8, 4), (9, 3)])
def test_panels_fill_rows_of_at_most_four(panels, wide):
    with Image.open(io.BytesIO(plotted(DOT, panels=panels))) as found:
        assert found.width == round(120 * (2.2 + 2.6 * wide))


def test_no_panel_is_refused():
    with pytest.raises(ValueError, match="there must be a panel"):
        interval_plot([], title="gres")
