"""An answer with masks becomes its caption, phrases and codes, sanely or as the authors' script reads it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samtok.metrics.grounded_texts import OBJECT_END, OBJECT_START, read_answer
from samtok.metrics.referring import MODES
from samtok.words import format_words, parse_words_lenient


def tokens(*names: int | str) -> str:
    return "".join(f"<|mt_{name if isinstance(name, str) else f'{name:04d}'}|>" for name in names)


def word(*numbers: int) -> str:
    return tokens("start", *numbers, "end")


def marked(phrase: str) -> str:
    return f"{OBJECT_START} {phrase} {OBJECT_END}"


A, B, C = word(1, 257), word(2, 258), word(3, 259)
BROKEN, EMPTY = word(4), word()

# Text; caption, phrases and first codes in strict; caption, phrases and first codes in official.
READ = [
    # As the authors mark phrases, and as dialogues in plain style have them.
    (
        f"{marked('A dog')} {A} chases {marked('two cats')} {B}, {C}.",
        ("A dog chases two cats.", ("A dog", "two cats", "two cats"), (1, 2, 3)),
        ("A dog chases two cats , .", ("A dog", "two cats"), (1, 2, 3)),
    ),
    (
        f"A dog {A} chases two cats {B}, {C}.",
        ("A dog chases two cats.", ("A dog", "chases two cats", "chases two cats"), (1, 2, 3)),
        ("A dog chases two cats , .", (), (1, 2, 3)),
    ),
    (f"{A} and {B}", ("", ("", ""), (1, 2)), ("and", (), (1, 2))),
    (
        f"The two {A} and {B} play.",
        ("The two play.", ("The two", "The two"), (1, 2)),
        ("The two and play.", (), (1, 2)),
    ),
    (
        f"A cat {A} and a dog {B}",
        ("A cat and a dog", ("A cat", "a dog"), (1, 2)),
        ("A cat and a dog", (), (1, 2)),
    ),
    (
        f"In a park, a man {A}; he has a hat {B}",
        ("In a park, a man; he has a hat", ("a man", "he has a hat"), (1, 2)),
        None,
    ),
    (f"3.5 m of rope {A}, red{B}", ("3.5 m of rope, red", ("3.5 m of rope", "red"), (1, 2)), None),
    (f"{marked('a man')} sits {A}", ("a man sits", ("sits",), (1,)), ("a man sits", ("a man",), (1,))),
    (f"{marked('a man')} sits.", ("a man sits.", (), ()), ("a man sits.", ("a man",), ())),
    (f"{OBJECT_START} a man {A}", ("a man", ("a man",), (1,)), ("a man", (), (1,))),
    (f"{marked('a')} {marked('b')} {A}", ("a b", ("b",), (1,)), ("a b", ("a", "b"), (1,))),
    # What else the two readings differ in.
    (f"a\nman  {A}   here<|im_end|>", ("a man here", ("man",), (1,)), ("aman here", (), (1,))),
    (f"<s>x ASSISTANT: a man {A}", ("x ASSISTANT: a man", ("a man",), (1,)), ("a man", (), (1,))),
    ("'a man'", ("'a man'", (), ()), ("a man", (), ())),
    ("a < b and c > d", ("a < b and c > d", (), ()), ("a d", (), ())),
    ("", ("", (), ()), ("", (), ())),
    # Broken words.
    (f"a man {BROKEN} {A}", ("a man", ("a man",), (1,)), ("a man", (), (4, 1))),
    (f"a {EMPTY} man {A}", ("a man", ("man",), (1,)), ("a man", (), (1,))),
    (f"a man {tokens('start', 4)}", ("a man", (), ()), ("a man", (), (4,))),
    (f"a man {word(4, 260, 5)}", ("a man", ("a man",), (4,)), ("a man", (), (4,))),
    (f"a man {word(4, 260, 5, 261)}", ("a man", ("a man",), (4,)), ("a man", (), (4, 5))),
    (f"a man {tokens('start', 4, 260, 5)}", ("a man", (), ()), ("a man", (), ())),  # the script stops
    (f"a man {word(300, 260)}", ("a man", (), ()), ("a man", (), (-1,))),
    (f"a man {A}{word(4, 7)}", ("a man", ("a man",), (1,)), ("a man", (), ())),  # the decoder refuses
]


@pytest.mark.parametrize(("text", "strict", "official"), READ)
def test_an_answer_is_read_in_each_mode(text, strict, official):
    for mode, expected in zip(MODES, (strict, official), strict=True):
        if expected is not None:
            found = read_answer(text, mode=mode)
            assert (found.caption, found.phrases, tuple(codes[0] for codes in found.codes)) == expected
            assert found.num_malformed == parse_words_lenient(text).num_malformed


def test_second_codes_are_those_of_their_level():
    assert read_answer(f"a {A} b {word(5, 511)}").codes == ((1, 1), (5, 255))
    found = read_answer(f"a {word(5, 255)} b {word(6, 512)} c {word(7)}", mode="official")
    assert found.codes == ((5, -1), (6, -1), (7, -1))
    found = read_answer(f"a {word(5, 255)} b {word(6, 512)}", mode="official")
    assert found.codes == ((5, -1), (6, -1))


def test_a_broken_word_may_keep_its_first_code():
    found = read_answer(f"a dog {BROKEN}, {A} runs", broken_words="depth1")
    assert (found.codes, found.phrases) == (((4,), (1, 1)), ("a dog", "a dog"))
    assert found.num_malformed == 1


def test_words_of_other_sizes_are_read_in_strict_only():
    text = f"a dog {format_words((1, 2, 3), num_codes=8)}"
    found = read_answer(text, num_codes=8, num_levels=3)
    assert (found.codes, found.phrases) == (((1, 2, 3),), ("a dog",))
    with pytest.raises(ValueError, match="reads words of 2 levels, got 3; use strict"):
        read_answer(text, mode="official", num_codes=8, num_levels=3)


PLAIN = st.sampled_from(["a", "the", "red", "dog", "cat's", "2", "t-shirt", "isn't", "3.5"])
SAID = st.lists(PLAIN, min_size=1, max_size=3).map(" ".join)
CODES = st.tuples(st.integers(0, 255), st.integers(0, 255))
PHRASES = st.lists(st.tuples(SAID, st.lists(CODES, min_size=1, max_size=3)), max_size=4)


@settings(max_examples=40, deadline=None)
@given(PHRASES, SAID)
def test_marked_phrases_come_back_each_with_all_its_masks(phrases, between):
    """As dialogues in the authors' style are composed."""
    parts = [f"{marked(phrase)} {', '.join(map(format_words, codes))}" for phrase, codes in phrases]
    found = read_answer(f" {between} ".join(parts))
    assert found.caption == f" {between} ".join(phrase for phrase, _ in phrases)
    assert found.phrases == tuple(phrase for phrase, codes in phrases for _ in codes)
    assert found.codes == tuple(one for _, codes in phrases for one in codes)
    official = read_answer(f" {between} ".join(parts), mode="official")
    assert official.phrases == tuple(phrase for phrase, _ in phrases)
    assert official.codes == found.codes


