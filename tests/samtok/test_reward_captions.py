"""Components of grounded captions: worked cases, and that only the true caption earns everything."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samtok.rewards import DEFAULT, Question, Response, read
from samtok.rewards.captions import (
    COMPONENTS,
    caption_components,
    freshness,
    length_ratio,
    overlap,
    phrase_structure,
    phrases_of,
    tokens_of,
)
from samtok.words import END, START, format_words

DOG, CAT, MAT = (format_words(codes) for codes in ((3, 44), (7, 144), (9, 154)))
PLAIN = f"A dog {DOG} and two cats {CAT}, {MAT} sleep."


def ref(phrase: str, *masks: str) -> str:
    return f"<|object_ref_start|> {phrase} <|object_ref_end|> {', '.join(masks)}"


MARKED = f"{ref('A dog', DOG)} and {ref('two cats', CAT, MAT)} sleep."


def asked(text: str, *, task: str = "gcg", thinking: bool = False) -> Question:
    codes = read(Question(truth=(), text=""), Response(text=text)).words
    return Question(truth=codes, text=text, thinking=thinking, record={"task": task})


def worth(said: str, true: str, **changed) -> dict[str, float]:
    question = asked(true, **changed)
    return caption_components(question, read(question, Response(text=said)))


def phrases(text: str) -> list[tuple[int, str, bool]]:
    found = phrases_of(text, num_codes=256, num_levels=2)
    return [(codes[0], " ".join(phrase.tokens), phrase.marked) for codes, phrase in found]


@pytest.mark.parametrize("true", [PLAIN, MARKED, DOG, f"No {DOG}{DOG}", "nothing is here", ""])
def test_the_true_caption_earns_everything(true):
    assert worth(true, true) == dict.fromkeys(COMPONENTS, 1.0)
    thought = f"<think> {MARKED} </think><answer> {true} </answer>"
    assert worth(thought, true, thinking=True) == dict.fromkeys(COMPONENTS, 1.0)


@pytest.mark.parametrize("task", ["gres", "res", "psg", "dialogue"])
def test_other_questions_are_not_judged(task):
    assert worth("lorem", PLAIN, task=task) == dict.fromkeys(COMPONENTS, 1.0)
    question = Question(truth=(), text="No target.")  # without a record
    assert {DEFAULT(question, Response(text="lorem"))[name] for name in COMPONENTS} == {1.0}


def test_an_answer_that_is_not_there_earns_nothing():
    assert worth(PLAIN, PLAIN, thinking=True) == dict.fromkeys(COMPONENTS, 0.0)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        (MARKED, "a dog and two cats sleep"),
        (f"Dog{DOG}s", "dog s"),
        ("It's 2 o'clock, isn't it?", "it s 2 o clock isn t it"),
        ("STRASSE, Straße; ÜBER", "strasse strasse über"),
        ("<p> the dog </p> <|im_end|>", "the dog"),
        ("1 < 2", "1 2"),
        ("", ""),
    ],
)
def test_a_caption_is_its_words_without_case_and_tags(text, tokens):
    assert tokens_of(text) == tuple(tokens.split())


@pytest.mark.parametrize(
    ("said", "true", "length", "fresh", "f1"),
    [
        ("a b c d", "a b c d", 1, 1, 1),
        ("d c b a", "a b c d", 1, 1, 8 / 14),  # 4 tokens of 4 + 3 grams; no pair is the same
        ("a b", "a b c d", 2 / 4, 1, 6 / 10),
        ("a b c d e f g h", "a b c d", 4 / 8, 1, 14 / 22),
        ("a b c d a b c d", "a b c d", 4 / 8, 4 / 6, 14 / 22),  # runs of three: abc and bcd again
        ("a a a a a a", "a", 1 / 6, 1 / 4, 2 / 12),
        ("x y z w", "a b c d", 1, 1, 0),
        ("", "a b c d", 0, 1, 0),
        ("a", "", 0, 1, 0),
        ("", "", 1, 1, 1),
        ("a a a a", "a a a a", 1, 1, 1),  # what the truth repeats is no repetition
        ("a a a a a", "a a a a", 4 / 5, 2 / 3, 14 / 16),
    ],
)
def test_lengths_repetitions_and_overlaps_have_their_values(said, true, length, fresh, f1):
    ours, theirs = said.split(), true.split()
    assert length_ratio(ours, theirs) == length_ratio(theirs, ours) == pytest.approx(length)
    assert freshness(ours, theirs) == pytest.approx(fresh)
    assert overlap(ours, theirs) == overlap(theirs, ours) == pytest.approx(f1)
    found = worth(said, true)
    assert [found[name] for name in COMPONENTS[:3]] == pytest.approx([length, fresh, f1])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (PLAIN, [(3, "a dog", False), (7, "and two cats", False), (9, "and two cats", False)]),
        (MARKED, [(3, "a dog", True), (7, "two cats", True), (9, "two cats", True)]),
        (DOG + CAT, [(3, "", False), (7, "", False)]),
        (f"A dog {DOG}. {CAT}", [(3, "a dog", False), (7, "a dog", False)]),
        (f"{ref('A dog', DOG)} on {CAT}", [(3, "a dog", True), (7, "on", False)]),
        (f"{ref('', DOG)} on {ref('', CAT)}", [(3, "", True), (7, "", True)]),
        (f"<|object_ref_start|> a <|object_ref_end|> b {DOG}", [(3, "a b", False)]),
        (f"a <|object_ref_end|> {DOG}", [(3, "a", False)]),
        (f"<|object_ref_start|> a {ref('b', DOG)}", [(3, "b", True)]),
        (f"a {START}<|mt_0005|>{END} b {DOG}", [(3, "a b", False)]),
        (f"a {DOG.replace(END, '<|mt_0005|>' + END)}", [(3, "a", False)]),
        ("a dog", []),
    ],
)
def test_a_mask_has_the_phrase_before_it(text, found):
    assert phrases(text) == found


SWAPPED = f"{ref('A dog', CAT)} and {ref('two cats', DOG, MAT)} sleep."


@pytest.mark.parametrize(
    ("said", "true", "value"),
    [
        (f"{ref('two cats', MAT, CAT)} {ref('a dog', DOG)}", MARKED, 1),  # the order of phrases is free
        (f"{ref('A dog', DOG)}.", MARKED, 1 / 3),
        (SWAPPED, MARKED, 1 / 3),
        (f"{ref('A brown dog', DOG)}", ref("A dog", DOG), 2 * 2 / (3 + 5)),
        (f"A dog {DOG}", ref("A dog", DOG), 0),  # a mark is wanted
        (ref("A dog", DOG), f"A dog {DOG}", 0),  # or not
        (f"{DOG}, {CAT}, {MAT}", MARKED, 0),
        (f"{DOG}, {CAT}, {MAT}", PLAIN, 0),
        (f"A dog {DOG} sleeps.", f"A dog {DOG}", 1),  # what comes after is of the caption's overlap
        (ref("A dog", DOG, DOG), ref("A dog", DOG), 1 / 2),
        (f"{ref('A cat', DOG)} {ref('A dog', DOG)}", ref("A dog", DOG), (2 / 6) / 2),  # the first one counts
        (ref("A dog", DOG) + "<|mt_0003|><|mt_0300|>" * 3, ref("A dog", DOG), 1 / 4),
        (ref("A dog", DOG, DOG), ref("A dog", DOG, DOG), 1),
        (f"{ref('a', DOG)} {ref('b', DOG)}", f"{ref('a', DOG)} {ref('b', DOG)}", 1),
        (f"{ref('b', DOG)} {ref('a', DOG)}", f"{ref('a', DOG)} {ref('b', DOG)}", 0),
        ("A dog", "No dog.", 1),  # no mask on either side
        (f"A dog {DOG}", "No dog.", 0),
    ],
)
def test_a_true_word_earns_what_its_phrase_has_of_the_true_one(said, true, value):
    assert worth(said, true)["phrase_structure"] == pytest.approx(value)


_PIECES = st.sampled_from(
    [
        DOG,
        CAT,
        START,
        END,
        "<|mt_0003|>",
        "<|object_ref_start|>",
        "<|object_ref_end|>",
        ", ",
        " a dog ",
        " on ",
    ]
)
_CAPTIONS = st.lists(_PIECES, max_size=14).map("".join)
_TRUTHS = st.lists(st.sampled_from([DOG, CAT, ref("a dog", CAT), " a dog ", " on ", ", "]), max_size=6)


@settings(max_examples=60, deadline=None)
@given(_CAPTIONS, _TRUTHS.map("".join))
def test_components_are_shares_and_phrases_earn_no_more_than_words(said, true):
    question = asked(true)
    response = Response(text=said)
    found = DEFAULT(question, response)
    assert all(0 <= found[name] <= 1 for name in COMPONENTS)
    assert found["phrase_structure"] <= found["mask"] + 1e-12
    assert phrase_structure(question, read(question, response)) == found["phrase_structure"]
    if all(found[name] == 1 for name in ("mask", *COMPONENTS)):
        ours, theirs = (
            sorted((codes, sorted(tokens.split()), marked) for codes, tokens, marked in phrases(text))
            for text in (said, true)
        )
        assert ours == theirs and sorted(tokens_of(said)) == sorted(tokens_of(true))


@pytest.mark.parametrize(
    "piece", [DOG, f" a{DOG}", "<|object_ref_start|>", "<|object_ref_end|>", ref("a", DOG), "<", "<a", START]
)
def test_a_long_caption_is_scored_in_linear_time(piece):
    text = piece * (50_000 // len(piece)) + "x"
    before = time.process_time()
    worth(text, PLAIN)
    assert time.process_time() - before < 2
