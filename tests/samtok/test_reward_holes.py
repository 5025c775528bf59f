"""Nothing but the true masks earns everything: whatever the authors' scripts would read is counted."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samtok.metrics.text_masks import Reading, read_text
from samtok.rewards import DEFAULT, PAPER, Question, Response, read
from samtok.words import END, START, format_words

A, B = format_words((3, 44)), format_words((7, 144))
BARE = "<|mt_0003|><|mt_0300|>"
LONG = A.replace(END, f"<|mt_0005|><|mt_0400|>{END}")
NONE = "No target."
OFFICIAL, STRICT = (Reading.of(mode, several=True) for mode in ("official", "strict"))
FINE = settings(max_examples=100, deadline=None)


def asked(truth: str, *, thinking: bool = False) -> Question:
    codes = read(Question(truth=(), text=""), Response(text=truth)).words
    return Question(truth=codes, text=truth, thinking=thinking)


def official(text: str) -> list[tuple[int, ...]]:
    return read_text(text, OFFICIAL, num_codes=256, num_levels=2).codes


# What is said, the truth, masks that the authors' scripts read, what it earns by default and in the paper.
HOLES = [
    (BARE, NONE, 1, 0, 1),
    (BARE * 3, NONE, 3, 0, 1),
    (f"{NONE} <|mt_0003|> and <|mt_0300|>", NONE, 1, 0, 1),
    (f"{START}<|mt_0003|>{END}", NONE, 1, 0, 1),
    ("<|mt_", NONE, 0, 0, 1),
    (A + BARE * 3, A, 4, 1 / 4, 1),
    (f"{A} {BARE} {BARE}", A, 3, 1 / 3, 1),
    (A + f"{START}<|mt_0009|>{END}" * 3, A, 4, 1 / 4, 1),
    (LONG, A, 2, 1 / 2, 1),
    (LONG + LONG, A + A, 4, 1 / 2, 1 / 2),  # the paper counts equal true words once
    (A.replace(END, "<|mt_0005|>" + END), A, 1, 1 / 2, 1),
    (A.replace(END, "<|mt_0005|><|mt_0400|>" * 3 + END), A, 4, 1 / 4, 1),
    (A + END, A, 1, 1 / 2, 1),
    (START + A + END, A, 1, 1 / 3, 1),
]


@pytest.mark.parametrize(("response", "truth", "masks", "ours", "paper"), HOLES)
def test_what_the_official_reading_takes_for_masks_is_paid_for(response, truth, masks, ours, paper):
    assert len(official(response)) == masks
    question, said = asked(truth), Response(text=response)
    assert DEFAULT(question, said)["mask"] == pytest.approx(ours)
    assert PAPER(question, said)["mask"] == pytest.approx(paper)


def test_an_answer_of_pieces_of_words_does_not_say_that_nothing_is_there():
    assert DEFAULT(asked(NONE), Response(text=BARE))["says_none"] == 0
    assert DEFAULT(asked(NONE), Response(text=NONE))["says_none"] == 1


_TOKENS = [START, END, "<|mt_", *(f"<|mt_{number:04d}|>" for number in (3, 7, 255, 256, 300, 400, 511, 512))]
_PIECES = st.sampled_from(
    [*_TOKENS, A, A, B, B, " ", "the cat, ", NONE, "<think>", "</think>", "<answer>", "</answer>"]
)
_TEXTS = st.lists(_PIECES, max_size=12).map("".join)
_TRUTHS = st.lists(st.sampled_from([A, B]), max_size=3)


@FINE
@given(_TRUTHS, st.lists(_PIECES, max_size=4), st.booleans(), st.randoms(use_true_random=False))
def test_only_what_every_reading_takes_for_the_truth_earns_everything(true, others, thinking, random):
    question = asked("".join(true), thinking=thinking)
    pieces = [*true, *others]
    random.shuffle(pieces)
    text = "<answer>" * thinking + "".join(pieces)
    if DEFAULT(question, Response(text=text))["mask"] != 1:
        return
    scored = read(question, Response(text=text)).text
    assert scored is not None
    for reading in (OFFICIAL, STRICT):
        found = read_text(scored, reading, num_codes=256, num_levels=2)
        assert Counter(found.codes) == Counter(question.truth)


@FINE
@given(_TEXTS)
def test_no_fewer_predictions_are_counted_than_any_reading_finds(text):
    answer = read(asked(NONE), Response(text=text))
    counted = len(answer.words) + answer.num_broken
    for policy in ("drop", "depth1", "reference"):
        found = read_text(text, Reading(policy), num_codes=256, num_levels=2)
        assert counted >= len(found.codes)
    assert (answer.num_broken > 0) == (answer.num_malformed > 0)


@FINE
@given(_TEXTS, _TRUTHS, st.sampled_from(_TOKENS), st.integers(0, 3))
def test_a_stray_piece_never_pays(text, true, piece, place):
    """Put before, after or between the words of a right answer, or behind any answer."""
    mixed = "".join([*true[:place], " ", piece, " ", *true[place:]])
    question = asked("".join(true))
    assert DEFAULT(question, Response(text="".join(true)))["mask"] == 1
    assert DEFAULT(question, Response(text=mixed))["mask"] < 1
    before, after = (DEFAULT(question, Response(text=f"{text} {more}"))["mask"] for more in ("", piece))
    assert after <= before
