"""AP of masks equals COCO's published numbers, and what nothing there scores."""

import gzip
import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samtok import masks
from samtok.errors import DataError
from samtok.metrics.detection import DetectionSample, Instance, average_precision

FIXTURE = Path(__file__).parent.parent / "fixtures/coco_val2014_100.json.gz"
"""Its source and licences stand in it."""


@lru_cache
def coco_samples() -> tuple[DetectionSample, ...]:
    """Returns 100 images of COCO with the predictions that its tools come with."""
    return tuple(
        DetectionSample(
            image_id=image["id"],
            height=image["height"],
            width=image["width"],
            truth=tuple(
                Instance(counts=counts, category=category, area_px=float(area), crowd=bool(crowd))
                for category, counts, area, crowd in image["truth"]
            ),
            predicted=tuple(
                Instance(counts=counts, category=category, score=float(score))
                for category, counts, score in image["predicted"]
            ),
        )
        for image in json.loads(gzip.decompress(FIXTURE.read_bytes()))["images"]
    )


@pytest.mark.slow
@pytest.mark.numerics
def test_ap_equals_cocos_numbers(capfd):
    """To three digits these are results/val2014_fake_eval_res.txt of cocodataset/cocoapi."""
    found = average_precision(coco_samples())
    assert found == pytest.approx(
        {
            "ap": 0.3195452758576433,
            "ap50": 0.5622883972521636,
            "ap75": 0.29892653412086784,
            "ap_small": 0.387,
            "ap_medium": 0.310,
            "ap_large": 0.327,
            "targets": 830,
            "crowd": 9,
            "predicted": 734,
        },
        abs=5e-4,
    )
    exact = {"ap": 0.3195452758576433, "ap50": 0.5622883972521636, "ap75": 0.29892653412086784}
    assert {name: found[name] for name in exact} == pytest.approx(exact, abs=1e-10)
    assert capfd.readouterr() == ("", "")  # pycocotools prints its progress


@pytest.mark.slow
@pytest.mark.numerics
def test_ap_without_classes_equals_cocos_number():
    """As for grounded captions: no crowds, one class, all scores equal."""
    samples = [
        replace(
            sample,
            truth=tuple(one for one in sample.truth if not one.crowd),
            predicted=tuple(replace(one, score=1.0) for one in sample.predicted),
        )
        for sample in coco_samples()
    ]
    found = average_precision(samples, class_agnostic=True)
    assert found["ap50"] == pytest.approx(0.6981765955125782, abs=1e-10)
    one_class = [
        replace(
            sample,
            truth=tuple(replace(one, category="thing") for one in sample.truth),
            predicted=tuple(replace(one, category="thing") for one in sample.predicted),
        )
        for sample in samples[::-1]
    ]
    assert average_precision(one_class) == found  # images are ranked by id, not as they come


def box(top: int, left: int, bottom: int, right: int, **fields) -> Instance:
    """Returns a rectangle of a 100 x 100 image, its last row and column excluded."""
    mask = np.zeros((100, 100), bool)
    mask[top:bottom, left:right] = True
    return Instance(counts=masks.encode(mask), **fields)


def image(
    truth: tuple[Instance, ...], predicted: tuple[Instance, ...], name: str | int = "a"
) -> DetectionSample:
    return DetectionSample(image_id=name, height=100, width=100, truth=truth, predicted=predicted)


SMALL, MEDIUM, LARGE = box(0, 0, 10, 10), box(20, 0, 60, 40), box(0, 0, 100, 100)


def test_a_perfect_prediction_has_ap_1_in_each_group():
    found = average_precision([image((SMALL, MEDIUM, LARGE), (LARGE, SMALL, MEDIUM))])
    assert {name: value for name, value in found.items() if name.startswith("ap")} == pytest.approx(
        dict.fromkeys(["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"], 1.0)
    )


def test_nothing_predicted_has_ap_0_and_nothing_true_has_none():
    nothing = average_precision([image((SMALL,), ())])
    assert (nothing["ap"], nothing["ap50"], nothing["ap_small"]) == (0, 0, 0)
    assert (nothing["ap_medium"], nothing["ap_large"]) == (None, None)
    for samples in ([], [image((), ())], [image((), (SMALL,))]):
        found = average_precision(samples)
        assert all(found[name] is None for name in ("ap", "ap50", "ap75", "ap_small"))
    assert (found["targets"], found["crowd"], found["predicted"]) == (0, 0, 1)