@settings(max_examples=40, deadline=None)
@given(PHRASES)
def test_phrases_without_marks_come_back_where_punctuation_parts_them(phrases):
    parts = [f"{phrase} {', '.join(map(format_words, codes))}" for phrase, codes in phrases]
    found = read_answer("; ".join(parts))
    assert found.caption == "; ".join(phrase for phrase, _ in phrases)
    assert found.phrases == tuple(phrase for phrase, codes in phrases for _ in codes)
    assert found.codes == tuple(one for _, codes in phrases for one in codes)


PIECES = st.lists(
    st.sampled_from(
        [
            *(A, B, BROKEN, EMPTY, word(1, 2), "<|mt_", "<|mt_0007|>", OBJECT_START, OBJECT_END),
            *(" a dog ", " and ", ",", ". ", "\n", "<s>", "<|im_end|>", "<", ">", "'", '"', "ASSISTANT: "),
        ]
    ),
    max_size=12,
).map("".join)


@settings(max_examples=40, deadline=None)
@given(PIECES | st.text(max_size=20))
def test_any_text_is_read_with_a_phrase_for_each_mask_and_no_token_left(text):
    found = read_answer(text)
    assert len(found.phrases) == len(found.codes)
    assert list(found.codes) == parse_words_lenient(text).codes
    for said in (found.caption, *found.phrases):
        assert said == " ".join(said.split()) and "<|mt_" not in said and OBJECT_START not in said
    official = read_answer(text, mode="official")
    assert all(-1 <= code < 256 for codes in official.codes for code in codes)
