"""Rewards: the table of cases with the value of each, what does not pay, and pixels."""

import math
import pickle
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from samtok import masks
from samtok.errors import DataError
from samtok.model.tokenizer import MaskTokenizer
from samtok.rewards import COMPONENTS, DEFAULT, PAPER, Question, Response, TextReward, mask_reward, read
from samtok.rewards.form import format_reward, no_repeat_reward
from samtok.rewards.iou import IouReward
from samtok.rewards.mask_words import check_options
from samtok.words import all_words, format_words

START, END = "<|mt_start|>", "<|mt_end|>"
A, A2, B, C = (format_words(codes) for codes in ((3, 44), (3, 45), (7, 144), (9, 154)))
X = f"{START}<|mt_0300|><|mt_0003|>{END}"
NONE = "No target."
HALF, OPEN = f"{START}<|mt_0003|>{END}", f"{START}<|mt_0003|><|mt_0300|>"


def th(thought: str, answer: str) -> str:
    return f"<think>{thought}</think><answer>{answer}</answer>"


def asked(truth: str, *, thinking: bool = False) -> Question:
    codes = read(Question(truth=(), text=""), Response(text=truth)).words
    return Question(truth=codes, text=truth, thinking=thinking)


def worth(response: str, truth: str, *, thinking: bool = False, reward: TextReward = DEFAULT) -> dict:
    return reward(asked(truth, thinking=thinking), Response(text=response))


# prediction, truth, thinking; of Eq. 5 as printed: N_TP, N_pred, R; of the graded variant: R; of training: R
TABLE = [
    (A, A, False, 1, 1, 1, 1, 1),
    (A + B, B + A, False, 2, 2, 1, 1, 1),
    (A, A + B, False, 1, 1, 1 / 2, 1 / 2, 1 / 2),
    (A + B + C, A, False, 1, 3, 1 / 3, 1 / 3, 1 / 3),
    (A + A + A, A, False, 1, 3, 1 / 3, 1 / 3, 1 / 3),
    (A + A, A + B, False, 1, 2, 1 / 2, 1 / 2, 1 / 2),
    (A + A + B, A + A + B, False, 2, 3, 2 / 3, 2 / 3, 1),
    (A2, A, False, 0, 1, 0, 0.4, 0),
    (f"{HALF}, {B}", A + B, False, 1, 1, 1 / 2, 1 / 2, 1 / 2),
    (OPEN, A, False, 0, 0, 0, 0, 0),
    (th(A + B, B), B, True, 1, 1, 1, 1, 1),
    (th(B, "not sure"), B, True, 0, 0, 0, 0, 0),
    (f"<think> so {B}", B, True, 0, 0, 0, 0, 0),
    (NONE, NONE, False, 0, 0, 1, 1, 1),
    (A, NONE, False, 0, 1, 0, 0, 0),
    (NONE, A, False, 0, 0, 0, 0, 0),
    (th("x", X), A, True, 0, 1, 0, 0, 0),
    (A + HALF, A, False, 1, 1, 1, 1, 1 / 2),
]


@pytest.mark.parametrize(
    ("response", "truth", "thinking", "tp", "pred", "paper", "graded", "ours"), TABLE, ids=range(1, 19)
)
def test_every_row_of_the_table_has_its_value(response, truth, thinking, tp, pred, paper, graded, ours):
    question = asked(truth, thinking=thinking)
    answer = read(question, Response(text=response))
    assert len(answer.words) + answer.num_misplaced == pred
    found = PAPER(question, Response(text=response))
    assert found["mask"] == pytest.approx(paper) and found["graded"] == pytest.approx(graded)
    most = max(pred, len(question.truth))
    assert found["mask"] * most == pytest.approx(tp) if most else tp == 0
    assert DEFAULT(question, Response(text=response))["mask"] == pytest.approx(ours)


@pytest.mark.parametrize(
    ("response", "whole"), [(th(A + B, B), 1 / 3), (th(B, "not sure"), 1), (f"<think> so {B}", 1)]
)
def test_the_whole_response_counts_where_no_thought_was_asked_for(response, whole):
    assert worth(response, B, reward=PAPER)["mask"] == pytest.approx(whole)


@pytest.mark.parametrize(
    ("response", "read_as"),
    [
        (f"<think>{B}</think>{A}", A),
        (f"<think>{B}</think><answer>{A}", A),
        (f"{B}<answer>{A}</answer>", A),
        (f"{th(B, A)}<answer>{C}</answer> {C}", A),
        (A, None),
        ("", None),
    ],
)
def test_the_answer_of_a_thinking_response_is_found_by_its_tags(response, read_as):
    found = read(asked(A, thinking=True), Response(text=response))
    assert found.text == read_as and (found.words == ((3, 44),)) == (read_as is not None)