@pytest.mark.parametrize(
    ("predicted", "ap50"),
    [
        ((box(0, 0, 10, 10),), 1.0),
        ((box(0, 0, 10, 5),), 1.0),  # an IoU of exactly 0.5 is a hit
        ((box(0, 0, 10, 4),), 0.0),
        ((box(0, 0, 0, 0),), 0.0),  # no pixels
        ((box(50, 50, 60, 60, score=0.9), box(0, 0, 10, 10, score=0.8)), 0.5),
        ((box(50, 50, 60, 60, score=0.8), box(0, 0, 10, 10, score=0.9)), 1.0),
        ((box(50, 50, 60, 60), box(0, 0, 10, 10)), 0.5),  # equal scores: in their order
        ((box(0, 0, 10, 10), box(50, 50, 60, 60)), 1.0),
        ((box(0, 0, 10, 10), box(0, 0, 10, 10)), 1.0),  # the second is wrong, but comes last
    ],
)
def test_small_cases(predicted, ap50):
    assert average_precision([image((SMALL,), predicted)])["ap50"] == pytest.approx(ap50)


def test_classes_count_by_themselves_unless_they_are_left_out():
    truth = (box(0, 0, 10, 10, category="cat"), box(20, 20, 40, 40, category="dog"))
    wrong = (box(0, 0, 10, 10, category="dog"), box(20, 20, 40, 40, category="cat"))
    half = (truth[0], replace(truth[1], category="cow"))
    assert average_precision([image(truth, wrong)])["ap50"] == 0
    assert average_precision([image(truth, wrong)], class_agnostic=True)["ap50"] == pytest.approx(1)
    assert average_precision([image(truth, half)])["ap50"] == pytest.approx(0.5)  # cows are nowhere: no class


def test_what_lies_in_a_crowd_is_neither_right_nor_wrong():
    crowd = box(50, 50, 100, 100, crowd=True)
    inside = box(60, 60, 70, 70)
    found = average_precision([image((SMALL, crowd), (inside, SMALL))])
    assert found["ap50"] == pytest.approx(1) and (found["targets"], found["crowd"]) == (1, 1)


def test_a_stated_area_decides_the_group_of_a_true_mask():
    stated = replace(SMALL, area_px=5000.0)
    found = average_precision([image((stated,), (SMALL,))])
    assert (found["ap_small"], found["ap_medium"]) == (None, pytest.approx(1))


def test_only_so_many_masks_of_an_image_are_looked_at():
    wrong = tuple(box(50, 50, 60, 60) for _ in range(3))
    samples = [image((SMALL,), (*wrong, SMALL))]
    assert average_precision(samples, max_detections=3)["ap50"] == 0
    assert average_precision(samples, max_detections=4)["ap50"] == pytest.approx(0.25)


def test_images_of_equal_scores_are_ranked_by_their_ids_as_strings():
    right, wrong = ((SMALL,), (SMALL,)), ((SMALL,), (MEDIUM,))
    assert average_precision([image(*right, "10"), image(*wrong, "9")])["ap50"] == pytest.approx(51 / 101)
    assert average_precision([image(*right, 10), image(*wrong, 9)])["ap50"] == pytest.approx(51 / 101 / 2)


def test_wrong_samples_are_refused():
    with pytest.raises(DataError, match="image 'a' is there 2 times, expected once") as error:
        average_precision([image((), ()), image((), ()), image((), (), "b")])
    assert error.value.reason == "duplicate_image"
    with pytest.raises(ValueError, match="ids and classes must be of one type each"):
        average_precision([image((), (), 1), image((), (), "a")])
    with pytest.raises(DataError) as error:  # pycocotools would read memory that is not its own
        average_precision([image((SMALL,), (Instance(counts="0"),))])
    assert error.value.reason == "rle_sum"


BOXES = st.tuples(*[st.integers(0, 40)] * 2, *[st.integers(41, 99)] * 2).map(lambda sides: box(*sides))
SAMPLES = st.lists(
    st.tuples(st.lists(BOXES, max_size=3), st.lists(BOXES, max_size=3)), min_size=1, max_size=3
)


@settings(max_examples=25, deadline=None)
@given(SAMPLES)
def test_ap_lies_between_0_and_1_and_falls_with_the_iou(rows):
    samples = [image(tuple(truth), tuple(given), n) for n, (truth, given) in enumerate(rows)]
    found = average_precision(samples)
    if found["ap"] is None:
        assert found["targets"] == 0
    else:
        assert 0 <= found["ap75"] <= found["ap50"] <= 1 and found["ap"] <= found["ap50"] + 1e-12
    assert found["targets"] == sum(len(truth) for truth, _ in rows)
    assert found["predicted"] == sum(len(given) for _, given in rows)
