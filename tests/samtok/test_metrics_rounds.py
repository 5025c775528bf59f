"""Rounds are scored each by itself, and averaged over datasets as the paper's Table 2 is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samtok.metrics import referring
from samtok.metrics.referring import MODES, Samples
from samtok.metrics.rounds import average_rounds, by_round, multi_round

SIDE = 10
SETS = ("mr-refcoco", "mr-refcoco+", "mr-refcocog")


def _mask(*rows_cols: int) -> np.ndarray:
    """A rectangle of first row, last row, first column, last column, all inclusive; none is an empty mask."""
    mask = np.zeros((SIDE, SIDE), bool)
    if rows_cols:
        r0, r1, c0, c1 = rows_cols
        mask[r0 : r1 + 1, c0 : c1 + 1] = True
    return mask


def _samples(*pairs) -> Samples:
    return Samples.of_masks([(_mask(*a), None if b == "skipped" else _mask(*b)) for a, b in pairs])


WORKED = (((0, 3, 0, 3), (0, 3, 0, 5)), ((0, 4, 0, 4), ()), ((0, 9, 0, 9), (0, 4, 0, 9)))
"""Samples 1, 4 and 5 of the example of GRES: 66/149 in all, 0.388889 in the mean."""


@pytest.mark.parametrize("mode", MODES)
def test_a_round_of_the_worked_example_has_its_numbers(mode):
    (only,) = by_round(_samples(*WORKED), [2, 2, 2], mode=mode).values()
    assert only is not None
    assert only["ciou_cumulative"] == 66 / 149
    assert only["miou"] == pytest.approx(0.388889, abs=1e-6)
    assert only["counts"] == {"expected": 3, "scored": 3, "skipped": 0}


@pytest.mark.parametrize("mode", MODES)
def test_each_round_is_scored_by_itself(mode):
    found = by_round(_samples(*WORKED), [1, 1, 3], mode=mode)
    assert list(found) == [1, 2, 3] and found[2] is None
    first, last = found[1], found[3]
    assert first is not None and last is not None
    assert (first["ciou_cumulative"], last["ciou_cumulative"]) == (16 / 49, 50 / 100)
    assert first["miou"] == pytest.approx(16 / 24 / 2, abs=1e-6)


def test_rounds_without_samples_are_none():
    found = by_round(_samples(WORKED[0]), [2], wanted=range(2, 5))
    assert found[2] is not None and found[3] is found[4] is None
    assert by_round(_samples(), []) == {}
    assert by_round(_samples(), [], wanted=[1]) == {1: None}


# Truth, prediction; hit in official mode, and in strict mode.
HITS = [
    ((0, 3, 0, 3), (0, 3, 0, 3), 1.0, 1.0),
    ((0, 4, 0, 4), (0, 4, 0, 2), 0.0, 1.0),  # 8/16 without the last pixel is not above a half; 15/25 with it
    ((0, 4, 0, 9), (0, 4, 0, 4), 0.0, 1.0),  # 16/36 without the last pixel; exactly a half with it
    ((0, 4, 0, 6), (0, 4, 0, 5), 1.0, 1.0),
    ((0, 9, 4, 4), (0, 9, 4, 4), 0.0, 1.0),  # one pixel wide: no area without the last one
    ((0, 3, 0, 3), (), 0.0, 0.0),
    ((0, 3, 0, 3), "skipped", None, 0.0),
]


@pytest.mark.parametrize(("truth", "predicted", "official", "strict"), HITS)
def test_a_box_of_exactly_half_hits_in_strict_mode_alone(truth, predicted, official, strict):
    for mode, expected in (("official", official), ("strict", strict)):
        (only,) = by_round(_samples((truth, predicted)), [1], mode=mode).values()
        assert only is not None and only["box_p50"] == expected


def test_a_skipped_sample_is_wrong_in_strict_mode_and_left_out_of_official():
    samples = _samples(((0, 1, 0, 1), (0, 1, 0, 1)), ((0, 1, 0, 1), "skipped"))
    strict, official = (by_round(samples, [1, 1], mode=mode)[1] for mode in ("strict", "official"))
    assert strict is not None and official is not None
    assert (strict["ciou_cumulative"], strict["miou"]) == (0.5, 0.5)
    assert (official["ciou_cumulative"], official["miou"]) == (1.0, 4 / (4 + 1e-5))
    assert strict["counts"] == official["counts"] == {"expected": 2, "scored": 1, "skipped": 1}
    lost = by_round(_samples(((0, 1, 0, 1), "skipped")), [1], mode="official")[1]
    assert lost is not None and lost["ciou_cumulative"] is lost["miou"] is lost["box_p50"] is None


def test_datasets_weigh_alike_whatever_their_number_of_samples():
    right, wrong = ((0, 3, 0, 3), (0, 3, 0, 3)), ((0, 3, 0, 3), (5, 8, 5, 8))
    samples = _samples(right, right, right, wrong, right, wrong)
    datasets = [SETS[0]] * 3 + [SETS[1]] + [SETS[2]] * 2
    found = multi_round(samples, [2] * 6, datasets, history="gt")
    assert found["history"] == "gt" and list(found["datasets"]) == sorted(SETS)
    assert [one[2]["miou"] for one in found["datasets"].values()] == [1.0, 0.0, 0.5]
    assert [one[2]["ciou_cumulative"] for one in found["datasets"].values()] == [1.0, 0.0, 16 / 48]
    average = found["average"][2]
    assert average["miou"] == 0.5 and average["ciou_cumulative"] == pytest.approx((1 + 0 + 1 / 3) / 3)
    assert average["box_p50"] == 0.5
    assert average["counts"] == {"expected": 6, "scored": 6, "skipped": 0}


def test_a_round_that_one_dataset_lacks_has_no_average():
    samples = _samples(*[WORKED[0]] * 3)
    found = multi_round(samples, [1, 2, 1], [SETS[0], SETS[0], SETS[1]], history="predicted")
    assert found["average"][1] is not None and found["average"][2] is None
    assert found["history"] == "predicted"
    skipped = multi_round(
        _samples(WORKED[0], ((0, 1, 0, 1), "skipped")), [1, 1], SETS[:2], history="gt", mode="official"
    )
    assert skipped["average"][1]["miou"] is None and skipped["average"][1]["counts"]["skipped"] == 1
    assert average_rounds({}) == {}


def test_wanted_rounds_are_those_of_every_dataset():
    samples = _samples(*[WORKED[0]] * 2)
    found = multi_round(samples, [2, 3], SETS[:2], history="gt", wanted=iter(range(2, 7)))
    assert [list(one) for one in found["datasets"].values()] == [[2, 3, 4, 5, 6]] * 2
    assert set(found["average"].values()) == {None}


def test_faults_are_told():
    samples = _samples(WORKED[0])
    with pytest.raises(ValueError, match="a round for each of 1 samples, got 2"):
        by_round(samples, [1, 2])
    with pytest.raises(ValueError, match=r"rounds \[1\], which are not wanted"):
        by_round(samples, [1], wanted=[2])
    with pytest.raises(ValueError, match="a dataset for each of 1 samples, got 1 and 0"):
        multi_round(samples, [1], [], history="gt")


pairs = st.tuples(*[st.sampled_from([(), (0, 3, 0, 3), (0, 4, 0, 2), (1, 9, 2, 8), (5, 5, 5, 5)])] * 2)
rows = st.lists(st.tuples(pairs, st.integers(1, 4), st.sampled_from(SETS)), max_size=8)


@settings(max_examples=20, deadline=None)
@given(rows, st.sampled_from(MODES))
def test_rounds_of_a_dataset_are_what_their_samples_give_alone(made, mode):
    samples = _samples(*(pair for pair, _, _ in made))
    numbers, names = [number for _, number, _ in made], [name for _, _, name in made]
    found = multi_round(samples, numbers, names, history="gt", mode=mode, wanted=range(1, 5))
    for name, rounds in found["datasets"].items():
        for number, one in rounds.items():
            alone = _samples(*(pair for pair, n, d in made if (n, d) == (number, name)))
            assert (one is None) == (len(alone) == 0)
            if one is not None:
                assert one["ciou_cumulative"] == referring.res(alone, mode=mode)["ciou_cumulative"]
                assert one["counts"] == referring.counts(alone)
    counts = [one["counts"]["expected"] for d in found["datasets"].values() for one in d.values() if one]
    assert sum(counts) == len(made)