def test_a_thinking_response_without_tags_earns_nothing_even_where_nothing_is_true():
    found = worth(NONE, NONE, thinking=True)
    assert (found["mask"], found["graded"], found["readable"], found["says_none"]) == (0, 0, 0, 0)
    assert worth(th("x", NONE), NONE, thinking=True)["mask"] == 1


@pytest.mark.parametrize(
    ("broken", "counted", "misplaced"),
    [
        (HALF, 1, 0),
        (OPEN, 1, 0),
        (START, 1, 0),
        (START + END, 1, 0),
        (X, 1, 1),
        (f"{START}<|mt_0003|><|mt_0007|>{END}", 1, 1),
        (f"{START}<|mt_0003|><|mt_0512|>{END}", 1, 1),
        ("<|mt_0003|><|mt_0300|>", 1, 0),
        (" <|mt_0003|> <|mt_0300|>", 2, 0),
        ("<|mt_0003|>" * 5, 3, 0),
        (END, 1, 0),
        ("<|mt_", 1, 0),
        (OPEN + HALF + X, 3, 1),
    ],
)
def test_a_broken_word_costs_as_a_wrong_one(broken, counted, misplaced):
    answer = read(asked(A), Response(text=A + broken))
    assert (answer.num_broken, answer.num_misplaced) == (counted, misplaced)
    assert worth(A + broken, A)["mask"] == pytest.approx(1 / (1 + counted))
    assert worth(A + broken, A, reward=PAPER)["mask"] == pytest.approx(1 / (1 + misplaced))
    assert worth(broken, NONE)["mask"] == 0


# What a policy may try instead of looking.
TRIES = [
    ("one word again and again", A * 50, A + B, 1 / 50),
    ("many words", "".join(format_words((i, i)) for i in range(100)), format_words((5, 5)), 1 / 100),
    ("nothing", "", A, 0),
    ("space", " \n", A, 0),
    ("every token of the vocabulary", "".join(all_words()), A, 0),
    ("a truncated word", A[: -len(END)], A, 0),
    ("half a truncated word", A[:-3], A, 0),
    ("a word cut by text", A.replace("<|mt_0300|>", " <|mt_0300|>"), A, 0),
    ("codes without a word around", "<|mt_0003|><|mt_0300|>" * 9, A, 0),
    ("a word in another word", START + A + END, A, 1 / 3),
    ("all second codes in one word", START + "<|mt_0003|>" + "".join(all_words()[257:513]) + END, A, 0),
]


@pytest.mark.parametrize(("response", "truth", "most"), [t[1:] for t in TRIES], ids=[t[0] for t in TRIES])
def test_what_is_no_answer_earns_no_more_than_it_should(response, truth, most):
    assert worth(response, truth)["mask"] == pytest.approx(most)


def test_all_words_of_the_vocabulary_earn_one_part_of_them():
    every = [(a, b) for a in range(4) for b in range(4)]
    text = "".join(format_words(codes, num_codes=4) for codes in every)
    question = Question(truth=(every[5],), text="", num_codes=4)
    assert DEFAULT(question, Response(text=text))["mask"] == 1 / 16
    assert TextReward(partial=0.5)(question, Response(text=text))["mask"] == 1 / 16


@pytest.mark.parametrize(
    "response", [f"<think>{A}</think>", f"<think>{A}</think><answer></answer>", th(A, NONE)]
)
def test_words_in_the_thought_earn_nothing(response):
    found = worth(response, A, thinking=True)
    assert (found["mask"], found["num_words"], found["says_none"]) == (0, 0, 1)


def test_an_empty_response_is_a_no_target():
    assert worth("", NONE)["mask"] == 1 and worth("", A)["mask"] == 0
    assert worth("", NONE)["says_none"] == 1 and worth(HALF, NONE)["says_none"] == 0


@pytest.mark.parametrize("thinking", [False, True])
def test_length_alone_changes_no_component(thinking):
    short, long = (th(t, A) if thinking else t + A for t in ("It is here. ", " ".join(map(str, range(999)))))
    assert worth(short, A, thinking=thinking) == worth(long, A, thinking=thinking)


