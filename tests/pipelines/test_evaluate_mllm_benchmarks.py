"""Each line of the table of benchmarks: true answers score 1, and what is wrong costs what it should."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from pipelines.chats.lost import LostQuestions
from pipelines.mllm_evaluation import scores
from pipelines.mllm_evaluation.answers import Scoring
from pipelines.mllm_evaluation.benchmarks import BENCHMARKS, headlines
from pipelines.mllm_evaluation.config import BenchmarkName
from pipelines.mllm_evaluation.prepare import prepare
from pipelines.mllm_evaluation.rows import inputs_of
from samtok import masks
from samtok.errors import ConfigError, DataError
from samtok.metrics.grounding_suite import CLASSES
from tests.mllm_evaluations import SIDE, Scripted, World, config_of, stage_of, write_chats

VOCABULARY = {"categories": ["red", "green"], "predicates": ["on", "beside", "under"], "stuff": ["green"]}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    """Masks of its rows are those that their words decode to, so that a true answer has an IoU of 1."""
    return World(tmp_path_factory.mktemp("world"), 2, decoded=True)


def evaluated(
    world: World, rows: list[dict[str, Any]], answer: Any, *, lost: int = 0, **config: Any
) -> dict[str, Any]:
    """Returns the metrics of a model that answers by a function of the prompt's text. Masks are cut at 0 in
    both modes, since those of an untrained tokenizer have logits of no other meaning."""
    chats = write_chats(
        world.home / f"chats-{np.random.default_rng().integers(2**40)}", rows, weights_sha256=None
    )
    job = prepare(config_of(world, chats=chats, **config))
    job = replace(job, readings={mode: replace(one, threshold=0.0) for mode, one in job.readings.items()})
    stage = stage_of(job)
    stage.engine = Scripted(stage.engine, [], answer)
    asked = inputs_of(rows, tasks=job.asked.tasks, turns=job.asked.turns, keeps_masks=job.asked.keeps_masks)
    table, rejects, _ = stage.answer(asked)
    assert not len(rejects)
    scoring = job.scoring
    if lost:
        scoring = Scoring(**{**vars(scoring), "lost": LostQuestions(lost, 0, lost)})
    return scores.metrics_of(
        table.to_pylist(), benchmark=job.config.benchmark, readings=job.readings, scoring=scoring
    )


def numbers(metrics: dict[str, Any], mode: str = "strict") -> dict[str, float | None]:
    return headlines(metrics["benchmark"], metrics["modes"][mode]["model"])


def said(
    row: dict[str, Any], question: str, answer: str, mask_ids: list[str], **fields: Any
) -> dict[str, Any]:
    """Returns the row with another question and answer."""
    image = {"text": None, "image": 0}
    messages = [
        {"role": "user", "content": [image, {"text": question, "image": None}], "mask_ids": []},
        {"role": "assistant", "content": [{"text": answer, "image": None}], "mask_ids": mask_ids},
    ]
    return {**row, "messages": messages, "meta": "{}", **fields}


def test_flags_and_the_table_name_the_same_benchmarks():
    assert set(get_args(BenchmarkName)) == set(BENCHMARKS)


# ---------------------------------------------------------------- scene graphs


def triplet(words: dict[str, str], subject: str, predicate: str, thing: str) -> str:
    parts = [{"mask_2d": words[name], "label": name} for name in (subject, thing)]
    return json.dumps({"subject": parts[0], "predicate": predicate, "object": parts[1]})


def graph(*triplets: str) -> str:
    return "```json\n[" + ",\n".join(triplets) + "]\n```"


@pytest.fixture(scope="module")
def graphs(world) -> list[dict[str, Any]]:
    """A graph of two triplets for each image."""
    rows = []
    for number, row in enumerate(world.rows[::4]):
        words = {mask["mask_id"]: mask["words"] for mask in row["masks"]}
        answer = graph(triplet(words, "red", "on", "green"), triplet(words, "green", "beside", "red"))
        names = ["red", "green", "green", "red"]
        rows.append(said(row, f"List relations {number}.", answer, names, task="psg", tags=[]))
    return rows


@pytest.fixture(scope="module")
def vocabulary(world) -> str:
    where = world.home / "psg.json"
    where.write_text(json.dumps(VOCABULARY))
    return str(where)


def _true(rows: list[dict[str, Any]], change: Any = lambda text: text) -> Any:
    answers = {
        row["messages"][0]["content"][1]["text"]: row["messages"][1]["content"][0]["text"] for row in rows
    }
    return lambda prompt: next(change(text) for question, text in answers.items() if question in prompt)


def test_true_scene_graphs_are_found_by_both_modes(world, graphs, vocabulary):
    found = evaluated(world, graphs, _true(graphs), benchmark="psg", psg_vocabulary=vocabulary)
    assert numbers(found) == {"R@20": 1, "mR@20": 2 / 3, "R@50": 1, "mR@50": 2 / 3}
    assert numbers(found, "official")["R@20"] == 1
    assert numbers(found, "official")["mR@20"] == 1 / 3  # the first predicate never counts there


def test_a_swapped_triplet_a_cut_answer_and_a_lost_graph_cost_their_share(world, graphs, vocabulary):
    options = {"benchmark": "psg", "psg_vocabulary": vocabulary}
    swapped = _true(graphs, lambda text: text.replace('"predicate": "on"', '"predicate": "under"'))
    assert numbers(evaluated(world, graphs, swapped, **options))["R@20"] == 0.5
    cut = evaluated(world, graphs, _true(graphs, lambda text: text[: text.index(",\n")]), **options)
    assert numbers(cut)["R@20"] == 0.5 and numbers(cut, "official")["R@20"] is None
    lost = evaluated(world, graphs, _true(graphs), lost=2, **options)
    assert numbers(lost)["R@20"] == 0.5 and numbers(lost, "official")["R@20"] == 1


def test_without_lists_predicates_are_those_of_the_truth_and_there_is_no_official_mode(world, graphs):
    found = evaluated(world, graphs, _true(graphs), benchmark="psg")
    assert set(found["modes"]) == {"strict"} and numbers(found)["mR@20"] == 1


def test_a_vocabulary_that_is_none_is_refused(world, graphs, tmp_path):
    for body in ({"categories": ["a"]}, {**VOCABULARY, "stuff": ["sky"]}, []):
        (tmp_path / "v.json").write_text(json.dumps(body))
        with pytest.raises(ConfigError, match=r"--psg-vocabulary .*v\.json"):
            evaluated(world, graphs, str, benchmark="psg", psg_vocabulary=str(tmp_path / "v.json"))


# ---------------------------------------------------------------- rounds and GroundingSuite


def test_rounds_are_scored_one_by_one(world):
    row = next(row for row in world.rows if len(row["messages"]) == 4)
    rows, words = [{**row, "task": "multi_round"}], row["messages"][3]["content"][0]["text"]

    def answer(prompt: str) -> str:
        return words if "segment red" in prompt else "no"

    found = evaluated(world, rows, answer, benchmark="rounds")
    assert numbers(found)["ciou round 1"] == 0
    assert numbers(found)["ciou round 2"] == 1
    assert found["modes"]["strict"]["model"]["multi_round"]["history"] == "gt"
    predicted = evaluated(world, rows, answer, benchmark="rounds", history="predicted")
    assert predicted["modes"]["strict"]["model"]["multi_round"]["history"] == "predicted"


def test_a_round_that_asks_for_several_objects_counts_all_of_them_in_strict(world):
    row = world.rows[0]
    words = {mask["mask_id"]: mask["words"] for mask in row["masks"]}
    both = said(row, "Find all.", ", ".join(words.values()), list(words), task="multi_round")
    found = evaluated(world, [both], _true([both]), benchmark="rounds")
    assert numbers(found)["ciou round 1"] == 1 > numbers(found, "official")["ciou round 1"]


def test_several_data_sets_have_means_and_those_of_table_12_g_acc(world):
    rows = []
    for number, row in enumerate(world.rows[:3]):
        mask, name = row["masks"][0], ("refcoco", "refcoco+", "refcocog")[number]
        rows.append(said(row, f"Find {number}.", mask["words"], [mask["mask_id"]], task="res", dataset=name))
    truth = _true(rows)
    found = evaluated(
        world, rows, lambda prompt: "none" if "Find 0." in prompt else truth(prompt), benchmark="res"
    )
    assert numbers(found)["mean ciou of data sets"] == numbers(found)["g acc"] == 2 / 3
    two = numbers(evaluated(world, rows[1:], truth, benchmark="res"))
    assert two["mean ciou of data sets"] == 1 and "g acc" not in two
    assert "mean ciou of data sets" not in numbers(evaluated(world, rows[:1], truth, benchmark="res"))


def test_grounding_suite_has_a_mean_for_each_kind(world):
    rows = []
    for number, (row, kind) in enumerate(zip(world.rows, CLASSES.values(), strict=False)):
        mask = row["masks"][0]
        fields: dict[str, Any] = {"task": "grounding", "tags": [kind]}
        if number < 3:  # the last one has no annotated box
            x0, y0, x1, y1 = masks.box_xyxy(mask["rle"], height=SIDE, width=SIDE) or (0, 0, 0, 0)
            fields["meta"] = json.dumps({"about": [{"box_xyxy": [x0, y0, x1 + 1, y1 + 1]}]})
        rows.append(said(row, f"Find {number}.", mask["words"], [mask["mask_id"]], **fields))
    found = evaluated(
        world,
        rows,
        lambda prompt: "none" if "Find 0." in prompt else _true(rows)(prompt),
        benchmark="groundingsuite",
    )
    shown = numbers(found)
    assert (shown["giou"], shown["giou stuff"], shown["giou part"], shown["giou single"]) == (0.75, 0, 1, 1)
    boxes = found["modes"]["strict"]["model"]["boxes"]
    assert (boxes["accuracy"], boxes["accuracy_stuff"], boxes["accuracy_part"]) == (2 / 3, 0, 1)
    assert (boxes["accuracy_single"], boxes["samples"]) == (None, 3)
    lost = evaluated(world, rows, _true(rows), lost=4, benchmark="groundingsuite")
    assert numbers(lost)["giou"] == 0.5 and numbers(lost, "official")["giou"] > 0.9
    bare = [{**row, "tags": row["tags"] if n else []} for n, row in enumerate(rows)]
    found = evaluated(world, bare, _true(rows), benchmark="groundingsuite")
    assert numbers(found)["giou"] == 0.75  # as wrong as if it were not answered
    assert found["modes"]["strict"]["model"]["kinds"] == {"without_kind": 1}
    assert numbers(found, "official")["giou"] == 1
    with pytest.raises(DataError, match=r"none of the 4 questions has one of the tags stuff, part"):
        evaluated(world, [{**row, "tags": []} for row in rows], str, benchmark="groundingsuite")


# ---------------------------------------------------------------- captions and instances


@pytest.fixture(scope="module")
def captioned(world) -> list[dict[str, Any]]:
    rows = []
    for number, row in enumerate(world.rows[::4]):
        words = {mask["mask_id"]: mask["words"] for mask in row["masks"]}
        marked = {
            name: f"<|object_ref_start|> the {name} one <|object_ref_end|> {words[name]}" for name in words
        }
        text = f"Here is {marked['red']} beside {marked['green']} in picture {'ab'[number]}."
        rows.append(said(row, f"Describe {number}.", text, ["red", "green"], task="gcg", tags=[]))
    return rows


def test_a_true_caption_has_all_its_phrases_and_masks(world, captioned):
    found = evaluated(world, captioned, _true(captioned), benchmark="gcg")
    shown = numbers(found)
    assert (shown["AP50"], shown["mIoU"], shown["recall of equal phrases"]) == (1, 1, 1)
    assert shown["recall"] == "needs --gcg-similarity" and shown["CIDEr"] > 5
    assert numbers(found, "official")["recall of equal phrases"] == 1
    assert found["modes"]["strict"]["no_target"]["gcg"]["recall_exact"] == 0
    _, *lines = scores.table_of(found, {}, "strict")
    assert ["recall", "needs --gcg-similarity", "needs --gcg-similarity"] in lines


def test_a_caption_with_one_phrase_half_of_the_images_or_other_words_scores_less(world, captioned):
    half = evaluated(
        world, captioned, _true(captioned, lambda text: text.partition(" beside")[0]), benchmark="gcg"
    )
    assert (numbers(half)["recall of equal phrases"], numbers(half)["mIoU"]) == (0.5, 1)
    lost = evaluated(world, captioned, _true(captioned), lost=2, benchmark="gcg")
    assert numbers(lost)["recall of equal phrases"] == 0.5
    assert numbers(lost, "official")["recall of equal phrases"] == 1
    other = _true(captioned, lambda text: text.replace("the red one", "a thing"))
    assert numbers(evaluated(world, captioned, other, benchmark="gcg"))["recall of equal phrases"] == 0.5


def test_a_true_caption_with_other_words_than_masks_is_wrong_and_all_such_are_an_error(world, captioned):
    broken = [{**row, "messages": json.loads(json.dumps(row["messages"]))} for row in captioned]
    broken[0]["messages"][1]["mask_ids"] = ["red"]
    found = evaluated(world, broken, _true(captioned), benchmark="gcg")
    assert found["modes"]["strict"]["model"]["gcg"]["unread_truths"] == 1
    assert numbers(found)["recall of equal phrases"] == 0.5
    broken[1]["messages"][1]["mask_ids"] = ["red"]
    with pytest.raises(DataError, match="none of the 2 questions has a true caption"):
        evaluated(world, broken, _true(captioned), benchmark="gcg")


def test_instances_are_scored_by_ap(world):
    rows = []
    for number, row in enumerate(world.rows[::4]):
        answer = ", ".join(mask["words"] for mask in row["masks"])
        names = [mask["mask_id"] for mask in row["masks"]]
        rows.append(said(row, f"Segment all {number}.", answer, names, task="instances", tags=[]))
    assert numbers(evaluated(world, rows, _true(rows), benchmark="instances"))["AP"] == 1
    first = evaluated(world, rows, _true(rows, lambda text: text.partition(",")[0]), benchmark="instances")
    assert 0.4 < numbers(first)["AP50"] < 0.6
    assert numbers(evaluated(world, rows, lambda _: "no", benchmark="instances"))["AP"] == 0


def test_captions_of_regions_are_text_alone(world):
    rows = []
    for number, row in enumerate(world.rows[::4]):
        rows.append(
            said(
                row,
                f"What is it {number}?",
                f"a {['red', 'blue'][number]} thing here",
                [],
                task="region_caption",
            )
        )
    true = evaluated(world, rows, _true(rows), benchmark="region_captions")
    assert numbers(true)["equal captions"] == 1 and numbers(true)["CIDEr"] > 5
    wrong = evaluated(world, rows, lambda _: "a red thing here", benchmark="region_captions")
    assert numbers(wrong)["equal captions"] == 0.5


def test_the_page_of_tables_has_a_line_for_each_benchmark():
    page = (Path(__file__).parents[2] / "docs/benchmarks.md").read_text()
    for name, benchmark in BENCHMARKS.items():
        assert f"`{name}`" in page
        number = benchmark.paper.removeprefix("Table ")
        assert not number or (f"| {number} |" in page and f"--preset paper-{name} " in page)
