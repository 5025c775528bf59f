"""The mask codec agrees with pycocotools on valid masks and names a reason for every invalid one."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from samtok import masks
from samtok.errors import DataError

HEIGHT, WIDTH = 7, 10
L_SHAPE = np.zeros((HEIGHT, WIDTH), dtype=bool)
L_SHAPE[1:6, 2:4] = True
L_SHAPE[4:6, 2:9] = True
UPRIGHT, FOOT = [2, 1, 4, 1, 4, 6, 2, 6], [2, 4, 9, 4, 9, 6, 2, 6]

dense_masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24))
mask_pairs = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=16).flatmap(
    lambda shape: st.tuples(*[hnp.arrays(bool, shape) for _ in range(3)])
)


def _coco_rle(mask: np.ndarray) -> dict[str, Any]:
    return coco.encode(np.asfortranarray(mask, dtype=np.uint8))


def _runs(mask: np.ndarray) -> list[int]:
    flat = [0, *mask.ravel(order="F").astype(int).tolist()]
    edges = [i for i in range(1, len(flat)) if flat[i] != flat[i - 1]]
    return np.diff([1, *edges, len(flat)]).tolist()


def _size(mask: np.ndarray) -> dict[str, int]:
    return {"height": mask.shape[0], "width": mask.shape[1]}


@given(dense_masks)
@example(np.ones((3, 5), dtype=bool))
@example(np.zeros((3, 5), dtype=bool))
def test_a_mask_survives_the_round_trip_and_is_written_as_pycocotools_writes_it(mask):
    counts = masks.encode(mask)
    assert counts == _coco_rle(mask)["counts"].decode()
    decoded = masks.decode(counts, **_size(mask))
    assert decoded.dtype == bool and decoded.flags.c_contiguous
    np.testing.assert_array_equal(decoded, mask)


def test_integer_masks_count_every_value_but_zero_as_inside():
    assert masks.encode(L_SHAPE.astype(np.uint8) * 255) == masks.encode(L_SHAPE)
    assert masks.encode(np.array([[1, 2], [0, 3]], dtype=np.int64)) == masks.encode(
        np.array([[1, 1], [0, 1]])
    )


@pytest.mark.parametrize("mask", [np.ones((2, 3, 4), bool), np.ones((2, 3)), np.ones((0, 3), bool)])
def test_encode_refuses_arrays_that_are_not_masks(mask):
    with pytest.raises(ValueError, match="non-empty \\(height, width\\) array"):
        masks.encode(mask)


@pytest.mark.parametrize(
    "segmentation",
    [
        [UPRIGHT, FOOT],
        (UPRIGHT, FOOT),
        [np.array(UPRIGHT, np.float32), np.array(FOOT)],
        {"size": [HEIGHT, WIDTH], "counts": _runs(L_SHAPE)},
        {"size": [HEIGHT, WIDTH], "counts": np.array(_runs(L_SHAPE), np.uint32)},
        {"size": [HEIGHT, WIDTH], "counts": [0, 0, *_runs(L_SHAPE)]},
        {"size": [HEIGHT, WIDTH], "counts": _coco_rle(L_SHAPE)["counts"]},
        {"size": (float(HEIGHT), WIDTH), "counts": _coco_rle(L_SHAPE)["counts"].decode()},
        {"size": np.array([HEIGHT, WIDTH]), "counts": _coco_rle(L_SHAPE)["counts"]},
        [_coco_rle(L_SHAPE & (np.arange(WIDTH) < 4)), _coco_rle(L_SHAPE & (np.arange(WIDTH) >= 3))],
        [_coco_rle(L_SHAPE), {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}],
    ],
)
def test_all_forms_of_one_mask_give_the_same_counts(segmentation):
    counts = masks.to_counts(segmentation, height=HEIGHT, width=WIDTH)
    assert counts == masks.encode(L_SHAPE)


@pytest.mark.parametrize("nothing", [None, [], {}, ()])
def test_a_missing_mask_is_none(nothing):
    assert masks.to_counts(nothing, height=HEIGHT, width=WIDTH) is None


@pytest.mark.parametrize(
    "empty",
    [
        {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]},
        _coco_rle(np.zeros((HEIGHT, WIDTH))),
        [[100, 100, 110, 100, 110, 110]],
    ],
)
def test_a_mask_without_pixels_is_a_mask_of_area_zero(empty):
    counts = masks.to_counts(empty, height=HEIGHT, width=WIDTH)
    assert counts == masks.encode(np.zeros((HEIGHT, WIDTH), bool))
    assert masks.area(counts, height=HEIGHT, width=WIDTH) == 0
    assert masks.box_xyxy(counts, height=HEIGHT, width=WIDTH) is None


@given(dense_masks, st.lists(st.integers(0, 400), max_size=6))
def test_runs_of_no_pixels_do_not_change_the_counts(mask, places):
    runs = _runs(mask)
    for place in places:
        runs[place % len(runs) : place % len(runs)] = [0, 0]
    if len(runs) > mask.size + 1:
        runs = _runs(mask)
    segmentation = {"size": list(mask.shape), "counts": runs}
    assert masks.to_counts(segmentation, **_size(mask)) == masks.encode(mask)


def test_short_and_odd_polygons_are_dropped_when_others_remain():
    segmentation = [[1, 1, 5, 5], [2, 2, 3], [], UPRIGHT, [1, 1, 2, 2, 3, 3, 4], FOOT]
    assert masks.to_counts(segmentation, height=HEIGHT, width=WIDTH) == masks.encode(L_SHAPE)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # coco.decode on numpy 2
@settings(max_examples=60)
@given(
    st.lists(
        st.lists(st.floats(-30, 30), min_size=6, max_size=16).filter(lambda p: len(p) % 2 == 0),
        min_size=1,
        max_size=3,
    )
)
def test_polygons_are_the_union_of_what_pycocotools_draws(polygons):
    parts = coco.decode(coco.frPyObjects(polygons, HEIGHT, WIDTH))
    counts = masks.to_counts(polygons, height=HEIGHT, width=WIDTH)
    np.testing.assert_array_equal(masks.decode(counts, height=HEIGHT, width=WIDTH), parts.sum(axis=2) > 0)


GOOD = _coco_rle(L_SHAPE)["counts"].decode()
SIZE = [HEIGHT, WIDTH]


@pytest.mark.parametrize(
    ("segmentation", "reason", "message"),
    [
        ({"size": SIZE, "counts": [10, 5]}, "rle_sum", "add up to 15 pixels, expected 7x10 = 70"),
        ({"size": SIZE, "counts": [60, 20]}, "rle_sum", "add up to 80"),
        ({"size": SIZE, "counts": [2**63 + 5]}, "rle_sum", "a run of"),
        ({"size": SIZE, "counts": [10, 2**62]}, "rle_sum", "a run of"),
        ({"size": SIZE, "counts": GOOD[:-1]}, "rle_sum", "cut off"),
        ({"size": SIZE, "counts": GOOD + "1"}, "rle_sum", "another image"),
        ({"size": SIZE, "counts": "oooooo0"}, "rle_sum", "larger step"),
        ({"size": SIZE, "counts": ""}, "rle_sum", "add up to 0"),
        ({"size": SIZE, "counts": []}, "rle_sum", "add up to 0"),
        ({"size": SIZE, "counts": [-5, 70, 5]}, "rle_counts", "a run of -5"),
        ({"size": SIZE, "counts": "0O0"}, "rle_counts", "a run of -1"),
        ({"size": SIZE, "counts": [70.0]}, "rle_counts", "list of integers, got 1 dimensions of float"),
        ({"size": SIZE, "counts": ["70"]}, "rle_counts", "list of integers"),
        ({"size": SIZE, "counts": [True]}, "rle_counts", "list of integers"),
        ({"size": SIZE, "counts": [[70]]}, "rle_counts", "2 dimensions"),
        ({"size": SIZE, "counts": [70, [1]]}, "rle_counts", "list of integers"),
        ({"size": SIZE, "counts": [10**30]}, "rle_counts", "list of integers"),
        ({"size": SIZE, "counts": GOOD + "p"}, "rle_counts", "outside codes 48 to 111"),
        ({"size": SIZE, "counts": GOOD + " "}, "rle_counts", "outside codes 48 to 111"),
        ({"size": SIZE, "counts": GOOD + "é"}, "rle_counts", "not ASCII"),
        ({"size": SIZE, "counts": GOOD + "P"}, "rle_counts", "end inside a number"),
        ({"size": SIZE, "counts": "PPPPPPP0"}, "rle_counts", "a number of 8 digits"),
        ({"size": [WIDTH, HEIGHT], "counts": GOOD}, "rle_size", "height and width are swapped"),
        ({"size": [HEIGHT, 11], "counts": GOOD}, "rle_size", r"the image has \[7, 10\]\.$"),
        ({"counts": GOOD}, "rle_size", "got None"),
        ({"size": 70, "counts": GOOD}, "rle_size", "got 70"),
        ({"size": ["7", "10"], "counts": GOOD}, "rle_size", "states the size"),
        ([_coco_rle(L_SHAPE), _coco_rle(L_SHAPE.T)], "rle_size", "swapped"),
        ([_coco_rle(L_SHAPE), None], "segmentation_type", "NoneType where a dict"),
        ([{"size": SIZE}], "segmentation_type", "dict where a dict with size and counts"),
        ({"size": SIZE, "counts": None}, "segmentation_type", "counts are a NoneType"),
        ([1, 2, 3, 4, 5, 6], "segmentation_type", "a list of int"),
        ([None], "segmentation_type", "a list of NoneType"),
        ("polygon", "segmentation_type", "is a str"),
        ([[1, 1, 5, 5]], "polygon_invalid", "they have \\[4\\] numbers"),
        ([[1, 1, 5, 5, 3, 3, 3], [1, 2], []], "polygon_invalid", "none of 3 polygons"),
        ([np.array([1.0, 1, 5, 5])], "polygon_invalid", "they have \\[4\\] numbers"),
        ([[1, 1, 5, float("nan"), 3, 3]], "polygon_invalid", "not finite"),
        ([[1, 1, 5, float("-inf"), 3, 3]], "polygon_invalid", "not finite"),
        ([[1, 1, 5, None, 3, 3]], "polygon_invalid", "of object"),
        ([["1", "1", "5", "1", "3", "3"]], "polygon_invalid", "flat list of numbers"),
        ([[[1, 1], [5, 1], [3, 3]]], "polygon_invalid", "2 dimensions"),
        ([UPRIGHT, [1, 1, 5, [2], 3, 3]], "polygon_invalid", "not a list of numbers"),
        ([[0, 0, 1e7, 0, 1e7, 5, 0, 5]], "too_large", "are the coordinates in pixels"),
        ([[0, 0, 1e300, 0, 1e300, 5, 0, 5]], "too_large", "a coordinate of 1e\\+300 px"),
        ([[1e12, 1e12] * 4], "too_large", "a coordinate of"),
        ({"size": SIZE, "counts": "0" * 1000}, "too_large", "1000 characters"),
        ({"size": SIZE, "counts": [0] * 72}, "too_large", "has 72 runs"),
        ({"size": SIZE, "counts": "0" * 72}, "too_large", "has 72 runs"),
    ],
)
def test_malformed_masks_are_refused_with_a_reason(segmentation, reason, message):
    with pytest.raises(DataError, match=message) as caught:
        masks.to_counts(segmentation, height=HEIGHT, width=WIDTH)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("height", "width", "reason"),
    [(0, 5, "size_invalid"), (5, -1, "size_invalid"), (2**15, 2**14, "too_large")],
)
def test_impossible_image_sizes_are_refused_before_anything_is_allocated(height, width, reason):
    segmentation = {"size": [height, width], "counts": [height * width]}
    for act in (
        lambda: masks.to_counts(segmentation, height=height, width=width),
        lambda: masks.to_counts(None, height=height, width=width),
        lambda: masks.decode("0", height=height, width=width),
        lambda: masks.union([], height=height, width=width),
    ):
        with pytest.raises(DataError) as caught:
            act()
        assert caught.value.reason == reason


def test_a_lower_pixel_limit_can_be_asked_for():
    with pytest.raises(DataError, match="expected at most 69"):
        masks.to_counts([UPRIGHT], height=HEIGHT, width=WIDTH, max_pixels=69)


@pytest.mark.parametrize("size", [4, 2**14])
def test_masks_of_the_largest_size_stay_in_run_space(size):
    segmentation = {"size": [size, size], "counts": [1, size * size - 1]}
    counts = masks.to_counts(segmentation, height=size, width=size)
    assert masks.area(counts, height=size, width=size) == size * size - 1
    assert masks.box_xyxy(counts, height=size, width=size) == (0, 0, size - 1, size - 1)
    assert masks.union([counts, counts], height=size, width=size) == counts


@pytest.mark.parametrize("counts", ["0" * (2**22 + 1), [0] * (2**22 + 1)])
def test_very_long_counts_are_refused_unread_even_for_large_images(counts):
    with pytest.raises(
        DataError, match=r"has 4194305 runs|have 4194305 characters, expected at most 4194304"
    ):
        masks.to_counts({"size": [2**14, 2**14], "counts": counts}, height=2**14, width=2**14)


@given(dense_masks)
def test_area_and_box_equal_those_of_the_dense_mask(mask):
    counts = masks.encode(mask)
    assert masks.area(counts, **_size(mask)) == mask.sum()
    rows, columns = np.nonzero(mask)
    box = (columns.min(), rows.min(), columns.max(), rows.max()) if rows.size else None
    assert masks.box_xyxy(counts, **_size(mask)) == box
    assert masks.box_of(mask) == box


@pytest.mark.slow
@pytest.mark.numerics
@given(mask_pairs)
def test_union_is_the_dense_or_in_any_order(parts):
    size = _size(parts[0])
    counts = [masks.encode(part) for part in parts]
    expected = masks.encode(parts[0] | parts[1] | parts[2])
    assert masks.union(counts, **size) == expected
    assert masks.union([*counts[::-1], counts[1]], **size) == expected


def test_the_union_of_no_masks_is_the_empty_mask():
    assert masks.union([], height=HEIGHT, width=WIDTH) == masks.encode(np.zeros((HEIGHT, WIDTH), bool))


def test_iou_counts_pixels_and_two_empty_masks_agree():
    empty = np.zeros((HEIGHT, WIDTH), bool)
    half = L_SHAPE & (np.arange(WIDTH) < 4)
    assert masks.iou(L_SHAPE, L_SHAPE) == 1.0
    assert masks.iou(half, L_SHAPE) == half.sum() / L_SHAPE.sum() == 0.5
    assert masks.iou(L_SHAPE, empty) == 0.0
    assert masks.iou(empty, empty) == 1.0


@pytest.mark.slow
@pytest.mark.numerics
@given(st.text(max_size=40) | st.binary(max_size=40).map(lambda raw: raw.decode("latin1")))
@example("0" * 71)
def test_any_string_decodes_to_a_mask_of_the_right_size_or_is_refused(text):
    try:
        mask = masks.decode(text, height=HEIGHT, width=WIDTH)
    except DataError as error:
        assert error.reason in {"rle_counts", "rle_sum", "too_large"}
    else:
        assert mask.shape == (HEIGHT, WIDTH)
        assert coco.area({"size": SIZE, "counts": text.encode()}) == mask.sum()
