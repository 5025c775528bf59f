"""GroundingSuite has the aggregation of the paper's rows, and strict mode counts what is missing."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samtok.errors import DataError
from samtok.metrics.grounding_suite import ALL, CLASSES, box_accuracy, giou, read_box
from samtok.metrics.referring import MODES, Samples

SIZES = (1011, 455, 769, 1480)
"""Rows of the published file by class_id: 3,715 in all."""

BOTH = [*MODES]


def _samples(*pairs, boxes=None) -> Samples:
    """Pairs of rectangles: first row, last row, first column, last column, inclusive; () is empty."""
    found = Samples.of_masks([(_mask(a), None if b == "missing" else _mask(b)) for a, b in pairs])
    return found if boxes is None else replace(found, annotated_box=np.array(boxes, float).reshape(-1, 4))


def _mask(rows_cols: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros((10, 10), bool)
    if rows_cols:
        r0, r1, c0, c1 = rows_cols
        mask[r0 : r1 + 1, c0 : c1 + 1] = True
    return mask


# The paper's rows by class, in points; their mean over all samples, and what the paper prints.
PUBLISHED = [
    ((85.2, 21.2, 71.5, 42.8), "57.63", 57.6),
    ((90.2, 40.8, 62.5, 63.6), "67.82", 67.8),
]


@pytest.mark.parametrize("mode", BOTH)
@pytest.mark.parametrize(("rows", "exact", "printed"), PUBLISHED)
def test_the_mean_over_all_is_that_of_the_papers_rows(rows, exact, printed, mode):
    ious = np.repeat(rows, SIZES)  # every sample has the IoU of its row
    count = len(ious)
    assert count == 3715
    inside = np.round(10 * ious).astype(np.int64)
    box = np.zeros((count, 4), np.int64)
    whole = np.full(count, 1000, np.int64)
    samples = Samples(inside, inside, whole, box, box, np.zeros(count, bool), ("",) * count)
    found = giou(samples, np.repeat([1, 2, 3, 4], SIZES).tolist(), mode=mode)
    assert f"{100 * found['giou'][ALL]:.2f}" == exact
    assert round(100 * found["giou"][ALL], 1) == printed
    names = ("stuff", "part", "multi-object", "single-object")
    assert [found["giou"][name] for name in names] == pytest.approx([row / 100 for row in rows])
    assert [found["counts"][name]["expected"] for name in names] == list(SIZES)


RIGHT, HALF, WRONG = ((0, 1, 0, 3), (0, 1, 0, 3)), ((0, 1, 0, 3), (0, 0, 0, 3)), ((0, 1, 0, 3), ())
MISSING = ((0, 1, 0, 3), "missing")


def test_a_missing_prediction_is_0_in_strict_mode_and_skipped_in_official():
    samples = _samples(RIGHT, HALF, MISSING, MISSING, WRONG)
    strict, official = (giou(samples, [1, 1, 1, 2, 4], mode=mode) for mode in ("strict", "official"))
    assert strict["giou"] == {
        "all": 1.5 / 5,
        "stuff": 0.5,
        "part": 0.0,
        "multi-object": None,
        "single-object": 0.0,
    }
    assert official["giou"] == {
        "all": 1.5 / 3,
        "stuff": 0.75,
        "part": None,
        "multi-object": None,
        "single-object": 0.0,
    }
    assert strict["counts"] == official["counts"]
    assert strict["counts"]["all"] == {"expected": 5, "scored": 3, "skipped": 2}
    assert strict["counts"]["stuff"] == {"expected": 3, "scored": 2, "skipped": 1}
    assert strict["counts"]["multi-object"] == {"expected": 0, "scored": 0, "skipped": 0}


def test_kinds_are_named_by_number_or_name():
    samples = _samples(RIGHT, HALF, WRONG, RIGHT)
    assert giou(samples, [1, 2, 3, 4]) == giou(samples, ["stuff", "part", "multi-object", "single-object"])
    for unknown in (0, 5, "thing"):
        with pytest.raises(DataError, match="expected 1 \\(stuff\\), 2 \\(part\\)") as error:
            giou(samples, [1, 2, 3, unknown])
        assert error.value.reason == "class_id"
    with pytest.raises(ValueError, match="a class for each of 4 samples, got 1"):
        giou(samples, [1])


@pytest.mark.parametrize("mode", BOTH)
def test_two_empty_masks_have_nothing_in_common(mode):
    assert giou(_samples(((), ())), [1], mode=mode)["giou"]["all"] == 0.0
    assert giou(_samples(), [], mode=mode)["giou"] == dict.fromkeys([ALL, *CLASSES.values()])


# True mask, predicted one, annotated box; hit in official mode, and in strict mode.
BOXES = [
    ((0, 3, 0, 3), (0, 3, 0, 3), (0, 0, 4, 4), True, True),  # 9/16 without the last pixel
    ((0, 3, 0, 3), (0, 2, 0, 3), (0, 0, 4, 4), False, True),  # 6/16 and 12/16
    ((0, 3, 0, 3), (0, 1, 0, 3), (0, 0, 4, 4), False, True),  # exactly 8/16 with it
    ((0, 3, 0, 3), (0, 3, 0, 3), (0.0, 0.0, 4.0, 8.5), False, False),  # 16/34 with it: boxes are not rounded
    ((0, 3, 0, 3), (), (0, 0, 4, 4), False, False),
    ((0, 9, 4, 4), (0, 9, 4, 4), (4, 0, 5, 10), False, True),
    ((0, 0, 0, 0), (), (0, 0, 1, 1), False, False),  # an empty mask has no box, not that of the first pixel
]


@pytest.mark.parametrize(("truth", "predicted", "box", "official", "strict"), BOXES)
def test_the_box_of_a_mask_is_compared_with_the_annotated_one(truth, predicted, box, official, strict):
    samples = _samples((truth, predicted), boxes=[box])
    assert box_accuracy(samples, [4], mode="official")["accuracy"]["single-object"] == float(official)
    assert box_accuracy(samples, [4], mode="strict")["accuracy"]["single-object"] == float(strict)


@pytest.mark.parametrize("mode", BOTH)
def test_stated_boxes_are_taken_as_they_are(mode):
    samples = _samples(*[RIGHT] * 4, boxes=[(0, 0, 4, 2)] * 4)
    stated = [(0.0, 0.0, 4.0, 2.0), (0.0, 0.0, 4.0, 1.0), (0.0, 0.0, 4.0, 0.9), None]
    found = box_accuracy(samples, [1, 1, 1, 1], predicted=stated, mode=mode)
    assert found["accuracy"]["all"] == 0.5  # the second one is exactly half
    stricter = box_accuracy(samples, [1, 1, 1, 1], predicted=stated, mode=mode, least_iou=0.6)
    assert stricter["accuracy"]["stuff"] == 0.25


def test_a_missing_box_is_left_out_of_the_official_mean_over_all_but_not_of_its_kind():
    samples = _samples(RIGHT, MISSING, RIGHT, boxes=[(0, 0, 4, 2)] * 3)
    stated = [(0.0, 0.0, 4.0, 2.0), None, None]
    official = box_accuracy(samples, [1, 1, 2], predicted=stated, mode="official")
    strict = box_accuracy(samples, [1, 1, 2], predicted=stated, mode="strict")
    assert (official["accuracy"]["all"], official["accuracy"]["stuff"]) == (0.5, 0.5)
    assert (strict["accuracy"]["all"], strict["accuracy"]["stuff"]) == (pytest.approx(1 / 3), 0.5)
    assert official["accuracy"]["part"] == strict["accuracy"]["part"] == 0.0
    assert official["counts"]["all"] == strict["counts"]["all"] == {"expected": 3, "scored": 2, "skipped": 1}
    nobody = box_accuracy(_samples(MISSING, boxes=[(0, 0, 4, 2)]), [1], mode="official")["accuracy"]
    assert (nobody["all"], nobody["stuff"]) == (None, 0.0)


def test_boxes_need_annotated_ones_and_one_for_each_sample():
    with pytest.raises(ValueError, match="no annotated boxes"):
        box_accuracy(_samples(RIGHT), [1])
    with pytest.raises(ValueError, match="a box or None for each of 1 samples, got 0"):
        box_accuracy(_samples(RIGHT, boxes=[(0, 0, 4, 2)]), [1], predicted=[])


@pytest.mark.parametrize("value", [[1, 2, 3, 4], [[1, 2, 3, 4]], (1.0, 2.0, 3.0, 4.0), [[1.0, 2, 3, 4.0]]])
def test_a_box_may_be_nested_as_the_authors_write_it(value):
    assert read_box(value) == (1.0, 2.0, 3.0, 4.0)


def test_no_box_is_none_and_anything_else_is_told():
    assert read_box(None) is None and read_box([]) is None
    for wrong in ([1, 2, 3], [[1, 2, 3]], "0 0 1 1", [1, 2, 3, math.nan], [1, 2, 3, True], {}, [[], []], 7):
        with pytest.raises(DataError, match="expected four finite numbers") as error:
            read_box(wrong)
        assert error.value.reason == "box"


rows = st.lists(st.tuples(st.sampled_from([RIGHT, HALF, WRONG, MISSING]), st.integers(1, 4)), max_size=12)


@settings(max_examples=30, deadline=None)
@given(rows)
def test_the_mean_over_all_is_the_weighted_mean_of_kinds_and_strict_is_not_above_official(made):
    samples = _samples(*(pair for pair, _ in made))
    kinds = [kind for _, kind in made]
    strict, official = (giou(samples, kinds, mode=mode) for mode in ("strict", "official"))
    for found, weight in ((strict, "expected"), (official, "scored")):
        weights = {name: found["counts"][name][weight] for name in CLASSES.values()}
        total = sum(weights.values())
        parts = [found["giou"][name] * weights[name] for name in weights if weights[name]]
        assert found["giou"]["all"] == (pytest.approx(sum(parts) / total) if total else None)
    for name, value in official["giou"].items():
        assert value is None or strict["giou"][name] <= value
