"""The order of draws, and which masks of an image are picked: properties over many seeds and sizes."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from pipelines.tokenizer_training.config import SamplingConfig
from pipelines.tokenizer_training.sources import draw_masks, pick_masks, why_unusable, without_nested
from pipelines.training.mixture import Mixture
from samtok import masks
from samtok.errors import ConfigError

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=4)
SEEDS = st.integers(0, 2**40)


@st.composite
def mixtures(draw: st.DrawFn) -> tuple:
    """Draws the arguments of a mixture, with weights or without."""
    sizes = draw(SIZES)
    weights = draw(st.none() | st.lists(st.floats(0.5, 2), min_size=len(sizes), max_size=len(sizes)))
    arguments = sizes, weights or [None] * len(sizes), draw(SEEDS)
    try:
        Mixture(*arguments)
    except ConfigError:
        reject()  # a weight that rounds to no draws
    return arguments


@given(SIZES, SEEDS, st.integers(0, 3))
def test_without_weights_every_epoch_has_every_image_once(sizes, seed, epoch):
    mixture = Mixture(sizes, [None] * len(sizes), seed)
    drawn = mixture.draws(epoch * sum(sizes), sum(sizes))
    assert sorted(drawn) == [(d, i) for d, size in enumerate(sizes) for i in range(size)]


def test_epochs_and_seeds_have_orders_of_their_own():
    mixture = Mixture([50, 30], [None, None], 1)
    orders = [mixture.draws(epoch * 80, 80) for epoch in range(3)]
    orders.append(Mixture([50, 30], [None, None], 2).draws(0, 80))
    orders.append(sorted(orders[0]))
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    assert mixture.draws(0, 80) == orders[0]  # an epoch that was left can be gone back to


@pytest.mark.slow
@pytest.mark.numerics
@given(mixtures(), st.integers(0, 60), st.lists(st.integers(0, 25), max_size=5))
def test_any_split_of_the_draws_gives_the_same_ones(arguments, start, counts):
    mixture = Mixture(*arguments)
    cuts = np.cumsum([start, *counts]).tolist()
    parts = [draw for a, b in pairwise(cuts) for draw in mixture.draws(a, b - a)]
    assert parts == Mixture(*arguments).draws(start, sum(counts))


@given(mixtures(), st.integers(1, 5))
def test_after_whole_epochs_the_images_of_a_corpus_were_drawn_equally_often(arguments, epochs):
    mixture = Mixture(*arguments)
    drawn = Counter(mixture.draws(0, epochs * mixture.epoch_draws))
    for source, size in enumerate(mixture.sizes):
        times = [drawn[source, i] for i in range(size)]
        assert max(times) - min(times) <= 1
        assert sum(times) == epochs * mixture.quotas[source]


@pytest.mark.parametrize(
    ("sizes", "weights", "quotas"),
    [
        ([60, 30, 10], [1, 1, 2], (25, 25, 50)),
        ([5, 5], [2, 1], (7, 3)),
        ([4, 3], [1.0, 1.0], (4, 3)),  # the odd one goes to the first
        ([60, 40], [None, None], (60, 40)),
        ([60, 40], [0.01, 0.03], (25, 75)),
    ],
)
def test_weights_share_out_the_draws_of_an_epoch(sizes, weights, quotas):
    mixture = Mixture(sizes, weights, 3)
    for epoch in range(3):
        drawn = mixture.draws(epoch * sum(sizes), sum(sizes))
        assert tuple(Counter(source for source, _ in drawn)[d] for d in range(len(sizes))) == quotas


def test_a_weighted_corpus_goes_on_where_the_last_epoch_left_it():
    mixture = Mixture([10, 30], [1, 3], 5)
    first = [i for source, i in mixture.draws(0, 40) if source == 1]
    second = [i for source, i in mixture.draws(40, 40) if source == 1]
    assert len(set(first)) == len(set(second)) == 30
    halves = Mixture([10, 30], [5, 3], 5)  # 15 of 30 images an epoch
    once = [i for source, i in halves.draws(0, 80) if source == 1]
    assert sorted(once) == list(range(30))
    often = Counter(i for source, i in halves.draws(0, 80) if source == 0)
    assert sum(often.values()) == 50 and set(often.values()) == {5}


def test_each_epoch_mixes_anew_and_each_pass_through_a_corpus_shuffles_anew():
    mixture = Mixture([40, 40], [None, None], 5)
    epochs = [mixture.draws(epoch * 80, 80) for epoch in range(2)]
    assert [source for source, _ in epochs[0]] != [source for source, _ in epochs[1]]
    entries = [dict(zip(mixture._order.tolist(), draws, strict=True)) for draws in epochs[1:]]
    mixture.draws(0, 1)
    first = dict(zip(mixture._order.tolist(), epochs[0], strict=True))
    assert all(first != other for other in entries)


def test_corpora_are_mixed_all_through_an_epoch():
    drawn = Mixture([500, 500], [None, None], 0).draws(0, 1000)
    tenths = [sum(source for source, _ in drawn[i : i + 100]) for i in range(0, 1000, 100)]
    assert min(tenths) > 30 and max(tenths) < 70


@pytest.mark.parametrize(
    ("sizes", "weights", "message"),
    [
        ([3, 4], [1.0, None], "1 of 2 corpora have a weight; give each one"),
        ([3, 4], [1.0, -1.0], "must be > 0"),
        ([3, 4], [1.0, 1e-6], "corpus 2 has the weight 1e-06.*none of the 7 draws"),
    ],
)
def test_weights_that_cannot_work_are_refused(sizes, weights, message):
    with pytest.raises(ConfigError, match=message):
        Mixture(sizes, weights, 0)


# ---------------------------------------------------------------- masks of an image


def rectangle(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((40, 60), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def nested(*dense: np.ndarray) -> list[int]:
    return without_nested([masks.encode(m) for m in dense], [int(m.sum()) for m in dense], (40, 60))


@given(
    st.lists(st.integers(1, 5000), max_size=12),
    st.integers(1, 12),
    st.sampled_from(["uniform", "area"]),
    SEEDS,
)
def test_picked_masks_are_distinct_in_order_and_as_many_as_asked_for(areas, most, pick, seed):
    policy = SamplingConfig(pick=pick)
    picked = draw_masks(areas, most=most, policy=policy, draw=np.random.default_rng(seed))
    assert len(picked) == min(most, len(areas)) and picked == sorted(set(picked))
    assert all(0 <= i < len(areas) for i in picked)
    assert picked == draw_masks(areas, most=most, policy=policy, draw=np.random.default_rng(seed))


@pytest.mark.parametrize(("pick", "shares"), [("uniform", [1 / 3] * 3), ("area", [0.1, 0.3, 0.6])])
def test_masks_are_drawn_in_their_proportion(pick, shares):
    areas, draw = [100, 900, 3600], np.random.default_rng(0)
    policy = SamplingConfig(pick=pick)
    first = Counter(draw_masks(areas, most=1, policy=policy, draw=draw)[0] for _ in range(4000))
    assert [first[i] / 4000 for i in range(3)] == pytest.approx(shares, abs=0.03)
    pairs = Counter(tuple(draw_masks(areas, most=2, policy=policy, draw=draw)) for _ in range(4000))
    without_first = shares[1] * shares[2] * (1 / (1 - shares[1]) + 1 / (1 - shares[2]))
    assert pairs[1, 2] / 4000 == pytest.approx(without_first, abs=0.03)


def test_a_mask_inside_a_larger_one_is_dropped_and_its_neighbours_stay():
    whole, part = rectangle(0, 0, 20, 20), rectangle(2, 2, 8, 8)
    beside, crossing = rectangle(0, 40, 5, 45), rectangle(15, 15, 25, 25)
    assert nested(part, whole, beside, crossing) == [1, 2, 3]
    assert nested(crossing, beside) == [0, 1]
    assert nested(part) == [0] and nested() == []


@pytest.mark.parametrize(("columns_inside", "left"), [(9, [0]), (8, [0, 1])])
def test_nine_tenths_of_the_area_make_a_part(columns_inside, left):
    whole = rectangle(0, 0, 20, 20)
    assert nested(whole, rectangle(5, 20 - columns_inside, 10, 30 - columns_inside)) == left


def test_of_equal_masks_the_first_stays():
    one, other = rectangle(0, 0, 10, 10), rectangle(20, 20, 30, 30)
    assert nested(one, one, other, one, other) == [0, 2]


boxes = st.tuples(st.integers(0, 30), st.integers(0, 50), st.integers(1, 10), st.integers(1, 10))


@given(st.lists(boxes, min_size=1, max_size=7))
@settings(max_examples=50)
def test_what_is_left_after_dropping_covers_what_was_dropped(corners):
    dense = [rectangle(top, left, top + high, left + wide) for top, left, high, wide in corners]
    left = nested(*dense)
    assert left == sorted(left) and left
    areas = [int(mask.sum()) for mask in dense]
    for i, mask in enumerate(dense):
        inside = [
            j for j, other in enumerate(dense)
            if (-areas[j], j) < (-areas[i], i) and (mask & other).sum() >= 0.9 * areas[i]
        ]  # fmt: skip
        assert (i in left) == (not inside)


def test_parts_go_before_masks_are_drawn():
    dense = [rectangle(i, i, i + 3, i + 3) for i in range(8)] + [rectangle(0, 0, 20, 20)]
    rles, areas = [masks.encode(m) for m in dense], [int(m.sum()) for m in dense]
    options = {"size_hw": (40, 60), "most": 3}
    draw = np.random.default_rng(0)
    assert pick_masks(rles, areas, policy=SamplingConfig(drop_nested=True), draw=draw, **options) == [8]
    assert len(pick_masks(rles, areas, policy=SamplingConfig(), draw=draw, **options)) == 3


def test_masks_without_pixels_are_never_usable_and_skipped_flags_are_the_users():
    policy = SamplingConfig(skip=("crowd",))
    assert why_unusable([], policy) is None and why_unusable(["void"], policy) is None
    assert why_unusable(["crowd"], policy) == "crowd"
    assert why_unusable(["void", "empty"], policy) == "empty"
    assert why_unusable(["box_only"], SamplingConfig(skip=())) == "box_only"