@pytest.mark.parametrize(
    ("said", "true", "partial", "value"),
    [
        ([(3, 45)], [(3, 44)], 0.5, 0.5),
        ([(3, 45)], [(3, 44)], 0.0, 0),
        ([(4, 44)], [(3, 44)], 0.5, 0),
        ([(3, 45), (3, 46)], [(3, 44)], 0.5, 0.25),  # one true mask is matched once
        ([(3, 45), (3, 44)], [(3, 44), (3, 44)], 0.5, 0.75),
        ([(3, 44), (3, 45)], [(3, 44)], 0.5, 0.5),  # the equal one takes it
        ([(3, 45), (3, 45)], [(3, 44), (3, 46)], 0.5, 0.5),
        ([(1, 2, 9)], [(1, 2, 3)], 0.5, 0.5),
        ([(1, 9, 3)], [(1, 2, 3)], 0.5, 0.25),
        ([(9, 2, 3)], [(1, 2, 3)], 0.5, 0),
        ([(1, 9, 9), (1, 2, 9)], [(1, 2, 3), (1, 4, 5)], 0.4, 0.3),
        ([(5,)], [(6,)], 0.5, 0),
    ],
)
def test_first_codes_earn_a_part(said, true, partial, value):
    question = Question(truth=tuple(true), text="", num_levels=len(true[0]))
    text = "".join(format_words(codes) for codes in said)
    assert TextReward(partial=partial)(question, Response(text=text))["mask"] == pytest.approx(value)


def test_distinct_words_share_no_credit_with_their_repeats():
    question = Question(truth=((3, 44), (3, 46)), text="")
    response = Response(text=format_words((3, 45)) * 2)
    assert TextReward(tp="distinct", partial=0.5)(question, response)["mask"] == 0.25
    assert TextReward(tp="multiset", partial=0.5)(question, response)["mask"] == 0.5


def test_unknown_options_are_refused():
    with pytest.raises(
        ValueError, match="partial must be in .0, 1., where 1 is what a true word earns, got 1.1"
    ):
        TextReward(partial=1.1)
    with pytest.raises(ValueError, match="partial must be"):
        mask_reward(asked(A), read(asked(A), Response(text=A)), partial=-0.1)
    with pytest.raises(ValueError, match="tp must be one of multiset, distinct, got 'some'"):
        check_options("some", 0.0)


_WORDS = st.lists(st.tuples(*[st.integers(0, 2)] * 3), max_size=6)
_REWARDS = st.builds(
    TextReward,
    tp=st.sampled_from(["multiset", "distinct"]),
    count_malformed=st.booleans(),
    partial=st.floats(0, 1),
)


def _question(true: list) -> Question:
    return Question(truth=tuple(true), text="", num_codes=3, num_levels=3)


def _said(words: list) -> str:
    return "".join(format_words(codes, num_codes=3) for codes in words)


@given(_WORDS, _WORDS, _REWARDS, st.randoms(use_true_random=False))
def test_order_is_free(said, true, reward, random):
    before = reward(_question(true), Response(text=_said(said)))
    random.shuffle(said)
    random.shuffle(true)
    assert reward(_question(true), Response(text=_said(said))) == before


@given(_WORDS, _WORDS, st.floats(0, 1))
def test_the_match_is_the_best_one(said, true, partial):
    def worth_of(one: tuple, other: tuple) -> float:
        same = next((i for i in range(3) if one[i] != other[i]), 3)
        return 1.0 if same == 3 else partial * same / 2

    values = np.array([[worth_of(one, other) for other in true] for one in said]).reshape(
        len(said), len(true)
    )
    best = values[linear_sum_assignment(values, maximize=True)].sum() if values.size else 0.0
    expected = best / max(len(said), len(true)) if said or true else 1.0
    found = TextReward(partial=partial)(_question(true), Response(text=_said(said)))["mask"]
    assert found == pytest.approx(expected)


@given(_WORDS, _WORDS)
def test_only_the_exact_words_earn_everything(said, true):
    found = TextReward(partial=0.5)(_question(true), Response(text=_said(said)))["mask"]
    assert 0 <= found <= 1 and (found == 1) == (sorted(said) == sorted(true))


_PIECES = st.sampled_from(
    [*all_words(3, 3), "<|mt_", "<think>", "</think>", "<answer>", "</answer>", "no", ". ", "<|im_end|>"]
)


