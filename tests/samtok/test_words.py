"""Mask words survive a round trip, and broken words are read as each policy says."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import samtok
from samtok.errors import DataError
from samtok.words import (
    END,
    INVALID_CODE,
    POLICIES,
    START,
    all_words,
    format_words,
    parse_words,
    parse_words_lenient,
    parse_words_single_slot,
    word_of,
)


def _tokens(*names: int | str) -> str:
    return "".join(f"<|mt_{name if isinstance(name, str) else f'{name:04d}'}|>" for name in names)


def _word(*numbers: int) -> str:
    return _tokens("start", *numbers, "end")


pieces = st.one_of(
    st.sampled_from(["start", "end", 0, 7, 255, 256, 400, 511, 512, 9999, "00003", "x", ""]).map(_tokens),
    st.sampled_from([_word(3, 300), " ", "a car", "<|mt_", "<|mt_0003", "|>", "<|im_end|>"]),
)
generated_texts = st.lists(pieces, max_size=12).map("".join) | st.text(max_size=40)
books = st.tuples(st.integers(1, 5), st.sampled_from([1, 2, 16, 256, 3000, 20000]))


def test_second_level_counts_from_the_codebook_size():
    assert format_words((12, 45)) == "<|mt_start|><|mt_0012|><|mt_0301|><|mt_end|>"
    assert format_words([1, 1, 1], num_codes=16) == _word(1, 17, 33)
    assert format_words((7,)) == _word(7)
    assert word_of(1, 45) == "<|mt_0301|>"


@pytest.mark.parametrize("kind", ["uint8", "int8", "int16", "int64"])
def test_a_row_of_an_array_is_formatted_like_a_list(kind):
    assert format_words(np.array([12, 45], kind)) == format_words([12, 45])
    assert format_words(torch.tensor([12, 45])) == format_words([12, 45])
    with pytest.raises(ValueError, match="needs at least one code"):
        format_words(np.array([], kind))
    with pytest.raises(TypeError):
        format_words(np.array([1.0, 2.0]))


def test_the_package_lists_what_it_loads_later():
    assert set(samtok.__all__) <= set(dir(samtok))


def test_numbers_grow_beyond_four_digits_when_the_books_need_it():
    assert format_words((9999, 0), num_codes=10000) == "<|mt_start|><|mt_9999|><|mt_10000|><|mt_end|>"


@given(
    books.flatmap(
        lambda b: st.tuples(
            st.just(b), st.lists(st.lists(st.integers(0, b[1] - 1), min_size=b[0], max_size=b[0]), max_size=4)
        )
    )
)
def test_words_survive_the_round_trip_for_any_levels_and_size(case):
    (num_levels, num_codes), masks = case
    text = "a dog".join(format_words(codes, num_codes=num_codes) for codes in masks)
    expected = [tuple(codes) for codes in masks]
    assert parse_words(text, num_codes=num_codes, num_levels=num_levels) == expected
    lenient = parse_words_lenient(text, num_codes=num_codes, num_levels=num_levels, policy="drop")
    assert (lenient.codes, lenient.num_malformed) == (expected, 0)


@pytest.mark.parametrize("codes", [(), (256, 0), (0, -1), (0, 256)])
def test_formatting_refuses_codes_that_are_no_codes(codes):
    with pytest.raises(ValueError, match=r"expected a level from 0|at least one code"):
        format_words(codes)


def test_all_words_are_start_then_codes_by_level_then_end():
    words = all_words(256, 2)
    assert len(words) == len(set(words)) == 514
    assert (words[0], words[1], words[257], words[512], words[513]) == (
        START, "<|mt_0000|>", "<|mt_0256|>", "<|mt_0511|>", END,
    )  # fmt: skip
    assert all_words(2, 1) == [START, "<|mt_0000|>", "<|mt_0001|>", END]
    with pytest.raises(ValueError, match="got 0 and 2"):
        all_words(0, 2)


@pytest.mark.parametrize(
    ("text", "position", "message"),
    [
        ("a " + _tokens(3), 2, r"expected <\|mt_start\|>, got '<\|mt_0003\|>'"),
        (_tokens("end"), 0, r"expected <\|mt_start\|>"),
        (_tokens("start"), 12, "expected a code of level 0, .*got the end of the text"),
        (_tokens("start", "end"), 12, r"level 0, <\|mt_0000\|> to <\|mt_0255\|>, got '<\|mt_end"),
        (_word(300, 3), 12, "a code of level 0"),
        (_word(3, 7), 23, r"a code of level 1, <\|mt_0256\|> to <\|mt_0511\|>"),
        (_word(3, 512), 23, "a code of level 1"),
        (_word(3), 23, "a code of level 1"),
        (_word(3, 300, 5), 34, r"expected <\|mt_end\|>"),
        (_tokens("start", 3, 300), 34, r"expected <\|mt_end\|>, got the end of the text"),
        (_tokens("start", 3) + " " + _tokens(300, "end"), 23, r"a code of level 1.* got ' <\|mt_0300"),
        (_word(3, 300) + "<|mt_0", 44, r"expected <\|mt_start\|>, got '<\|mt_0'"),
        (_tokens("start", "00003", 300, "end"), 12, "a code of level 0"),
        (_tokens("start", "٠٠٠٣", 300, "end"), 12, "a code of level 0"),
        (_word(3, 300) + _word(7), 67, "a code of level 1"),
    ],
)
def test_strict_reading_names_the_place_and_what_belongs_there(text, position, message):
    with pytest.raises(DataError, match=f"at character {position}: .*{message}") as caught:
        parse_words(text)
    assert caught.value.reason == "malformed_words"


GOOD, NO_END = _word(3, 300), _tokens("start", 3, 300)

# One line per line of the table of outcomes: GRES pairs, single-mask codes ("error" where the authors' script
# stops), ours with "depth1", ours with "drop", malformed words.
TABLE = [
    (GOOD, [(3, 44)], (3, 44), [(3, 44)], [(3, 44)], 0),
    (GOOD + _word(7, 400), [(3, 44), (7, 144)], (7, 144), [(3, 44), (7, 144)], [(3, 44), (7, 144)], 0),
    (_word(3), [(3, -1)], (3, -1), [(3,)], [], 1),
    (_tokens("start", 3) + " is here", [(3, -1)], (3, -1), [(3,)], [], 1),
    (_word(3, 300, 5), [(3, 44)], (5, 44), [(3, 44)], [(3, 44)], 1),
    (_word(3, 300, 5, 400), [(3, 44), (5, 144)], (5, 144), [(3, 44)], [(3, 44)], 1),
    (_word(3) + _word(7), [(3, -1)], (7, -1), [(3,), (7,)], [], 2),
    (NO_END, [(3, 44)], (3, 44), [(3,)], [], 1),
    (
        GOOD + _tokens("start", 7, 400) + _word(9),
        [(3, 44), (9, -1)],
        (9, 144),
        [(3, 44), (7,), (9,)],
        [(3, 44)],
        2,
    ),
    (_word(300, 3), [], (3, 44), [], [], 1),
    (_word(3, 7), [(3, -1)], (7, -1), [(3,)], [], 1),
    (_tokens(3, 300), [(3, 44)], (3, 44), [], [], 1),
    (_word(3, 512), [(3, -1)], "error", [(3,)], [], 1),
    (_tokens("start", "end"), [], None, [], [], 1),
    ("no masks at all", [], None, [], [], 0),
    (_word(5, 6, 7), [(5, -1)], (7, -1), [(5,)], [], 1),
    (_tokens("start", 3) + " and " + GOOD, [(3, -1), (3, 44)], (3, 44), [(3,), (3, 44)], [(3, 44)], 1),
    (_tokens("end", 3, 300) + GOOD, [(3, 44), (3, 44)], (3, 44), [(3, 44)], [(3, 44)], 2),
    (GOOD + "<|mt_03", [(3, 44)], (3, 44), [(3, 44)], [(3, 44)], 1),
    (_tokens("start", 3) + " " + _tokens(300, "end"), [(3, 44)], (3, 44), [(3,)], [], 2),
]


@pytest.mark.parametrize(("text", "gres", "single", "depth1", "drop", "num_malformed"), TABLE)
def test_broken_words_are_read_as_the_table_says(text, gres, single, depth1, drop, num_malformed):
    for policy, expected in (("reference", gres), ("depth1", depth1), ("drop", drop)):
        parsed = parse_words_lenient(text, policy=policy)
        assert (policy, parsed.codes) == (policy, expected)
        assert parsed.num_malformed == num_malformed
    if single == "error":
        with pytest.raises(DataError, match=r"<\|mt_0512\|> at character 23 is beyond the last code, 511"):
            parse_words_single_slot(text)
    else:
        assert parse_words_single_slot(text) == single


def test_a_broken_word_of_a_single_level_is_still_broken():
    text = _word(3) + _tokens("start", 4)
    options = {"num_codes": 16, "num_levels": 1}
    assert parse_words_lenient(text, policy="drop", **options).codes == [(3,)]
    assert parse_words_lenient(text, policy="depth1", **options).codes == [(3,), (4,)]


def test_reference_flows_need_two_levels_and_policies_have_names():
    with pytest.raises(ValueError, match="words of 2 levels, got 3"):
        parse_words_lenient("", num_levels=3, policy="reference")
    with pytest.raises(ValueError, match="words of 2 levels, got 1"):
        parse_words_single_slot("", num_levels=1)
    with pytest.raises(ValueError, match="one of drop, depth1, reference, got 'guess'"):
        parse_words_lenient("", policy="guess")


@given(generated_texts)
@example("<|mt_start|>" * 3)
def test_any_text_parses_or_is_refused_and_leniency_agrees(text):
    parsed = {policy: parse_words_lenient(text, policy=policy) for policy in POLICIES}
    try:
        strict = parse_words(text)
    except DataError as error:
        assert error.reason == "malformed_words"
        assert all(result.num_malformed > 0 for result in parsed.values())
    else:
        assert all((result.codes, result.num_malformed) == (strict, 0) for result in parsed.values())
    lengths = {"drop": {2}, "depth1": {1, 2}, "reference": {2}}
    for policy, result in parsed.items():
        assert {len(codes) for codes in result.codes} <= lengths[policy]
        lowest = INVALID_CODE if policy == "reference" else 0
        assert all(0 <= codes[0] < 256 and lowest <= min(codes) < 256 for codes in result.codes)


def test_words_load_neither_torch_nor_numpy():
    script = "import sys, samtok.words; print({'torch', 'numpy', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr
