"""Composers: words in a text are those of the masks it names, and what cannot be used is listed."""

import json
import random
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import schema
from pipelines.chats import lost
from pipelines.chats.commit import Composed, check
from pipelines.chats.corpus import answer_words, text_of, turns_of
from pipelines.dialogues.compose import TASKS, Settings, compose_row
from pipelines.dialogues.config import shares_of
from pipelines.dialogues.pieces import Ref, fill, with_masks
from pipelines.dialogues.style import STYLES
from samtok.errors import ConfigError, DataError
from samtok.words import parse_words
from tests.code_rows import NUM_CODES, NUM_LEVELS, annotation, code_mask, code_row, random_row

ALL = dict.fromkeys(TASKS, 1.0)
LEFT = code_mask("left", (1, 2), box_xyxy=[0.0, 5.0, 2.0, 6.0], label="cat")
UPPER = code_mask("upper", (3, 4), box_xyxy=[7.0, 1.0, 9.0, 2.0], label="dog")
LOWER = code_mask("lower", (5, 6), box_xyxy=[7.0, 3.0, 9.0, 4.0], label="dog")
MASKS = [LOWER, UPPER, LEFT]


def compose(row: dict, tasks: str | dict = ALL, **changed: object) -> Composed:
    shares = shares_of(tasks) if isinstance(tasks, str) else tasks
    done = compose_row(row, Settings(num_codes=NUM_CODES, num_levels=NUM_LEVELS, tasks=shares, **changed))
    check(dict(done.counts))
    return done


def only(row: dict, task: str, **changed: object) -> tuple[str, str, dict]:
    """Returns question, answer and row of the one chat that a task makes."""
    (sample,) = compose(row, task, **changed).samples
    question, answer = (text_of(message) for message in sample["messages"])
    return question, answer, sample


def refused(task: str, *annotations: dict, masks: list[dict] | None = None, **changed: object) -> Counter:
    """Returns stage and reason of all rejects of a row; nothing may be composed."""
    done = compose(code_row(MASKS if masks is None else masks, list(annotations)), task, **changed)
    assert not done.samples
    return Counter((entry["stage"], entry["reason"]) for entry in done.rejects)


seeds = st.integers(0, 10**9)


@settings(max_examples=60, deadline=None)
@given(seeds, st.sampled_from(STYLES), st.integers(1, 3), st.integers(0, 5))
def test_words_in_every_message_are_those_of_its_masks(made, style, turns, seed):
    row = random_row(random.Random(made))
    done = compose(row, styles=(style,), turns_per_sample=turns, seed=seed)
    assert done.counts["items_rejected"] == 0
    codes = {mask["mask_id"]: tuple(mask["codes"]) for mask in row["masks"]}
    table = schema.table(done.samples, schema.CHAT_ROW)
    for sample in table.to_pylist():
        truth = answer_words(sample)
        for message in sample["messages"]:
            found = parse_words(text_of(message), num_codes=NUM_CODES, num_levels=NUM_LEVELS)
            assert found == [codes[mask_id] for mask_id in message["mask_ids"]]
            if message["role"] == "assistant":
                assert found == truth.pop(0)
        assert {m["mask_id"] for m in sample["masks"]} == {
            mask_id for message in sample["messages"] for mask_id in message["mask_ids"]
        }
        assert next(turn.parts[0] for turn in turns_of(sample) if turn.role == "user") == 0
    assert len({sample["sample_id"] for sample in done.samples}) == len(done.samples)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_answers_name_exactly_the_masks_of_their_annotation(made):
    row = random_row(random.Random(made))
    wanted = {one["annotation_id"]: one["mask_ids"] for one in row["annotations"]}
    for sample in compose(row, "gres", styles=STYLES).samples:
        (item,) = json.loads(sample["meta"])["items"]
        assert Counter(sample["messages"][1]["mask_ids"]) == Counter(wanted[item])


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from(["json", "authors"]))
def test_json_answers_are_valid_json_with_all_masks(made, style):
    row = random_row(random.Random(made))
    for sample in compose(row, "res,gres,grounding,instances,psg", styles=(style,)).samples:
        text, names = text_of(sample["messages"][1]), sample["messages"][1]["mask_ids"]
        if text == "No target.":
            assert not names
            continue
        entries = json.loads(text.removeprefix("```json\n").removesuffix("\n```"))
        if sample["task"] == "psg":
            entries = [entry[side] for entry in entries for side in ("subject", "object")]
        words = {mask["mask_id"]: mask["words"] for mask in sample["masks"]}
        assert [entry["mask_2d"] for entry in entries] == [words[name] for name in names]
        assert all(entry["label"] for entry in entries)