@given(st.lists(_PIECES, max_size=30).map("".join), _WORDS, _REWARDS, st.booleans())
def test_any_text_gets_named_finite_values(text, true, reward, thinking):
    question = Question(truth=tuple(true), text="", thinking=thinking, num_codes=3, num_levels=3)
    found = reward(question, Response(text=text))
    assert tuple(found) == COMPONENTS and all(math.isfinite(value) for value in found.values())
    assert all(0 <= found[name] <= 1 for name in COMPONENTS if not name.startswith("num_"))
    assert read(question, Response(text=text)).num_broken >= 0


@pytest.mark.parametrize(
    ("response", "value"),
    [
        (th("a", "b"), 1),
        (th(" a\nb ", "\nb"), 1),
        ("\n<think>a</think>\n <answer>b</answer> ", 1),
        (th("a", "b") + "<|im_end|>", 1),
        (th("a", "b") + " <|eot_id|>\n<|endoftext|>", 1),
        (th("", ""), 1),
        (th("a", "b") + A, 0),
        ("so " + th("a", "b"), 0),
        (th("a", "b") * 2, 0),
        (th("a", "b</answer><answer>c"), 0),
        ("<think>a</think>b", 0),
        ("<answer>b</answer><think>a</think>", 0),
        ("b", 0),
        ("", 0),
    ],
)
def test_a_thinking_response_has_one_thought_and_one_answer(response, value):
    assert format_reward(asked(A, thinking=True), Response(text=response)) == value
    assert format_reward(asked(A), Response(text=response)) == float(response in ("b", ""))


TAGS = ("<think>", "</think>", "<answer>", "</answer>", "<|im_end|>", " ", "\n", "a")
THINKING = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)
ENDS = re.compile(r"(?:\s*<\|(?:im_end|endoftext|eot_id|eom_id|end_of_text)\|>)+\s*\Z")


