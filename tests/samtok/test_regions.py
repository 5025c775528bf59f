"""Boundary IoU against its definition, and area buckets at their borders."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from samtok import masks
from samtok.metrics import regions


def shrunk(mask: np.ndarray, steps: int) -> np.ndarray:
    """Erodes a mask, padded by background, with a 3x3 square, as the official implementation does."""
    for _ in range(steps):
        padded = np.pad(mask, 1)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
        mask = windows.all(axis=(2, 3))
    return mask


def by_definition(a: np.ndarray, b: np.ndarray, ratio: float) -> float:
    steps = max(1, round(ratio * np.sqrt(a.shape[0] ** 2 + a.shape[1] ** 2)))
    first, second = (mask & ~shrunk(mask, steps) for mask in (a, b))
    return (first & second).sum() / (first | second).sum()


def box(top: int, left: int, bottom: int, right: int, size: tuple[int, int] = (100, 100)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.mark.slow
@pytest.mark.numerics
@settings(deadline=None)
@given(
    arrays.arrays(bool, (23, 31), elements=st.booleans(), fill=st.just(True)),
    arrays.arrays(bool, (23, 31), elements=st.booleans(), fill=st.just(True)),
    st.sampled_from([0.01, 0.02, 0.05, 0.1, 0.4]),
)
def test_boundary_iou_is_the_official_one_for_any_masks(a, b, ratio):
    if (a | b).any():
        assert regions.boundary_iou(a, b, ratio=ratio) == pytest.approx(by_definition(a, b, ratio))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (box(10, 10, 60, 60), box(10, 10, 60, 60)),
        (box(10, 10, 60, 60), box(12, 11, 63, 60)),
        (box(0, 0, 100, 100), box(0, 0, 100, 50)),  # cut off by the image on all sides
        (box(90, 90, 100, 100), box(85, 85, 99, 99)),
        (box(40, 40, 41, 41), box(40, 40, 44, 44)),
        (box(10, 10, 60, 60), box(70, 70, 90, 90)),
    ],
)
@pytest.mark.parametrize("ratio", [0.02, 0.1])
def test_boundary_iou_is_the_official_one_for_boxes(a, b, ratio):
    assert regions.boundary_iou(a, b, ratio=ratio) == pytest.approx(by_definition(a, b, ratio))


def test_the_boundary_of_a_square_is_a_frame_of_the_given_width():
    frame = regions.boundary(box(10, 10, 40, 40), 3)
    assert frame.sum() == 30 * 30 - 24 * 24
    assert not frame[13:37, 13:37].any()


def test_the_boundary_follows_the_image_where_the_mask_touches_it():
    assert regions.boundary(np.ones((20, 20), bool), 2).sum() == 20 * 20 - 16 * 16


def test_a_shifted_mask_loses_more_at_its_boundary_than_in_its_area():
    a, b = box(10, 10, 80, 80), box(13, 13, 83, 83)
    assert regions.boundary_iou(a, b) < 0.4 < masks.iou(a, b)


def test_an_empty_mask_has_boundary_iou_zero_and_two_have_one():
    empty = np.zeros((100, 100), bool)
    assert regions.boundary_iou(empty, empty) == 1.0
    assert regions.boundary_iou(box(10, 10, 20, 20), empty) == 0.0


def test_masks_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match="same size"):
        regions.boundary_iou(box(1, 1, 2, 2), box(1, 1, 2, 2, size=(100, 99)))


def test_the_input_masks_stay_as_they_are():
    a, b = box(10, 10, 12, 12), box(11, 11, 14, 14)
    before = a.copy(), b.copy()
    regions.boundary_iou(a, b)
    assert (a == before[0]).all() and (b == before[1]).all()


@pytest.mark.parametrize(
    ("size", "expected"), [((100, 100), 3), ((10, 10), 1), ((480, 640), 16), ((1024, 1024), 29)]
)
def test_the_boundary_is_a_fiftieth_of_the_diagonal_wide(size, expected):
    assert regions.boundary_width_px(*size) == expected
