"""Numbers of grounded captions equal those of the public evaluator; strict ones have none of its quirks."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samtok.errors import DataError
from samtok.metrics.captions import cider
from samtok.metrics.grounded_captions import (
    GroundedCaption,
    ap50,
    caption_samples,
    counts,
    exact_match,
    gcg,
    miou,
    recall,
)
from samtok.metrics.referring import MODES

SIZE = (10, 10)


def caption(
    name: str, *regions: tuple[str, tuple[int, int], tuple[int, int]], text: str = ""
) -> GroundedCaption:
    """Builds a caption of phrases with their first and last rows and columns in an image of 10 x 10."""
    masks = []
    for _, (top, bottom), (left, right) in regions:
        masks.append(np.zeros(SIZE, bool))
        masks[-1][top : bottom + 1, left : right + 1] = True
    return GroundedCaption.of_masks(
        name, SIZE, caption=text, phrases=[region[0] for region in regions], masks_of_image=masks
    )


# A worked case whose numbers the public evaluator gave.
CAT, DOG, SKY = ("cat", (0, 3), (0, 4)), ("dog", (5, 9), (5, 9)), ("sky", (0, 1), (8, 9))
TRUTH = [
    caption("a", ("cat", (0, 3), (0, 3)), DOG),
    caption("b", ("road", (0, 4), (0, 9)), ("car", (6, 9), (0, 3))),
]
ROAD = caption("b", ("road", (0, 4), (0, 6)))
PREDICTED = [caption("a", CAT, DOG, SKY), ROAD]


def alike(truth: str, predicted: str) -> float:
    return 1.0 if truth == predicted else 0.9


@pytest.mark.parametrize("mode", MODES)
def test_the_worked_case_has_the_published_numbers(mode):
    assert gcg(TRUTH, PREDICTED, similarity=alike, mode=mode) == pytest.approx(
        {
            "ap50": 0.6905940594,
            "miou": 0.8,
            "recall": 0.75,
            "phrases": 4,
            "found": 3,
            "masks": 4,
            "predicted_masks": 4,
        },
        abs=1e-10,
    )
    assert miou(TRUTH[:1], PREDICTED[:1], mode=mode) == pytest.approx(0.9, abs=1e-12)
    assert miou(TRUTH[1:], PREDICTED[1:], mode=mode) == pytest.approx(0.7, abs=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_another_order_of_masks_changes_ap50_alone(mode):
    found = gcg(TRUTH, [caption("a", SKY, CAT, DOG), ROAD], similarity=alike, mode=mode)
    assert found["ap50"] == pytest.approx(0.5643564356, abs=1e-10)
    assert (found["miou"], found["recall"]) == pytest.approx((0.8, 0.75), abs=1e-12)


def test_fewer_phrases_than_masks_fail_the_image_in_the_public_evaluator():
    fewer = [replace(PREDICTED[0], phrases=("cat",)), ROAD]
    assert recall(TRUTH, fewer, similarity=alike, mode="official") == 0.25
    assert recall(TRUTH, fewer, similarity=alike, phrase_alignment="reference") == 0.5
    for mode in MODES:
        with pytest.raises(
            DataError, match="image 'a' has 3 predicted masks and 1 phrases, expected"
        ) as error:
            recall(TRUTH, fewer, similarity=alike, mode=mode, phrase_alignment="per_mask")
        assert error.value.reason == "phrase_count"
    with pytest.raises(DataError, match="image 'a' has 2 true masks and 1 phrases"):
        recall([replace(TRUTH[0], phrases=("cat",))], PREDICTED[:1], similarity=alike)


def test_phrases_that_differ_end_the_image_in_the_public_evaluator():
    def differ(truth: str, predicted: str) -> float:
        return 0.2 if (truth, predicted) == ("dog", "dog") else alike(truth, predicted)

    assert recall(TRUTH, PREDICTED, similarity=differ, mode="official") == 0.25
    assert recall(TRUTH, PREDICTED, similarity=differ) == 0.5


def test_strict_tries_another_mask_whose_phrase_fits():
    truth = [caption("a", ("cat", (0, 3), (0, 3)))]
    given = [caption("a", ("dog", (0, 3), (0, 3)), ("cat", (0, 3), (0, 2)))]
    assert recall(truth, given, similarity=exact_match, mode="official") == 0
    assert recall(truth, given, similarity=exact_match) == 1


def test_a_mask_counts_once():
    truth = [caption("a", ("cat", (0, 3), (0, 3)), ("cat", (0, 3), (0, 3)))]
    for mode in MODES:
        assert (
            recall(truth, [caption("a", ("cat", (0, 3), (0, 3)))], similarity=exact_match, mode=mode) == 0.5
        )


@pytest.mark.parametrize(
    ("bottom", "found"),
    [(4, 1.0), (3, 0.0)],  # 50 of 100 pixels are enough
)
@pytest.mark.parametrize("mode", MODES)
def test_an_iou_of_one_half_is_a_hit(bottom, found, mode):
    truth, given = [caption("a", ("all", (0, 9), (0, 9)))], [caption("a", ("all", (0, bottom), (0, 9)))]
    assert recall(truth, given, similarity=exact_match, mode=mode) == found
    assert recall(truth, given, similarity=lambda *_: 0.5, mode=mode) == found
    assert recall(truth, given, similarity=lambda *_: 0.49, mode=mode) == 0


def test_of_equal_ious_the_first_is_taken_in_official_and_always_the_same_in_strict():
    """The first mask overlaps both true ones alike; which it gets decides what is left for the second."""
    left, right = ("x", (0, 0), (0, 5)), ("x", (0, 0), (2, 7))
    given = [caption("a", ("x", (0, 0), (1, 6)), ("x", (0, 0), (0, 3)))]
    orders = [[caption("a", left, right)], [caption("a", right, left)]]
    ious = [(5 / 7 + 1 / 4) / 2, (5 / 7 + 2 / 3) / 2]
    assert [miou(truth, given, mode="official") for truth in orders] == pytest.approx(ious)
    shares = [recall(truth, given, similarity=alike, mode="official") for truth in orders]
    assert shares == [0.5, 1.0]
    for metric in (miou, partial(recall, similarity=alike)):
        first, second = (metric(truth, given) for truth in orders)
        assert first == second


def test_an_empty_phrase_is_like_no_other_in_strict():
    truth, given = [caption("a", DOG)], [caption("a", ("", *DOG[1:]))]
    assert recall(truth, given, similarity=alike) == 0
    assert recall(truth, given, similarity=alike, mode="official") == 1


def test_masks_without_pixels_fit_each_other_in_the_public_evaluator():
    nothing = caption("a", ("", (1, 0), (0, 0)), DOG)
    truth = replace(nothing, phrases=("cat", "dog"))
    given = replace(nothing, phrases=("cat", "dog"))
    assert miou([truth], [given], mode="official") == 0  # not a number, which ends the image
    assert miou([truth], [given]) == 1
    assert recall([truth], [given], similarity=exact_match, mode="official") == 1
    assert recall([truth], [given], similarity=exact_match) == 0.5


def test_an_image_without_a_prediction_counts_in_strict_and_is_left_out_in_official():
    predicted = [PREDICTED[0], None]
    assert counts(TRUTH, predicted) == {"expected": 2, "scored": 1, "skipped": 1}
    alone = gcg(TRUTH[:1], PREDICTED[:1], similarity=alike, mode="official")
    assert gcg(TRUTH, predicted, similarity=alike, mode="official") == alone
    strict = gcg(TRUTH, predicted, similarity=alike)
    nothing = gcg(TRUTH, [PREDICTED[0], caption("b")], similarity=alike)
    assert strict == nothing and strict["miou"] == pytest.approx(0.45) and strict["recall"] == 0.5
    assert (strict["phrases"], strict["masks"]) == (4, 4)
    texts = caption_samples(TRUTH, predicted)
    assert [(one.image_id, one.predicted) for one in texts] == [("a", ""), ("b", None)]


def test_nothing_predicted_scores_0_and_nothing_true_scores_none():
    nothing = [caption("a"), caption("b")]
    for mode in MODES:
        found = gcg(TRUTH, nothing, similarity=alike, mode=mode)
        assert (found["ap50"], found["miou"], found["recall"]) == (0, 0, 0)
    strict = gcg(nothing, nothing, similarity=alike)
    assert (strict["ap50"], strict["miou"], strict["recall"]) == (None, None, None)
    assert miou(nothing, nothing, mode="official") == 0
    assert miou(nothing[:1], [caption("a", DOG)]) == 0
    assert gcg([], [], similarity=alike)["recall"] is None


def test_captions_are_scored_with_cider():
    truth = [caption("a", text="A cat."), caption("b", text="A dog.")]
    given = [caption("a", text="a cat"), caption("b", text="a bird")]
    first, second = cider(caption_samples(truth, given)).segments
    assert first > second == 0


def test_captions_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="the prediction of image 'a' is one of 'b'"):
        miou(TRUTH[:1], [ROAD])
    with pytest.raises(DataError, match="image 'a' has 2 true captions, expected one") as error:
        ap50([TRUTH[0]] * 2, [PREDICTED[0]] * 2)
    assert error.value.reason == "duplicate_image"
    with pytest.raises(DataError, match="image 'a' is 10x10, its prediction 10x9") as error:
        recall(TRUTH[:1], [replace(PREDICTED[0], width=9)], similarity=alike)
    assert error.value.reason == "size_mismatch"
    with pytest.raises(ValueError):
        miou(TRUTH, PREDICTED[:1])
    with pytest.raises(DataError) as error:
        miou(TRUTH[:1], [replace(PREDICTED[0], phrases=("cat",), rles=("1",))])
    assert error.value.reason == "rle_sum"


def test_phrases_are_equal_whatever_their_case():
    assert exact_match("A cat ", "a Cat") == 1 and exact_match("cat", "cats") == 0


SIDES = st.tuples(st.integers(0, 4), st.integers(5, 9))
REGIONS = st.lists(st.tuples(st.sampled_from(["cat", "dog", "sky"]), SIDES, SIDES), max_size=4)


def captions_of(images) -> tuple[list[GroundedCaption], list[GroundedCaption]]:
    """Returns true and predicted captions."""
    truth, given = ([caption(str(n), *row[part]) for n, row in enumerate(images)] for part in (0, 1))
    return truth, given


def mixed_up(of_image: GroundedCaption, random) -> GroundedCaption:
    """Returns a caption with its masks, and their phrases, in another order."""
    order = random.sample(range(len(of_image.rles)), len(of_image.rles))
    phrases, rles = (tuple(part[place] for place in order) for part in (of_image.phrases, of_image.rles))
    return replace(of_image, phrases=phrases, rles=rles)


IMAGES = st.lists(st.tuples(REGIONS, REGIONS), min_size=1, max_size=3)


@settings(max_examples=25, deadline=None)
@given(IMAGES, st.randoms())
def test_strict_numbers_do_not_depend_on_the_order_of_masks_and_images(images, random):
    truth, given = captions_of(images)
    numbers = random.sample(range(len(images)), len(images))
    mixed = [[mixed_up(part[number], random) for number in numbers] for part in (truth, given)]
    for similarity in (exact_match, alike):
        assert recall(truth, given, similarity=similarity) == recall(*mixed, similarity=similarity)
    assert miou(truth, given) == pytest.approx(miou(*mixed), abs=1e-12)


@settings(max_examples=10, deadline=None)
@given(IMAGES)
def test_numbers_lie_between_0_and_1_and_no_mask_is_found_twice(images):
    truth, given = captions_of(images)
    strict, official = (gcg(truth, given, similarity=alike, mode=mode) for mode in MODES)
    for found in (strict, official):
        shares = [found[name] for name in ("ap50", "miou", "recall") if found[name] is not None]
        assert all(0 <= share <= 1 + 1e-12 for share in shares)
        assert found["found"] <= min(found["phrases"], found["predicted_masks"])
    assert strict["ap50"] == official["ap50"]


@settings(max_examples=10, deadline=None)
@given(st.lists(REGIONS.filter(bool), min_size=1, max_size=3))
def test_a_perfect_prediction_scores_1(images):
    truth = [caption(str(n), *regions) for n, regions in enumerate(images)]
    for mode in MODES:
        found = gcg(truth, truth, similarity=alike, mode=mode)
        assert (found["ap50"], found["miou"], found["recall"]) == pytest.approx((1, 1, 1), abs=1e-12)
    assert recall(truth, truth, similarity=exact_match) == 1