@given(
    pieces=st.lists(st.sampled_from(TAGS), max_size=4),
    places=st.lists(st.integers(0, 8), min_size=4, max_size=4),
)
def test_the_form_is_that_of_the_patterns(pieces, places):
    whole = list(th("a", " b"))
    for piece, place in zip(pieces, places, strict=False):
        whole.insert(place * len(whole) // 8, piece)
    for text in ("".join(whole), "".join(pieces)):
        plain = ENDS.sub("", text).strip()
        once = all(plain.count(tag) == 1 for tag in TAGS[:4])
        expected = float(once and THINKING.fullmatch(plain) is not None)
        assert format_reward(asked(A, thinking=True), Response(text=text)) == expected


@pytest.mark.parametrize("piece", [" ", "a. ", "<think>", "<answer>", " <|im_end|>x"])
def test_a_response_of_a_million_characters_is_scored_in_linear_time(piece):
    text = piece * (1_000_000 // len(piece)) + "x"
    before = time.process_time()
    DEFAULT(asked(A, thinking=True), Response(text=text))
    assert time.process_time() - before < 10


@pytest.mark.parametrize(
    ("response", "value"),
    [
        (A * 3, 1),
        (A * 4, 0),
        (th(A * 2, A * 2), 0),
        ((A + A2) * 3, 1),
        ("I see. " * 3, 1),
        ("I see. " * 4, 0),
        ("I see.\nI  SEE! i see?I see", 0),
        ("....\n\n\n\n", 1),
        ("", 1),
    ],
)
def test_a_word_or_sentence_may_come_three_times(response, value):
    assert no_repeat_reward(asked(A), Response(text=response)) == value


def test_components_count_what_a_run_has_to_watch():
    found = worth(A + A + HALF + "<|mt_0003|>", A)
    assert (found["num_words"], found["num_duplicates"], found["num_malformed"]) == (2, 1, 2)


def test_rewards_travel_to_other_processes():
    assert pickle.loads(pickle.dumps(PAPER)) == PAPER != DEFAULT


@pytest.mark.parametrize("module", ["samtok.rewards", "samtok.rewards.iou"])
def test_rewards_load_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Pixels.

SIDE = 32
LEFT, RIGHT = (1, 2), (40, 3)


@pytest.fixture(scope="module")
def tokenizer() -> MaskTokenizer:
    torch.manual_seed(0)
    return MaskTokenizer.from_preset("micro").eval().requires_grad_(False)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (SIDE, SIDE + 8, 3), dtype=np.uint8)


def _sized(tokenizer: MaskTokenizer, *truth: tuple, **changed) -> Question:
    sizes = {"num_codes": tokenizer.num_codes, "num_levels": tokenizer.num_levels}
    return Question(truth=truth, text="", **sizes, **changed)


def _response(tokenizer: MaskTokenizer, *words: tuple) -> Response:
    return Response(text="".join(format_words(codes, num_codes=tokenizer.num_codes) for codes in words))


def test_iou_is_that_of_the_unions_and_one_image_is_encoded_once(tokenizer, picture):
    calls = []
    hook = tokenizer.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    question = _sized(tokenizer, LEFT, RIGHT)
    said = [(LEFT, RIGHT), (RIGHT, LEFT, LEFT), (LEFT,), ((9, 9),), ()]
    responses = [_response(tokenizer, *words) for words in said]
    found = IouReward(tokenizer).score(picture, [question] * len(responses), responses)
    hook.remove()
    assert len(calls) == 1
    decoded = {codes: tokenizer.decode(picture, np.array([codes]))[0] for codes in (LEFT, RIGHT, (9, 9))}
    truth = decoded[LEFT] | decoded[RIGHT]
    assert 0 < truth.sum() < truth.size
    expected = [1, 1, masks.iou(decoded[LEFT], truth), masks.iou(decoded[(9, 9)], truth), 0]
    assert found == pytest.approx(expected)


def test_iou_is_with_the_original_mask_where_the_record_has_it(tokenizer, picture):
    original = np.zeros(picture.shape[:2], bool)
    original[4:20, 3:30] = True
    listed = [
        {"codes": list(LEFT), "rle": masks.encode(original)},
        {"codes": list(RIGHT), "rle": None},
    ]
    one = _sized(tokenizer, LEFT, record={"masks": listed})
    both = _sized(tokenizer, LEFT, RIGHT, record={"masks": listed})
    response = _response(tokenizer, LEFT)
    found = IouReward(tokenizer).score(picture, [one, both], [response, response])
    said, right = tokenizer.decode(picture, np.array([LEFT, RIGHT]))
    assert found == pytest.approx([masks.iou(said, original), masks.iou(said, original | right)])


def test_two_true_masks_of_the_same_word_are_both_true(tokenizer, picture):
    upper, lower = np.zeros((2, *picture.shape[:2]), bool)
    upper[:9], lower[-3:] = True, True
    listed = [{"codes": list(LEFT), "rle": masks.encode(mask)} for mask in (upper, lower)]
    questions = [_sized(tokenizer, *[LEFT] * times, record={"masks": listed}) for times in (1, 2)]
    found = IouReward(tokenizer).score(picture, questions, [_response(tokenizer, LEFT)] * 2)
    said = tokenizer.decode(picture, np.array([LEFT]))[0]
    assert found == pytest.approx([masks.iou(said, upper), masks.iou(said, upper | lower)])


def test_iou_of_a_no_target_is_whether_nothing_is_named(tokenizer, picture):
    question = _sized(tokenizer)
    thinking = _sized(tokenizer, thinking=True)
    texts = [NONE, _response(tokenizer, LEFT).text, START, "<|mt_0001|><|mt_0066|>", NONE]
    responses = [Response(text=text) for text in texts]
    found = IouReward(tokenizer).score(picture, [question] * 4 + [thinking], responses)
    assert found == [1, 0, 0, 0, 0]


def test_a_response_with_too_many_words_is_not_decoded(tokenizer, picture):
    question, every = _sized(tokenizer, LEFT), [(i, 0) for i in range(8)]
    reward = IouReward(tokenizer, max_words=7)
    many, fewer = _response(tokenizer, *every), _response(tokenizer, *every[:7], *every[:7])
    found = reward.score(picture, [question] * 2, [many, fewer])
    assert found[0] == 0 < found[1]
    wide = _sized(tokenizer, *every)
    assert reward.score(picture, [wide], [many]) == [1]


def test_iou_refuses_what_does_not_belong_together(tokenizer, picture):
    reward, question = IouReward(tokenizer), _sized(tokenizer, LEFT)
    with pytest.raises(ValueError, match="1 questions for 0 responses"):
        reward.score(picture, [question], [])
    with pytest.raises(ValueError, match="256 codes on 2 levels, its tokenizer 64 on 2"):
        reward.score(picture, [asked(A)], [Response(text=A)])
    rle = masks.encode(np.ones((5, 5), bool))
    record = {"sample_id": "s7", "masks": [{"codes": list(LEFT), "rle": rle}]}
    with pytest.raises(DataError, match="sample 's7' do not fit its image of 32 x 40 pixels"):
        reward.score(picture, [_sized(tokenizer, LEFT, record=record)], [Response(text=NONE)])
    with pytest.raises(ValueError, match="max_words must be >= 1"):
        IouReward(tokenizer, max_words=0)
