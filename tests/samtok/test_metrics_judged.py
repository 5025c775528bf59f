"""What judged benchmarks share, and DLC-Bench: its parser, its rules, and the published numbers of DAM-3B."""

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samtok.errors import ConfigError, DataError
from samtok.metrics.judged import Ask, Sampling, counts, filled, wording_of
from samtok.metrics.judged_dlc import (
    LETTERS,
    SAMPLING,
    WORDING,
    DlcMask,
    DlcWording,
    Question,
    dlc,
    parse,
    recognition,
)
from samtok.metrics.referring import MODES
from tests.judgements import published

ANY = settings(max_examples=60, deadline=None)
YES_NO = ("Yes", "No")
COLOURS = ("The colour is mentioned.", "The colour is not mentioned.", "Red", "Red and blue")
RECOGNITION = Question(text="A dog?", choices=(("Yes", 1.0), ("No", 0.0)), kind="recognition")

# Choices, reply, what is read from it; the first six rows by the public function, the rest by its rules.
READ = [
    (YES_NO, "No, it is not.", 1),
    (COLOURS, "red and blue", 3),
    (COLOURS, "C. Red and blue maybe", 2),
    (COLOURS, "D", 3),
    (COLOURS, "colour", 1),
    (COLOURS, "x", None),
    (YES_NO, "  YES\n", 0),
    (YES_NO, "b. no", 1),
    (COLOURS, "c", 2),
    (COLOURS, "A. The colour is mentioned. No: The colour is not mentioned.", 0),
    (COLOURS, "the colour is mentioned. the colour is not mentioned.", 1),
    (COLOURS, "It is red and blue", 3),
    (("one", "two", "one two"), "three one two", 1),
    (COLOURS, "b\nbecause", 1),
    (COLOURS, "b because", None),
    (("aa", "bb"), "b.", 1),
    (("aa", "bb"), "c.", None),
    (("aa", "bb"), "c\nwhy", None),
    (("aa", "bb"), "e", None),
    (("red", "blue"), "d", None),
    (COLOURS, "", None),
    (COLOURS, " \n ", None),
    (YES_NO, "yes or no", 1),
    (("no", "no"), "no", 0),
]


@pytest.mark.parametrize(("choices", "reply", "chosen"), READ)
def test_a_reply_means_the_choice_that_the_public_evaluator_reads(choices, reply, chosen):
    assert parse(reply, choices) == chosen


@ANY
@given(st.text(max_size=40), st.lists(st.text(max_size=12), min_size=1, max_size=5))
def test_any_reply_is_read_or_none(reply, choices):
    found = parse(reply, choices)
    assert found is None or 0 <= found < len(choices)


@ANY
@given(st.lists(st.text(min_size=2, max_size=12).map(str.strip), min_size=1, max_size=5), st.data())
def test_a_reply_in_the_form_of_the_prompt_is_read_as_its_choice(choices, data):
    number = data.draw(st.integers(0, len(choices) - 1))
    before = [f"{LETTERS[place]}. {text}".lower() for place, text in enumerate(choices[:number])]
    reply = f"{LETTERS[number].upper()}. {choices[number]}"
    if reply.strip().lower() not in [*before, *(text.lower() for text in choices)]:
        assert parse(reply, choices) == number


# ---------------------------------------------------------------- published numbers


@pytest.mark.parametrize("mode", MODES)
def test_the_judgements_of_dam_3b_give_its_published_numbers(mode):
    expected, masks, replies, _ = published()
    found = dlc(masks, replies, mode=mode)
    assert found["pos"] == pytest.approx(expected["pos"], abs=5e-11) == pytest.approx(0.5101666667, abs=5e-11)
    assert found["neg"] == pytest.approx(expected["neg"], abs=5e-11) == pytest.approx(0.83, abs=5e-11)
    assert round(found["avg"], 3) == 0.670
    assert (found["misrecognized"], found["recognized"]) == (8, 0.92)
    assert (found["masks"], found["masks_pos"]) == (100, 100)
    assert found["expected"] == found["asked"] == found["judged"] == 992
    assert found["missing"] == found["failed"] == found["unparsed"] == 0
    kinds = [question.kind for mask in masks for question in mask.questions]
    assert (kinds.count("positive"), kinds.count("negative")) == (392, 500)


