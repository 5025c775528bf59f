"""Polygons become the pixels that Pillow fills, and contours of a mask become that mask."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from pipelines.ingestion import painting
from pipelines.ingestion.painting import Canvas
from samtok import masks
from samtok.errors import DataError
from samtok.shapes import trace_contours


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-9, 20), st.integers(-9, 20)), min_size=3, max_size=9),
    st.integers(1, 12),
    st.integers(1, 12),
)
def test_a_polygon_is_filled_as_pillow_fills_it_on_a_canvas_that_has_room(corners, height, width):
    image = Image.new("1", (40, 40))
    ImageDraw.Draw(image).polygon([(x + 10, y + 10) for x, y in corners], fill=1)
    expected = np.asarray(image)[10 : 10 + height, 10 : 10 + width]
    canvas = Canvas(height, width)
    filled = canvas.filled(corners)
    canvas.paint(3, filled)
    found = canvas.painted()
    assert (3 in found) == bool(expected.any())
    assert found.get(3, {}).get("counts", masks.encode(expected)) == masks.encode(expected)
    whole = painting.placed(filled.pixels, filled.x0, filled.y0, height, width)
    assert whole == {"size": [height, width], "counts": masks.encode(expected)}


@pytest.mark.slow
@pytest.mark.numerics
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_contours_of_any_mask_are_filled_to_that_mask(data):
    height, width = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 8))
    cells = st.lists(st.booleans(), min_size=height * width, max_size=height * width)
    mask = np.array(data.draw(cells)).reshape(height, width)
    canvas = Canvas(height, width)
    for contour in trace_contours(mask):
        canvas.paint(1, canvas.filled(contour))
    seen = canvas.painted()
    assert (seen[1]["counts"] == masks.encode(mask)) if mask.any() else not seen


def test_more_corners_than_an_image_can_have_are_refused(monkeypatch):
    monkeypatch.setattr(painting, "MAX_CORNERS", 7)
    canvas = Canvas(9, 9)
    canvas.filled([(0, 0), (3, 0), (3, 3), (0, 3)])
    with pytest.raises(DataError, match="over 7 corners"):
        canvas.filled([(0, 0), (3, 0), (3, 3), (0, 3)])