def test_an_answer_goes_from_left_to_right_and_then_from_top_to_bottom():
    row = code_row(MASKS, [annotation("a", "referring", ["lower", "upper", "left"], text="all")])
    _, answer, sample = only(row, "gres")
    assert sample["messages"][1]["mask_ids"] == ["left", "upper", "lower"]
    assert answer == ", ".join(mask["words"] for mask in (LEFT, UPPER, LOWER))


def test_no_target_is_said_in_words():
    row = code_row(MASKS, [annotation("a", "referring", [], text="a cow.")])
    assert only(row, "gres", styles=("authors",))[:2] == ("Please segment a cow in this image.", "No target.")
    assert not compose(row, "res").samples and not compose(row, "res").rejects
    assert not parse_words(only(row, "gres", styles=("sentence",))[1])


def test_a_grounded_caption_has_the_words_behind_its_phrases():
    spans = {"spans": [{"start": 0, "end": 5, "masks": [0]}, {"start": 11, "end": 19, "masks": [2, 1]}]}
    masks = ["left", "upper", "lower"]
    row = code_row(
        MASKS, [annotation("a", "grounded_caption", masks, text="A cat near two dogs.", payload=spans)]
    )
    left, upper, lower = (mask["words"] for mask in (LEFT, UPPER, LOWER))
    question, answer, _ = only(row, "gcg", styles=("authors",))
    assert question.startswith("Could you please give me a brief description of the image?")
    start, end = "<|object_ref_start|>", "<|object_ref_end|>"
    assert answer == f"{start} A cat {end} {left} near {start} two dogs {end} {upper}, {lower}."
    assert only(row, "gcg")[1] == f"A cat {left} near two dogs {upper}, {lower}."


def test_a_scene_graph_asks_with_the_vocabulary_and_answers_with_triplets():
    triplets = {"triplets": [[0, "near", 1], [0, "near", 1], [1, 'on "top" of', 0]]}
    row = code_row(MASKS, [annotation("a", "scene_graph", ["left", "upper"], payload=triplets)])
    psg = {"categories": ["cat", "dog"], "predicates": ["near", "on"]}
    question, answer, sample = only(row, "psg", styles=("authors",), psg=psg)
    assert question.startswith(
        "CANDIDATE CATEGORIES: \n{cat, dog}\nCANDIDATE PREDICATES: \n{near, on}\nCreate a scene graph by "
    )
    found = json.loads(answer.removeprefix("```json\n").removesuffix("\n```"))
    assert [entry["predicate"] for entry in found] == ["near", 'on "top" of']
    assert sample["messages"][1]["mask_ids"] == ["left", "upper", "upper", "left"]
    assert only(row, "psg")[1].splitlines()[0] == f"cat {LEFT['words']} near dog {UPPER['words']}"


def test_instances_are_asked_by_class_and_all_together():
    done = compose(code_row([*MASKS, code_mask("bare", (9, 9))], []), "instances")
    named = {json.loads(s["meta"])["items"][0]: s["messages"][1]["mask_ids"] for s in done.samples}
    assert named["class:dog"] == ["upper", "lower"] and named["class:cat"] == ["left"]
    assert sorted(named["every"]) == ["bare", "left", "lower", "upper"]


def test_a_region_caption_names_its_mask_in_the_question():
    row = code_row(MASKS, [annotation("a", "region_caption", ["left"], text=" A grey cat. ")])
    question, answer, sample = only(row, "region_caption", styles=("authors",))
    assert question == f"Given a detailed description of this region {LEFT['words']}."
    assert answer == "A grey cat." and sample["messages"][0]["mask_ids"] == ["left"]
    assert answer_words(sample) == [[]]


def test_a_later_round_names_the_mask_of_an_earlier_answer():
    relation = annotation("g", "scene_graph", ["left", "upper"], payload={"triplets": [[0, "under", 1]]})
    row = code_row(MASKS, [relation, annotation("r", "referring", ["upper"], text="the dog on top")])
    (sample,) = compose(row, "multi_round").samples
    first, answer, second, last = sample["messages"]
    assert "the dog on top" in text_of(first) and answer["mask_ids"] == ["upper"]
    assert f"under {UPPER['words']}" in text_of(second) and second["mask_ids"] == ["upper"]
    assert last["mask_ids"] == ["left"]


def test_an_object_without_expression_is_named_by_its_class_first():
    relation = annotation("g", "scene_graph", ["upper", "left"], payload={"triplets": [[0, "on", 1]]})
    (sample,) = compose(code_row(MASKS, [relation]), "multi_round").samples
    assert "the cat" in text_of(sample["messages"][0])
    assert [message["mask_ids"] for message in sample["messages"]] == [[], ["left"], ["left"], ["upper"]]


