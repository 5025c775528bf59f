"""Recalls of scene graphs are those of the worked example, and keep what recalls promise."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samtok.errors import DataError
from samtok.metrics.referring import MODES
from samtok.metrics.scene_graph_text import read_answer, words_of
from samtok.metrics.scene_graphs import (
    ImageMatches,
    Region,
    Triplet,
    match_image,
    matches_of,
    merged_objects,
    recalls,
    with_masks,
    without_repeats,
)
from samtok.words import format_words

SIDE = 10
STUFF = ("grass", "sky")
PREDICATES = ("over", "beside", "on", "holding", *(f"other {number}" for number in range(52)))
QUICK = settings(max_examples=25, deadline=None)


def _region(label: str, *rows_cols: int) -> Region:
    """A rectangle of first row, last row, first column, last column, all inclusive; none is an empty mask."""
    mask = np.zeros((SIDE, SIDE), bool)
    if rows_cols:
        r0, r1, c0, c1 = rows_cols
        mask[r0 : r1 + 1, c0 : c1 + 1] = True
    return Region(label, mask)


PERSON, GRASS = _region("person", 0, 4, 0, 4), _region("grass", 8, 9, 0, 9)
CUP, CAT = _region("cup", 0, 1, 6, 9), _region("cat", 5, 7, 5, 9)
TRUTH = [
    Triplet(PERSON, "on", GRASS),
    Triplet(PERSON, "holding", CUP),
    Triplet(CAT, "beside", PERSON),
]


def _predicted(cup: Region) -> list[Triplet]:
    return [
        Triplet(PERSON, "on", GRASS),
        Triplet(PERSON, "holding", cup),
        Triplet(CAT, "beside", PERSON),
        Triplet(PERSON, "on", GRASS),
    ]


THREE_EIGHTHS, HALF = _region("cup", 0, 0, 6, 8), _region("cup", 0, 1, 8, 9)


def _score(truth, predicted, mode="strict", ks=(1, 2, 3, 20), predicates=PREDICATES) -> dict:
    image = match_image(truth, predicted, mode=mode, stuff=STUFF)
    return recalls([image], predicates=predicates, ks=ks, mode=mode)


def test_the_worked_example_has_its_matches():
    assert matches_of(TRUTH, _predicted(THREE_EIGHTHS)) == ((0,), (), (2,), (0,))
    assert matches_of(TRUTH, _predicted(HALF)) == ((0,), (1,), (2,), (0,))


@pytest.mark.parametrize("mode", MODES)
def test_the_worked_example_has_its_recalls(mode):
    assert len(PREDICATES) == 56
    found = _score(TRUTH, _predicted(THREE_EIGHTHS), mode)
    assert [found[f"recall_{k}"] for k in (1, 2, 3, 20)] == [1 / 3, 1 / 3, 2 / 3, 2 / 3]
    assert found["mean_recall_20"] == (1 + 0 + 1) / 56
    found = _score(TRUTH, _predicted(HALF), mode)
    assert [found[f"recall_{k}"] for k in (1, 2, 3, 20)] == [1 / 3, 2 / 3, 1, 1]
    assert found["mean_recall_20"] == 3 / 56


def test_the_example_has_the_same_recalls_from_a_text():
    regions = {format_words((n, n)): one.mask for n, one in enumerate((PERSON, GRASS, THREE_EIGHTHS, CAT))}
    names = dict(zip(regions, ("person", "grass", "cup", "cat"), strict=True))
    p, g, c, a = regions
    lines = [(p, "on", g), (p, "holding", c), (a, "beside", p), (p, "on", g)]
    text = "\n".join(f"{names[s]} {s} {predicate} {names[o]} {o}" for s, predicate, o in lines)
    answer = read_answer(text, classes=names.values(), predicates=PREDICATES)
    triplets = with_masks(answer.triplets, [regions[words] for words in words_of(answer.triplets)])
    assert _score(TRUTH, triplets) == _score(TRUTH, _predicted(THREE_EIGHTHS))


def test_the_first_predicate_counts_in_strict_mode_and_not_in_official():
    """True predicates count from 0 in the official script, and its mean is over slots 1 to 56."""
    truth = [Triplet(PERSON, "over", GRASS), Triplet(CAT, PREDICATES[-1], PERSON)]
    strict, official = (_score(truth, truth, mode) for mode in ("strict", "official"))
    assert strict["recall_20"] == official["recall_20"] == 1.0
    assert strict["mean_recall_20"] == 2 / 56
    assert official["mean_recall_20"] == 1 / 56
    only = [Triplet(PERSON, "over", GRASS)]
    assert _score(only, only, "official", predicates=["over"])["mean_recall_20"] == 0.0
    assert _score(only, only, "strict", predicates=["over"])["mean_recall_20"] == 1.0


def test_a_list_of_classes_may_count_from_any_number():
    """The first label and the last one are found alike, since labels are compared as texts."""
    for label in ("person", "rug-merged"):
        one = [Triplet(Region(label, PERSON.mask), "over", Region(label, GRASS.mask))]
        for mode in MODES:
            assert _score(one, one, mode)["recall_20"] == 1.0


# What is predicted; recall in strict mode, in official; which count the image is in.
NOTHING = [
    (None, 0.0, None, "skipped"),
    ([], 0.0, None, "empty"),
    ([Triplet(CAT, "on", GRASS)], 0.0, 0.0, "scored"),
    ([Triplet(Region("person", np.zeros((SIDE, SIDE), bool)), "on", GRASS)], 0.0, 0.0, "scored"),
]


@pytest.mark.parametrize(("predicted", "strict", "official", "place"), NOTHING)
def test_an_image_without_a_valid_prediction_counts_in_strict_mode_alone(predicted, strict, official, place):
    for mode, expected in (("strict", strict), ("official", official)):
        found = _score(TRUTH, predicted, mode)
        assert (found["recall_20"], found["mean_recall_20"]) == (expected, expected)
        counts = {"images": 1, "without_relations": 0, "skipped": 0, "empty": 0, "scored": 0, place: 1}
        assert found["counts"] == counts
        images = [match_image(TRUTH, one, mode=mode, stuff=STUFF) for one in (predicted, TRUTH)]
        both = recalls(images, predicates=PREDICATES, mode=mode)
        assert both["recall_20"] == (1.0 if expected is None else 0.5)


def test_images_without_relations_are_in_no_mean():
    for mode in MODES:
        found = _score([], [Triplet(CAT, "on", GRASS)], mode)
        assert found["recall_20"] is None and found["mean_recall_20"] is None
        assert found["counts"] == {
            "images": 1,
            "without_relations": 1,
            "skipped": 0,
            "empty": 0,
            "scored": 0,
        }
        assert recalls([], predicates=PREDICATES, ks=(5,), mode=mode)["recall_5"] is None


def test_a_predicate_is_averaged_over_the_images_that_have_it():
    on_both = [Triplet(PERSON, "on", GRASS), Triplet(CAT, "on", GRASS), Triplet(CAT, "beside", PERSON)]
    images = [match_image(on_both, on_both[:1]), match_image(TRUTH[:1], TRUTH[:1])]
    found = recalls(images, predicates=["on", "beside", "over"])
    assert found["recall_20"] == (1 / 3 + 1) / 2
    assert found["mean_recall_20"] == ((1 / 2 + 1) / 2 + 0 + 0) / 3


def test_true_triplets_that_are_twice_count_once_and_a_pair_may_have_two_predicates():
    truth = [TRUTH[0], TRUTH[0], Triplet(PERSON, "over", GRASS)]
    assert match_image(truth, None).predicates == ("on", "over")
    other = Triplet(_region("person", 0, 3, 0, 4), "on", GRASS)  # nearly the same person is another one
    assert match_image([TRUTH[0], other], [TRUTH[0]]).matches == ((0, 1),)
    assert _score([TRUTH[0], other], [TRUTH[0]])["recall_1"] == 1.0


def test_repeats_are_left_out_before_ranks_are_given():
    near = Triplet(PERSON, "on", _region("grass", 8, 9, 0, 6))  # IoU 0.7
    half = Triplet(PERSON, "on", _region("grass", 8, 9, 0, 4))  # exactly 0.5: another one
    empty = Triplet(PERSON, "on", _region("grass"))
    assert without_repeats([TRUTH[0], near]) == [TRUTH[0]]
    assert without_repeats([TRUTH[0], half]) == [TRUTH[0], half]
    assert without_repeats([empty, empty]) == [empty, empty]
    assert without_repeats([TRUTH[0], Triplet(PERSON, "over", GRASS)]) != [TRUTH[0]]
    found = _score(TRUTH, [TRUTH[0], TRUTH[0], near, TRUTH[1]], ks=(2,))
    assert found["recall_2"] == 2 / 3


def _masks(triplets) -> list[list[list[int]]]:
    return [[one.mask.astype(int).tolist() for one in (t.subject, t.object)] for t in triplets]


def test_things_that_overlap_are_one_object_and_keep_what_all_have():
    wide, narrow = _region("person", 0, 4, 0, 5), _region("person", 0, 4, 0, 3)  # IoU 20/30
    apart = _region("person", 0, 4, 6, 9)
    found = merged_objects([Triplet(wide, "on", GRASS), Triplet(apart, "beside", narrow)], STUFF)
    assert _masks(found) == _masks([Triplet(narrow, "on", GRASS), Triplet(apart, "beside", narrow)])
    half = _region("person", 0, 4, 0, 2)  # IoU with the wide one 0.5: not more
    alone = [Triplet(wide, "on", GRASS), Triplet(half, "on", GRASS)]
    assert _masks(merged_objects(alone, STUFF)) == _masks(alone)


def test_all_stuff_of_a_label_is_one_object_so_two_places_leave_nothing():
    left, right = _region("grass", 8, 9, 0, 4), _region("grass", 8, 9, 5, 9)
    pair = [Triplet(PERSON, "on", left), Triplet(CAT, "on", right)]
    found = merged_objects(pair, STUFF)
    assert not found[0].object.mask.any() and not found[1].object.mask.any()
    assert _masks(merged_objects(pair, ())) == _masks(pair)  # as things they are two
    assert _score(pair, pair, "strict")["recall_20"] == 1.0
    assert _score(pair, pair, "official")["recall_20"] == 0.0


@pytest.mark.parametrize(("mentions", "kept"), [(2, False), (4, False), (5, False), (6, True)])
def test_a_pixel_stays_if_more_than_four_fifths_of_the_mentions_have_it(mentions, kept):
    whole, without = _region("grass", 8, 9, 0, 9), _region("grass", 8, 9, 0, 8)
    thing = [_region(f"thing {number}", 0, 0, 0, 0) for number in range(mentions)]
    triplets = [Triplet(thing[0], "on", without)] + [Triplet(one, "on", whole) for one in thing[1:]]
    assert {bool(one.object.mask[8, 9]) for one in merged_objects(triplets, STUFF)} == {kept}
    assert all(one.object.mask[8, 0] for one in merged_objects(triplets, STUFF))


def test_subject_and_object_of_one_label_are_merged_too():
    outer, inner = _region("person", 0, 4, 0, 4), _region("person", 0, 4, 0, 3)
    (one,) = merged_objects([Triplet(outer, "touching", inner)], STUFF)
    assert np.array_equal(one.subject.mask, inner.mask) and np.array_equal(one.object.mask, inner.mask)


def test_faults_are_told():
    with pytest.raises(ValueError, match="merges the masks of stuff"):
        match_image(TRUTH, TRUTH, mode="official")
    with pytest.raises(ValueError, match="same size"):
        match_image(TRUTH[:1], [Triplet(Region("person", np.ones((2, 2), bool)), "on", GRASS)])
    strict = match_image(TRUTH, TRUTH)
    with pytest.raises(ValueError, match="matched in mode 'strict', the recalls are 'official'"):
        recalls([strict], predicates=PREDICATES, mode="official")
    with pytest.raises(DataError, match="'beside', which is not among the 2") as error:
        recalls([strict], predicates=["on", "holding"])
    assert error.value.reason == "unknown_predicate"
    with pytest.raises(ValueError, match="K must be at least 1"):
        recalls([strict], predicates=PREDICATES, ks=(0,))
    with pytest.raises(ValueError, match="predicates must be different"):
        recalls([strict], predicates=["on", "on"])
    with pytest.raises(ValueError):
        with_masks(read_answer("").triplets, [PERSON.mask])


def _world(seed: int) -> tuple[list[Triplet], list[Triplet] | None]:
    """A true graph of panoptic segments, and predictions that are right, moved, relabelled or repeated."""
    rng = random.Random(seed)
    segments = [
        Region(rng.choice(("person", "cat", *STUFF)), column) for column in _columns(rng.randint(2, 5))
    ]
    segments = list({one.label if one.label in STUFF else id(one): one for one in segments}.values())
    truth = [
        Triplet(rng.choice(segments), rng.choice(PREDICATES[:4]), rng.choice(segments))
        for _ in range(rng.randint(0, 6))
    ]
    if rng.random() < 0.1:
        return truth, None
    predicted = []
    for one in rng.choices(truth, k=rng.randint(0, 8)) if truth else []:
        moved = Region(one.object.label, np.roll(one.object.mask, rng.randint(0, 2), 0))
        changed = rng.choice([one, one, Triplet(one.subject, one.predicate, moved)])
        predicted.append(rng.choice([changed, Triplet(changed.subject, "over", changed.object)]))
    return truth, predicted


def _columns(count: int) -> list[np.ndarray]:
    owners = np.linspace(0, count, SIDE, endpoint=False).astype(int)
    return [np.tile(owners == number, (SIDE, 1)) & (np.arange(SIDE) < 7)[:, None] for number in range(count)]


worlds = st.lists(st.integers(0, 10**9), max_size=3).map(lambda seeds: [_world(seed) for seed in seeds])
modes = st.sampled_from(MODES)


def _images(world, mode) -> list[ImageMatches]:
    return [match_image(truth, predicted, mode=mode, stuff=STUFF) for truth, predicted in world]


@QUICK
@given(worlds, modes)
def test_recalls_rise_with_k_and_are_shares(world, mode):
    found = recalls(_images(world, mode), predicates=PREDICATES[:4], ks=range(1, 10), mode=mode)
    for name in ("recall", "mean_recall"):
        values = [found[f"{name}_{k}"] for k in range(1, 10)]
        assert values == [None] * 9 or (sorted(values) == values and values[0] >= 0 and values[-1] <= 1)
    counts = found["counts"]
    assert counts["images"] == len(world) == sum(counts.values()) - counts["images"]


@QUICK
@given(worlds, modes)
def test_the_true_graph_is_a_perfect_prediction(world, mode):
    images = _images([(truth, truth) for truth, _ in world], mode)
    found = recalls(images, predicates=PREDICATES[:4], ks=(6,), mode=mode)
    assert found["recall_6"] == (1.0 if any(truth for truth, _ in world) else None)
    present = sorted({one.predicate for truth, _ in world for one in truth})
    if present:
        strict = recalls(_images([(t, t) for t, _ in world], "strict"), predicates=present, ks=(6,))
        assert strict["mean_recall_6"] == 1.0


@QUICK
@given(worlds, modes, st.randoms(use_true_random=False))
def test_the_order_of_images_is_free(world, mode, rng):
    images = _images(world, mode)
    shuffled = rng.sample(images, len(images))
    found = [recalls(one, predicates=PREDICATES, ks=(1, 3), mode=mode) for one in (images, shuffled)]
    assert found[0] == found[1]


@QUICK
@given(worlds, st.sampled_from(["label", "predicate", "mask"]))
def test_a_wrong_triplet_at_the_end_never_raises_a_recall(world, kind):
    wrong = {
        "label": Triplet(Region("no such thing", PERSON.mask), "on", GRASS),
        "predicate": Triplet(PERSON, "no such predicate", GRASS),
        "mask": Triplet(_region("person"), "on", _region("cat")),
    }[kind]
    longer = [(truth, None if predicted is None else [*predicted, wrong]) for truth, predicted in world]
    ks = range(1, 10)
    before, after = (recalls(_images(w, "strict"), predicates=PREDICATES, ks=ks) for w in (world, longer))
    shares = [name for name in before if name != "counts"]
    assert [before[name] for name in shares] == [after[name] for name in shares]


@QUICK
@given(worlds)
def test_strict_recalls_are_never_above_official_ones_where_nothing_is_merged(world):
    apart = [(truth, predicted) for truth, predicted in world if predicted is not None]
    strict = _images(apart, "strict")
    official = [ImageMatches(mode="official", predicates=i.predicates, matches=i.matches) for i in strict]
    a = recalls(strict, predicates=PREDICATES)["recall_20"]
    b = recalls(official, predicates=PREDICATES, mode="official")["recall_20"]
    assert a is None or b is None or a <= b