def test_every_reply_of_the_published_judgements_is_read_as_it_was():
    _, masks, replies, chosen = published()
    for mask in masks:
        for name, question in zip(mask.names, mask.questions, strict=True):
            assert parse(replies[name] or "", [text for text, _ in question.choices]) == chosen[name], name


# ---------------------------------------------------------------- rules


def question(kind: Any, *scores: float) -> Question:
    return Question(
        text="?",
        choices=tuple((f"choice {number}", float(score)) for number, score in enumerate(scores)),
        kind=kind,
    )


def mask(name: str = "7", caption: str | None = "A dog.") -> DlcMask:
    asked = (question("positive", 1, -1, 0), question("positive", 0.5, -1), question("negative", 1, -1))
    return DlcMask(mask_id=name, questions=(RECOGNITION, *asked), caption=caption)


def replies(*texts: str | None, name: str = "7") -> dict[str, str | None]:
    return {f"{name}/{number}": text for number, text in enumerate(texts)}


# Replies to recognition, two positive and one negative question; positive, negative, unparsed, failed.
SCORED = [
    (("Yes", "a", "a", "a"), 0.75, 1.0, 0, 0),
    (("No", "a", "a", "a"), 0.0, 0.0, 0, 0),
    (("No", "b", "b", "b"), -1.0, -1.0, 0, 0),
    (("Yes", "b", "a", "b"), -0.25, -1.0, 0, 0),
    (("Yes", "??", "a", "a"), 0.25, 1.0, 1, 0),
    (("perhaps", "a", "b", "a"), -0.5, 0.0, 1, 0),
    (("Yes", None, "a", None), 0.5, None, 0, 2),
    ((None, "a", "a", "a"), None, None, 0, 1),
    (("Yes", "", "", ""), 0.0, 0.0, 3, 0),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("texts", "pos", "neg", "unparsed", "failed"), SCORED)
def test_scores_of_one_mask(mode, texts, pos, neg, unparsed, failed):
    found = dlc([mask()], replies(*texts), mode=mode)
    assert (found["pos"], found["neg"]) == (pos, neg)
    assert found["avg"] == (None if neg is None or pos is None else (pos + neg) / 2)
    assert (found["unparsed"], found["failed"], found["judged"]) == (unparsed, failed, 4 - failed)


def test_means_are_over_masks_and_one_without_negatives_has_no_part_in_theirs():
    lone = DlcMask(mask_id="8", questions=(RECOGNITION, question("positive", 1, -1)), caption="A cat.")
    said = replies("Yes", "a", "a", "b") | replies("Yes", "b", name="8")
    found = dlc([mask(), lone], said)
    assert (found["pos"], found["neg"]) == ((0.75 - 1) / 2, -1.0)
    assert (found["masks"], found["masks_pos"], found["masks_neg"]) == (2, 2, 1)


def test_a_mask_without_a_description_scores_0_or_is_left_out_and_is_told_in_both():
    both, said = [mask(), mask("8", None)], replies("Yes", "a", "a", "a")
    strict, official = dlc(both, said), dlc(both, said, mode="official")
    assert (strict["pos"], strict["neg"], strict["masks_pos"]) == (0.375, 0.5, 2)
    assert (official["pos"], official["neg"], official["masks_pos"]) == (0.75, 1.0, 1)
    for found in (strict, official):
        assert (found["expected"], found["asked"], found["missing"]) == (8, 4, 4)
    assert not mask("8", None).asks()
    nothing = dlc([], {})
    assert nothing["pos"] is nothing["avg"] is nothing["recognized"] is None


def test_replies_of_other_asks_are_refused():
    with pytest.raises(ValueError, match="there is no reply to 7/3"):
        dlc([mask()], replies("Yes", "a", "a"))
    with pytest.raises(ValueError, match="7 is there twice"):
        dlc([mask(), mask()], replies("Yes", "a", "a", "a"))
    with pytest.raises(ValueError, match="mask 9 must begin with its one recognition"):
        DlcMask(mask_id="9", questions=(question("positive", 1),), caption=None)


@ANY
@given(st.lists(st.tuples(*[st.sampled_from(["Yes", "No", "a", "b", "c", "??", "", None])] * 4), max_size=6))
def test_counts_add_up_and_scores_stay_in_their_range(rows):
    masks = [mask(str(number)) for number in range(len(rows))]
    named = [replies(*row, name=str(number)) for number, row in enumerate(rows)]
    said = {key: text for one in named for key, text in one.items()}
    found = dlc(masks, said)
    assert found["expected"] == found["asked"] + found["missing"] == 4 * len(rows)
    assert found["asked"] == found["judged"] + found["failed"] and found["unparsed"] <= found["judged"]
    assert all(found[name] is None or -1 <= found[name] <= 1 for name in ("pos", "neg", "avg"))


