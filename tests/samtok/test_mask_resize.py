"""Masks made small from their runs are what PyTorch makes of their pixels."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.nn import functional

from samtok import mask_resize, masks
from samtok.mask_resize import SmallMasks
from samtok.masks import RunMask

SIZES = [(1, 1, 16), (3, 5, 16), (1, 400, 64), (33, 1, 64), (7, 300, 64), (64, 64, 16), (100, 77, 256)]
LARGE = [(255, 257, 256), (480, 640, 256), (1500, 2250, 256)]


def shapes(height: int, width: int) -> list[np.ndarray]:
    """Returns masks of every kind of outline: blobs, noise, all pixels, none, one, rows and columns."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    blobs = [
        ((x - rng.uniform(0, width)) / (share * width + 1)) ** 2
        + ((y - rng.uniform(0, height)) / (share * height + 1)) ** 2
        < 1
        for share in (0.05, 0.2, 0.6)
    ]
    one, row, column = (np.zeros((height, width), bool) for _ in range(3))
    one[-1, -1] = row[height // 2] = column[:, width // 2] = True
    plain = [np.ones((height, width), bool), np.zeros((height, width), bool), one, row, column]
    return [*blobs, rng.random((height, width)) < 0.5, *plain]


def full(dense: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(dense)).float()[:, None]


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize(("height", "width", "size"), SIZES + LARGE)
def test_all_ways_equal_pytorch(height, width, size):
    dense = shapes(height, width)
    runs, pixels = [RunMask.of_dense(mask) for mask in dense], full(dense)
    wanted = functional.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)[:, 0]
    soft = mask_resize.soft(runs, size).dense()
    assert np.abs(soft - wanted.numpy()).max() < 1e-6
    assert soft.min() == 0 and soft.max() == 1 and (soft[4] == 1).all() and (soft[5] == 0).all()
    wanted = functional.adaptive_avg_pool2d(pixels, size)[:, 0]
    assert np.abs(mask_resize.area(runs, size).dense() - wanted.numpy()).max() < 1e-6
    wanted = functional.interpolate(pixels, size=(size, size), mode="nearest")[:, 0]
    assert np.array_equal(mask_resize.nearest(runs, size).dense(), wanted.numpy())


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)), st.sampled_from([1, 3, 16]))
def test_any_mask_is_what_its_pixels_say(mask, size):
    runs = RunMask.of_dense(mask)
    assert np.array_equal(runs.dense(), mask) and runs.dense().flags["C_CONTIGUOUS"]
    assert runs.area == mask.sum() and runs.box_xyxy == masks.box_of(mask)
    height, width = mask.shape
    again = RunMask.of_counts(masks.encode(mask), height=height, width=width)
    assert np.array_equal(again.starts, runs.starts) and np.array_equal(again.ends, runs.ends)
    wanted = functional.interpolate(full([mask]), size=(size, size), mode="bilinear", antialias=True)
    assert np.abs(mask_resize.soft([runs], size).dense() - wanted[:, 0].numpy()).max() < 1e-6


def test_a_mask_and_its_complement_add_up_to_one_exactly():
    """Sums are of whole numbers, so nothing is lost."""
    for mask in shapes(480, 641):
        pair = [RunMask.of_dense(mask), RunMask.of_dense(~mask)]
        first, second = mask_resize.soft(pair, 256).dense().astype(np.float64)
        assert np.abs(first + second - 1).max() <= 2**-24  # the rounding to float32


def test_masks_are_the_same_alone_and_among_others_and_in_any_order():
    runs = [RunMask.of_dense(mask) for mask in shapes(60, 90)]
    together = mask_resize.soft(runs, 32)
    for i, mask in enumerate(runs):
        alone = mask_resize.soft([mask], 32)
        assert np.array_equal(together[i : i + 1].values, alone.values)
        assert np.array_equal(together.take([i]).boxes, alone.boxes)
    chosen = together.take([3, 0, 5])
    assert np.array_equal(chosen.dense(), together.dense()[[3, 0, 5]])
    assert np.array_equal(SmallMasks.join([together[:2], together[2:]], 32).dense(), together.dense())
    assert len(SmallMasks.join([], 32)) == 0 and together[4:2].values.size == 0


def test_a_side_too_long_to_keep_its_weights_gives_the_same(monkeypatch):
    runs = [RunMask.of_dense(mask) for mask in shapes(50, 300)]
    kept = mask_resize.soft(runs, 64).dense()
    monkeypatch.setattr(mask_resize, "_CACHED_SIDE", 100)
    assert np.array_equal(mask_resize.soft(runs, 64).dense(), kept)
