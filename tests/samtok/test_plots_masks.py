"""The plot of IoU against area: for few masks and many, and areas that cannot be."""

import io

import numpy as np
import pytest
from PIL import Image

from samtok.plots.masks import MAX_DOTS, iou_area_plot


def drawn(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    data = iou_area_plot(rng.random(count), 10 ** rng.uniform(0, 6, count))
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize("count", [0, 1, 200, MAX_DOTS + 1])
def test_any_number_of_masks_is_drawn(count):
    picture = drawn(count)
    assert picture.shape[0] > 300 and picture.shape[1] > 500
    has_line = (picture == (213, 94, 0)).all(axis=-1).any()
    assert has_line == (count >= 200)  # quartiles need a few masks of like size


def test_an_area_of_nothing_is_refused():
    with pytest.raises(ValueError, match=">= 1 px, the smallest is 0"):
        iou_area_plot(np.array([0.5]), np.array([0.0]))