def test_a_single_round_is_no_chat_of_several():
    done = compose(code_row(MASKS, [annotation("r", "referring", ["upper"], text="it")]), "multi_round")
    assert not done.samples and done.counts["items_unused"] == 1


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(2, 4))
def test_a_chat_of_rounds_names_only_masks_that_were_answered_before(made, most):
    row = random_row(random.Random(made))
    for sample in compose(row, "multi_round", max_rounds=most).samples:
        answered: set[str] = set()
        assert 4 <= len(sample["messages"]) <= 2 * most
        for message in sample["messages"]:
            if message["role"] == "user":
                assert set(message["mask_ids"]) <= answered
            answered |= set(message["mask_ids"])


def test_turns_of_one_chat_show_the_image_once_and_take_every_expression():
    expressions = [annotation(f"a{n}", "referring", ["left"], text=f"thing {n}") for n in range(5)]
    done = compose(code_row(MASKS, expressions), "gres", turns_per_sample=3)
    assert [len(sample["messages"]) for sample in done.samples] == [6, 4]
    for sample in done.samples:
        images = [part["image"] for message in sample["messages"] for part in message["content"]]
        assert images.count(0) == 1
    items = [item for sample in done.samples for item in json.loads(sample["meta"])["items"]]
    assert sorted(items) == [f"a{n}" for n in range(5)]


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_chats_do_not_depend_on_the_order_of_annotations(made):
    rng = random.Random(made)
    row = random_row(rng)
    shuffled = {**row, "annotations": rng.sample(row["annotations"], len(row["annotations"]))}
    tasks = {**ALL, "dialogue": 0.5, "multi_round": 0.5}
    first, second = (compose(one, tasks=tasks, styles=STYLES, turns_per_sample=2) for one in (row, shuffled))
    assert sorted(map(json.dumps, first.samples)) == sorted(map(json.dumps, second.samples))


def test_the_seed_changes_the_choices_and_the_share_keeps_its_part():
    expressions = [annotation(f"a{n}", "referring", ["left"], text=f"thing {n}") for n in range(200)]
    row = code_row(MASKS, expressions)
    half = compose(row, "gres=0.5")
    assert 70 < half.counts["gres/items_out"] < 130
    assert half.counts["gres/items_out"] + half.counts["gres/items_thinned"] == 200
    assert {s["sample_id"] for s in half.samples} < {s["sample_id"] for s in compose(row, "gres=0.9").samples}
    assert half.samples != compose(row, "gres=0.5", seed=1).samples
    texts = {
        text_of(sample["messages"][0]).replace(json.loads(sample["meta"])["expressions"][0], "")
        for sample in half.samples
    }
    assert len(texts) == 5  # all templates


def test_masks_that_are_missing_or_have_no_words_are_rejects():
    gone = annotation("a", "referring", ["left", "gone"], text="both")
    assert refused("gres", gone) == {("compose", "missing_mask"): 1}
    for wrong in ({"codes": [1]}, {"codes": [1, 64]}, {"words": UPPER["words"]}):
        masks = [{**LEFT, **wrong}]
        assert refused("gres", annotation("a", "referring", ["left"], text="it"), masks=masks) == {
            ("compose", "no_words"): 1
        }


def test_a_low_iou_and_too_many_masks_are_filtered_by_policy():
    masks = [{**LEFT, "iou": 0.4}, {**UPPER, "iou": 0.9}]
    both = annotation("a", "referring", ["left", "upper"], text="both")
    assert refused("gres", both, masks=masks, min_iou=0.5) == {("filter", "low_iou"): 1}
    assert refused("gres", both, masks=masks, max_masks=1) == {("filter", "max_masks"): 1}
    assert compose(code_row(masks, [both]), "gres", min_iou=0.4).samples
    counts = compose(
        code_row(masks, [both, annotation("b", "referring", [], text=" ")]), "gres", max_masks=1
    ).counts
    area = sum(mask["area_px"] for mask in masks)
    assert {name: counts[f"gres/{name}"] for name in lost.COUNTS} == {
        "lost_targets": 1, "lost_none": 1, "lost_px": area,
    }  # fmt: skip
    assert refused("gres", both, min_iou=0.4) == {("compose", "no_iou"): 1}


