"""GRES, RES and REC give the numbers of the published evaluators, and sane ones in strict mode."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from samtok.metrics.referring import MODES, Samples, box_iou, counts, gres, rec, res, targets

EMPTY = None


def _mask(rows_cols: tuple[int, int, int, int] | None, side: int = 10) -> np.ndarray:
    """A rectangle of first row, last row, first column, last column, all inclusive."""
    mask = np.zeros((side, side), bool)
    if rows_cols is not None:
        r0, r1, c0, c1 = rows_cols
        mask[r0 : r1 + 1, c0 : c1 + 1] = True
    return mask


def _samples(*pairs, keys=None) -> Samples:
    return Samples.of_masks([(_mask(a), None if b == "skipped" else _mask(b)) for a, b in pairs], keys)


FIXTURE = (
    ((0, 3, 0, 3), (0, 3, 0, 5)),
    (EMPTY, EMPTY),
    (EMPTY, (0, 1, 0, 1)),
    ((0, 4, 0, 4), EMPTY),
    ((0, 9, 0, 9), (0, 4, 0, 9)),
)


def test_pixels_of_the_fixture_are_counted():
    samples = _samples(*FIXTURE)
    assert samples.intersection_px.tolist() == [16, 0, 0, 0, 50]
    assert samples.union_px.tolist() == [24, 0, 4, 25, 100]
    assert samples.intersection_px.dtype == np.int64
    assert samples.predicted_box[0].tolist() == [0, 0, 5, 3]


@pytest.mark.parametrize("mode", MODES)
def test_gres_of_the_fixture(mode):
    found = gres(_samples(*FIXTURE), mode=mode)
    assert f"{100 * found['n_acc']:.2f} {100 * found['t_acc']:.2f}" == "50.00 66.67"
    assert f"{100 * found['giou']:.2f} {100 * found['ciou']:.2f}" == "43.33 43.14"
    assert found["ciou"] == pytest.approx(0.431373, abs=5e-7)
    assert (found["no_target"], found["with_target"]) == (2, 3)


@pytest.mark.parametrize("mode", MODES)
def test_res_of_the_fixture(mode):
    found = res(_samples(FIXTURE[0], FIXTURE[3], FIXTURE[4]), mode=mode)
    assert found["ciou_cumulative"] == pytest.approx(0.442953, abs=5e-7)
    assert found["miou"] == pytest.approx(0.388889, abs=1e-6)


# Truth, prediction; then gIoU, what is added to the cumulative intersection and union, N-acc, T-acc.
SINGLE = [
    (EMPTY, EMPTY, 1.0, None, 1.0, None),
    (EMPTY, (0, 1, 0, 1), 0.0, 0.0, 0.0, None),
    ((0, 1, 0, 1), EMPTY, 0.0, 0.0, None, 0.0),
    ((0, 1, 0, 1), (0, 1, 0, 1), 1.0, 1.0, None, 1.0),
    ((0, 1, 0, 1), (5, 6, 5, 6), 0.0, 0.0, None, 1.0),
    ((0, 0, 0, 3), (0, 0, 2, 5), 1 / 3, 1 / 3, None, 1.0),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("truth", "predicted", "giou", "ciou", "n_acc", "t_acc"), SINGLE)
def test_gres_of_a_single_sample(mode, truth, predicted, giou, ciou, n_acc, t_acc):
    found = gres(_samples((truth, predicted)), mode=mode)
    for name, expected in (("giou", giou), ("ciou", ciou), ("n_acc", n_acc), ("t_acc", t_acc)):
        assert found[name] == (None if expected is None else pytest.approx(expected, abs=1e-7)), name


def test_official_epsilons_are_those_of_the_reference():
    samples = _samples(((0, 1, 0, 1), (0, 1, 0, 1)))
    assert gres(samples, mode="official")["giou"] == 4 / (4 + 1e-8)
    assert gres(samples, mode="strict")["giou"] == 1.0
    assert res(samples, mode="official")["miou"] == 4 / (4 + 1e-5)
    assert res(samples, mode="strict")["miou"] == 1.0
    assert gres(samples, mode="official")["ciou"] == 4 / (4 + 1e-10)


def test_small_predictions_can_count_as_none():
    samples = _samples(((0, 9, 0, 9), (0, 0, 0, 4)), (EMPTY, (0, 0, 0, 4)))
    assert gres(samples, min_pixels=1) == gres(samples) == gres(samples, min_pixels=5)
    found = gres(samples, min_pixels=6)
    assert (found["giou"], found["ciou"], found["n_acc"], found["t_acc"]) == (0.5, 0.0, 1.0, 0.0)


def test_a_skipped_sample_is_wrong_in_strict_mode_and_left_out_of_official():
    samples = _samples(((0, 1, 0, 1), (0, 1, 0, 1)), ((0, 1, 0, 1), "skipped"), (EMPTY, "skipped"))
    assert counts(samples) == {"expected": 3, "scored": 1, "skipped": 2}
    strict, official = gres(samples, mode="strict"), gres(samples, mode="official")
    assert (strict["giou"], strict["ciou"]) == (pytest.approx(1 / 3), 0.5)
    assert (strict["n_acc"], strict["t_acc"]) == (0.0, 0.5)
    assert (official["n_acc"], official["t_acc"], official["no_target"]) == (None, 1.0, 0)
    assert official["giou"] == pytest.approx(1.0)
    assert res(samples, mode="strict")["miou"] == pytest.approx(1 / 3)
    assert rec(samples, mode="strict")["accuracy"] == pytest.approx(1 / 3)
    assert targets(samples, mode="strict") == {"mean_iou": 0.5, "num": 2}
    assert targets(samples, mode="official") == {"mean_iou": 1.0, "num": 1}


def test_of_no_samples_every_share_is_missing():
    none = _samples()
    for mode in MODES:
        shares = {**gres(none, mode=mode), **res(none, mode=mode), **rec(none, mode=mode)}
        assert {value for name, value in shares.items() if not name.endswith("target")} == {None}
    assert targets(none) == {"mean_iou": None, "num": 0}


def test_two_empty_masks_agree_in_the_mean_of_res():
    samples = _samples((EMPTY, EMPTY), ((0, 0, 0, 1), EMPTY))
    assert [res(samples, mode=mode)["miou"] for mode in MODES] == [0.5, 0.5]


def test_the_keyed_mean_keeps_the_best_of_each_key():
    half = ((0, 0, 0, 1), (0, 0, 0, 0))
    right, wrong = ((0, 0, 0, 1), (0, 0, 0, 1)), ((0, 0, 0, 1), (5, 5, 5, 5))
    samples = _samples(half, right, wrong, half, keys=["1_dog", "1_dog", "1_dog", "2_dog"])
    for mode in MODES:
        found = res(samples, mode=mode)
        assert found["padt_dedup_miou"] == pytest.approx(0.75)
        assert found["miou"] == pytest.approx(0.5, abs=1e-5)
    assert res(samples, wanted_keys=["1_dog", "2_dog", "3_cat", "4_cat"])["padt_dedup_miou"] == 1.5 / 4


def test_boxes_of_one_key_keep_the_last_in_official_mode_and_a_hit_in_strict():
    right, wrong = ((0, 3, 0, 3), (0, 3, 0, 3)), ((0, 3, 0, 3), (5, 8, 5, 8))
    samples = _samples(right, wrong, right, keys=["1_dog", "1_dog", "2_dog"])
    assert rec(samples, mode="official")["padt_dedup_accuracy"] == 0.5
    assert rec(samples, mode="strict")["padt_dedup_accuracy"] == 1.0
    assert rec(samples, mode="official")["accuracy"] == pytest.approx(2 / 3)


# Truth, prediction; hit in official mode, and in strict mode.
HITS = [
    ((0, 3, 0, 3), (0, 3, 0, 7), False, True),  # 9/21 without the last pixel, 16/32 with it
    ((0, 9, 4, 4), (0, 9, 4, 4), False, True),  # one pixel wide: no area without it
    ((2, 2, 5, 5), (2, 2, 5, 5), False, True),
    ((0, 3, 0, 3), (0, 3, 0, 3), True, True),
    ((0, 3, 0, 3), EMPTY, False, False),
    ((0, 0, 0, 0), EMPTY, False, False),  # an empty box is not the first pixel
    ((0, 3, 0, 3), (5, 8, 5, 8), False, False),
    ((0, 3, 0, 3), "skipped", None, False),
    (EMPTY, (0, 0, 0, 0), False, False),
]


@pytest.mark.parametrize(("truth", "predicted", "official", "strict"), HITS)
def test_hits_of_boxes(truth, predicted, official, strict):
    samples = _samples((truth, predicted))
    assert rec(samples, mode="official")["accuracy"] == (None if official is None else float(official))
    assert rec(samples, mode="strict")["accuracy"] == float(strict)


def test_the_worked_boxes_have_the_published_ious():
    truth, predicted = np.array([[0.0, 0, 3, 3]]), np.array([[0.0, 0, 7, 3]])
    assert box_iou(truth, predicted, plus_one=False)[0] == pytest.approx(9 / 21)
    assert box_iou(truth, predicted, plus_one=True)[0] == 16 / 32
    point = np.zeros((1, 4))
    assert box_iou(point, point, plus_one=False)[0] == 0.0


def test_the_option_of_the_last_pixel_wins_over_the_mode():
    samples = _samples(((0, 3, 0, 3), (0, 3, 0, 7)))
    assert rec(samples, mode="official", inclusive_plus_one=True)["accuracy"] == 1.0
    assert rec(samples, mode="strict", inclusive_plus_one=False)["accuracy"] == 0.0


def test_annotated_boxes_are_rounded_and_compared_as_their_side_says():
    samples = _samples(((0, 3, 0, 3), (0, 3, 0, 3)))
    boxed = Samples(**{**samples.__dict__, "annotated_box": np.array([[0.2, 0.0, 7.9, 4.1]])})  # 8 x 4
    assert rec(boxed, mode="strict", gt_box="annotation")["accuracy"] == 1.0  # 16 / 32
    assert rec(boxed, mode="official", gt_box="annotation")["accuracy"] == 0.0  # 9 / 32
    with pytest.raises(ValueError, match="no annotated boxes"):
        rec(samples, gt_box="annotation")


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="same size"):
        Samples.of_masks([(np.zeros((2, 2), bool), np.zeros((2, 3), bool))])


pairs = st.lists(
    st.tuples(*[arrays.arrays(bool, (5, 6), elements=st.booleans(), fill=st.nothing())] * 2), max_size=6
)


@pytest.mark.slow
@pytest.mark.numerics
@given(pairs)
def test_modes_agree_where_nothing_is_skipped_and_shares_are_shares(masks):
    samples = Samples.of_masks(masks)
    for metric in (gres, res):
        strict, official = metric(samples, mode="strict"), metric(samples, mode="official")
        assert strict == pytest.approx(official, abs=1e-4)
    found = [*gres(samples).values(), *res(samples).values(), *rec(samples).values()]
    assert all(value is None or isinstance(value, int) or 0 <= value <= 1 for value in found)


def test_large_sums_are_exact():
    one = np.array([2**40 + 1], np.int64)
    box = np.zeros((1, 4), np.int64)
    samples = Samples(one, one, one + 2, box, box, np.array([False]), ("a",))
    assert res(samples)["ciou_cumulative"] == (2**40 + 1) / (2**40 + 3)


def test_metrics_load_no_torch_and_refuse_unknown_modes_also_where_types_are_not_checked():
    script = (
        "import sys, samtok.metrics.text_masks, samtok.metrics.referring as m\n"
        "import samtok.metrics.averages, samtok.metrics.grounding_suite, samtok.metrics.rounds\n"
        "import samtok.metrics.scene_graphs, samtok.metrics.scene_graph_text\n"
        "try: m.gres(m.Samples.of_masks([]), mode='sane')\n"
        "except ValueError as error: print(error)\n"
        "print({'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    expected = "mode must be one of strict, official, got 'sane'.\nset()\n"
    assert done.stdout == expected, done.stderr