# ---------------------------------------------------------------- what is asked


def test_questions_are_asked_one_by_one_with_their_choices_by_letter():
    one, two, *_ = mask(caption="A {question} dog.").asks()
    assert (one.name, two.name, one.system, one.images) == ("7/0", "7/1", None, ())
    assert "Description:\nA {question} dog.\n" in one.prompt
    assert one.prompt.endswith("Question:\nA dog?\nA. Yes\nB. No\n")
    assert two.prompt.endswith("Question:\n?\nA. choice 0\nB. choice 1\nC. choice 2\n")
    assert one.sampling == SAMPLING == Sampling(temperature=0.0, top_p=1.0, max_tokens=300)


@pytest.mark.slow
@pytest.mark.numerics
def test_the_class_is_asked_for_in_its_number():
    pytest.importorskip("inflect", reason="the extra `captions` is not installed")
    for name, part in (
        ("dog", "the object in the description be a dog, or an object"),
        ("air conditioner", "be an air conditioner, or"),
        ("bus", "the object in the description be a bus, or"),
        ("stairs", "the objects in the description be stairs, or objects"),
    ):
        found = recognition(name)
        assert part in found.text and found.choices == (("Yes", 1.0), ("No", 0.0))
    own = wording_of(DlcWording, {"recognition": "Is it {name}?"}, "x")
    assert recognition("apple", own).text == "Is it an apple?"


@pytest.mark.slow
@pytest.mark.numerics
def test_payloads_of_annotations_become_questions():
    pytest.importorskip("inflect", reason="the extra `captions` is not installed")
    asked = {"question": "Red?", "choices": [["Yes", 1], ["No", -1]], "type": "positive", "subtype": "x"}
    made = DlcMask.of_payload("7", {"class_name": "dog", "questions": [asked]}, "A dog.")
    assert [one.kind for one in made.questions] == ["recognition", "positive"]
    assert made.questions[1].choices == (("Yes", 1.0), ("No", -1.0))


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ({"questions": [{}]}, "class_name"),
        ({"class_name": " ", "questions": [{}]}, "class_name"),
        ({"class_name": "dog"}, "question"),
        ({"class_name": "dog", "questions": []}, "question"),
        ({"class_name": "dog", "questions": [{"choices": [["x", 1]] * 6}]}, "question"),
    ],
)
def test_payloads_that_cannot_be_asked_about_are_refused(payload, reason):
    with pytest.raises(DataError) as caught:
        DlcMask.of_payload("7", payload, "A dog.")
    assert caught.value.reason == reason


def test_without_inflect_the_remedy_is_named():
    code = (
        "import sys\nsys.modules['inflect'] = None\n"
        "from samtok.metrics.judged_dlc import recognition\n"
        "try: recognition('dog')\nexcept ValueError as error: sys.exit(str(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'samtok[captions]'" in done.stderr


def test_a_wording_is_replaced_text_by_text_and_keeps_its_places():
    made = wording_of(DlcWording, {"prompt": "{caption}? {question}"}, "wording.json")
    assert (made.prompt, made.recognition) == ("{caption}? {question}", WORDING.recognition)
    for texts, match in (
        ({"prompt": "{caption}"}, "wording.json: the text 'prompt' lacks {question}"),
        ({"promt": "x"}, "wording.json has 'promt', expected texts of prompt, recognition"),
        ({"prompt": 3}, "has 'prompt', expected texts"),
    ):
        with pytest.raises(ConfigError, match=match):
            wording_of(DlcWording, texts, "wording.json")


@ANY
@given(st.text(), st.text())
def test_what_is_filled_in_is_not_read_again(first, second):
    assert filled("{a}|{b}|{c}", a=first, b=second) == f"{first}|{second}|{{c}}"


def test_counts_take_failed_and_missing_apart():
    found = counts(["x", "y"], {"x": "1", "y": None}, unparsed=1, missing=3)
    assert found == {"expected": 5, "missing": 3, "asked": 2, "judged": 1, "failed": 1, "unparsed": 1}
    assert Ask(name="x", prompt="p", sampling=SAMPLING).images == ()
