"""What a model wrote becomes the masks that it means, as the scripts of each benchmark read it."""

import numpy as np
import pytest
import torch

from samtok.metrics.text_masks import Reading, decode_unions, describe, read_text, word_scores
from samtok.model.tokenizer import MaskTokenizer
from samtok.words import format_words

SIZE = {"num_codes": 256, "num_levels": 2}


def _tokens(*names: int | str) -> str:
    return "".join(f"<|mt_{name if isinstance(name, str) else f'{name:04d}'}|>" for name in names)


def _word(*numbers: int) -> str:
    return _tokens("start", *numbers, "end")


GOOD = _word(3, 300)

# Text, strict reading with one mask, with several; official reading with one mask, with several.
READ = [
    (GOOD, [(3, 44)], [(3, 44)], [(3, 44)], [(3, 44)]),
    (GOOD + _word(7, 400), [(3, 44)], [(3, 44), (7, 144)], [(7, 144)], [(3, 44), (7, 144)]),
    (_word(3), [], [], [(3, -1)], [(3, -1)]),
    (_word(300, 3), [], [], [(3, 44)], []),
    (_word(3, 512), [], [], [], [(3, -1)]),  # the authors' single-mask script stops here
    (_word(3, 300, 5, 400), [(3, 44)], [(3, 44)], [(5, 144)], [(3, 44), (5, 144)]),
    ("No target.", [], [], [], []),
]


@pytest.mark.parametrize(("text", "first", "union", "slot", "reference"), READ)
def test_each_benchmark_reads_a_text_in_its_way(text, first, union, slot, reference):
    for benchmark, mode, expected in (
        ("res", "strict", first),
        ("rec", "strict", first),
        ("gres", "strict", union),
        ("res", "official", slot),
        ("gres", "official", reference),
    ):
        found = read_text(text, Reading.of(mode, several=benchmark == "gres"), **SIZE)
        assert (benchmark, mode, found.codes) == (benchmark, mode, expected)


def test_broken_words_are_counted_whatever_the_reading():
    for reading in (Reading(), Reading("depth1"), Reading("reference"), Reading(combine="single_slot")):
        assert read_text(GOOD + _word(5), reading, **SIZE).num_malformed == 1
    assert read_text(GOOD + _word(5), Reading("depth1"), **SIZE).codes == [(3, 44), (5,)]


def test_the_record_of_a_reading_says_what_decides_a_number():
    readings = {mode: Reading.of(mode, several=False) for mode in ("strict", "official")}
    assert describe(readings) == {
        "strict": {"malformed": "drop", "combine": "first", "mask_threshold": 0.0},
        "official": {"malformed": None, "combine": "single_slot", "mask_threshold": 0.5},
    }


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return MaskTokenizer.from_preset("micro").eval()


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def test_answers_become_the_union_of_their_masks_and_no_mask_is_empty(tokenizer, image):
    codes = np.array([[1, 2], [3, 4], [5, 6]])
    single = tokenizer.decode(image, codes)
    answers = [[(1, 2)], [(1, 2), (5, 6)], [], [(3, 4), (3, 4)]]
    found = decode_unions(tokenizer, tokenizer.features_of([image]), answers, (40, 56), threshold=0.0)
    expected = [single[0], single[0] | single[2], np.zeros((40, 56), bool), single[1]]
    assert len(found) == 4 and single.any() and (single[0] != single[2]).any()
    for mask, wanted in zip(found, expected, strict=True):
        assert mask.dtype == bool and (mask == wanted).all()


def test_an_unusable_second_code_is_code_zero_and_a_missing_one_is_left_out(tokenizer, image):
    features = tokenizer.features_of([image])
    answers = [[(1, -1)], [(1, 0)], [(1,)], [(1, 7)]]
    invalid, zero, alone, full = decode_unions(tokenizer, features, answers, (40, 56), threshold=0.0)
    assert (invalid == zero).all()
    assert (alone == tokenizer.decode(image, np.array([[1]]))[0]).all()
    assert (full == tokenizer.decode(image, np.array([[1, 7]]))[0]).all()


def test_the_threshold_is_on_logits(tokenizer, image):
    features = tokenizer.features_of([image])
    low, high = (
        decode_unions(tokenizer, features, [[(1, 2)]], (40, 56), threshold=value)[0] for value in (-1e9, 1e9)
    )
    assert low.all() and not high.any()


@pytest.mark.parametrize(
    ("truth", "predicted", "exact", "target_exact", "first"),
    [
        ([[(1, 2)]], [[(1, 2)]], 1, 1, 1),
        ([[(1, 2)]], [[(1, 3)]], 0, 0, 1),
        ([[(1, 2)]], [[(1,)]], 0, 0, 1),
        ([[(1, 2)]], [[(2, 2)]], 0, 0, 0),
        ([[(1, 2), (3, 4)]], [[(3, 4), (1, 2)]], 1, 1, 1),  # order is free
        ([[(1, 2), (1, 2)]], [[(1, 2)]], 0, 0, 0),  # repeats count
        ([[(1, 2)]], [[(1, 2), (1, 2)]], 0, 0, 0),
        ([[]], [[]], 1, None, None),
        ([[]], [[(1, 2)]], 0, None, None),
        ([[]], [None], 0, None, None),
        ([[(1, 2)]], [None], 0, 0, 0),
        ([[], [(1, 2)]], [[], []], 0.5, 0, 0),
        ([], [], None, None, None),
    ],
)
def test_words_are_compared_as_multisets(truth, predicted, exact, target_exact, first):
    assert word_scores(truth, predicted) == {
        "exact_match": exact,
        "target_exact_match": target_exact,
        "target_first_code": first,
    }


def test_every_word_of_an_answer_is_read_back():
    text = "a dog " + format_words((3, 44)) + ", " + format_words((7, 144))
    assert read_text(text, Reading(), **SIZE).codes == [(3, 44), (7, 144)]