@pytest.mark.parametrize(
    "text",
    [
        LEFT["words"],
        "a <|mt_ cat",
        "it<|im_end|>",
        "an <image> tag",
        "</s>",
        "<|vision_start|>",
        "see <Video>",
    ],
)
def test_text_that_a_model_would_not_read_as_text_is_refused(text):
    assert refused("gres", annotation("a", "referring", ["left"], text=text)) == {
        ("compose", "control_token"): 1
    }
    said = {"question": f"What {text}?", "answer": "yes"}
    assert refused("region_qa", annotation("a", "region_qa", ["left"], payload=said)) == {
        ("compose", "control_token"): 1
    }
    masks = [{**LEFT, "label": text}]
    assert refused("instances=1", masks=masks[:1], max_masks=1, styles=("json",)) == {
        ("compose", "control_token"): 2
    }


@pytest.mark.parametrize(
    ("task", "made", "reason"),
    [
        ("gres", {"text": None}, "empty_text"),
        ("gres", {"text": " . "}, "empty_text"),
        ("gcg", {"text": "A cat", "payload": {"spans": [{"start": 2, "end": 9, "masks": [0]}]}}, "payload"),
        ("gcg", {"text": "A cat", "payload": {"spans": [{"start": 2, "end": 3, "masks": [1]}]}}, "payload"),
        ("gcg", {"text": "A cat", "payload": {"spans": [{"start": "0", "end": 1, "masks": []}]}}, "payload"),
        ("gcg", {"text": "A cat"}, "payload"),
        ("psg", {"payload": {"triplets": [[0, "on", 1]]}}, "payload"),
        ("psg", {"payload": {"triplets": [[0, "on", -1]]}}, "payload"),
        ("psg", {"payload": {"triplets": []}}, "payload"),
        ("psg", {"payload": ["triplets"]}, "payload"),
        ("multi_round", {"payload": {"triplets": [[0, None, 0]]}}, "payload"),
        ("region_qa", {"payload": {"question": "Is <mask 1> red?", "answer": "no"}}, "mask_reference"),
        ("region_qa", {"payload": {"question": "Is <mask a> red?", "answer": "no"}}, "mask_reference"),
        ("region_qa", {"payload": {"question": "Is it \ud800?", "answer": "no"}}, "text_encoding"),
        ("region_qa", {"payload": {"question": "Why?"}}, "payload"),
        ("dialogue", {"payload": {"turns": [{"role": "user", "text": "hi"}]}}, "payload"),
        ("dialogue", {"payload": {"turns": [{"role": "tool", "text": "hi"}]}}, "payload"),
        ("dialogue", {"payload": {"turns": "hi"}}, "payload"),
    ],
)
def test_a_broken_annotation_is_a_reject_with_its_reason(task, made, reason):
    kinds = {
        "gres": "referring",
        "gcg": "grounded_caption",
        "psg": "scene_graph",
        "multi_round": "scene_graph",
    }
    assert refused(task, annotation("a", kinds.get(task, task), ["left"], **made)) == {("compose", reason): 1}


def test_a_payload_that_is_no_json_and_an_id_that_is_taken_are_rejects():
    broken = {**annotation("a", "region_qa", ["left"]), "payload": "{"}
    assert refused("region_qa", broken) == {("compose", "payload"): 1}
    twice = [annotation("a", "referring", ["left"], text=text) for text in ("one", "two")]
    done = compose(code_row(MASKS, twice), "gres")
    assert len(done.samples) == 1 and [entry["reason"] for entry in done.rejects] == ["duplicate_id"]


def test_annotations_of_other_tasks_are_counted():
    row = random_row(random.Random(3))
    done = compose(row, "region_caption")
    assert done.counts["annotations_in"] == len(row["annotations"])
    assert done.counts["annotations_unused"] == len(row["annotations"]) - 1


def test_outlines_are_copied_only_if_they_are_wanted():
    row = code_row(MASKS, [annotation("a", "referring", ["left"], text="it")])
    assert only(row, "res")[2]["masks"][0]["rle"] == LEFT["rle"]
    assert only(row, "res", keep_rle=False)[2]["masks"][0]["rle"] is None


def test_braces_and_placeholders_in_a_dataset_text_mean_nothing():
    assert fill("Segment {phrase}.", phrase="the {cat} {0}") == ("Segment the {cat} {0}.",)
    assert with_masks("a <mask 1><mask 0>", ["x", "y"], "it") == ("a ", Ref("y"), Ref("x"))
    with pytest.raises(DataError, match=r"names <mask 2>; the annotation has 2 masks"):
        with_masks("<mask 2>", ["x", "y"], "it")


@pytest.mark.parametrize("text", ["", "gres=0", "gres=2", "gres=x", "gres,gres", "segment"])
def test_a_wrong_list_of_tasks_is_refused(text):
    with pytest.raises(ConfigError, match="--tasks"):
        shares_of(text)


def test_composing_and_reading_chats_load_no_torch():
    code = (
        "import sys, pipelines.dialogues.compose, pipelines.chats.corpus\n"
        "sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
