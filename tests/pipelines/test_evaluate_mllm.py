"""Questions are asked of a model, its answers become masks, and every question is accounted for."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from pipelines import schema
from pipelines.chats.corpus import text_of
from pipelines.chats.lost import NOTHING_LOST, LostQuestions
from pipelines.chats.prompts import THINKING_SUFFIX
from pipelines.mllm_evaluation import of_masks, outcome, scores
from pipelines.mllm_evaluation.answers import Scoring
from pipelines.mllm_evaluation.config import AnswerConfig
from pipelines.mllm_evaluation.prepare import Evaluation, prepare
from pipelines.mllm_evaluation.rows import ANSWER_ROW, inputs_of
from pipelines.mllm_evaluation.stage import AnswerQuestions
from samtok import masks
from samtok.errors import ConfigError, DataError
from samtok.metrics.text_masks import Reading
from tests.mllm_evaluations import (
    SIDE,
    Scripted,
    World,
    config_of,
    stage_of,
    strip_row,
    truth_of,
    write_chats,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"), 2)


@pytest.fixture(scope="module")
def taught(world) -> str:
    """A model that knows the answers of the world by heart."""
    return world.train(world.home / "taught", steps=40)


@pytest.fixture(scope="module")
def job(world, taught) -> Evaluation:
    return prepare(config_of(world, model=taught))


@pytest.fixture(scope="module")
def stage(job) -> AnswerQuestions:
    return stage_of(job)


@pytest.fixture(scope="module")
def answered(world, stage) -> list[dict]:
    rows, rejects, counts = stage.answer(inputs_of(world.rows, tasks=["gres"], turns="all"))
    assert len(rejects) == 0 and rows.schema.equals(ANSWER_ROW)
    assert counts == {
        "rows_in": 2, "rows_out": 2, "rows_rejected": 0,
        "samples_in": 10, "samples_out": 10, "samples_rejected": 0,
    }  # fmt: skip
    return rows.to_pylist()


def test_a_model_that_knows_the_answers_says_them(answered):
    assert [row["generated"] for row in answered] == [row["truth"] for row in answered]
    assert {row["num_malformed"] for row in answered} == {0} and not any(row["cut"] for row in answered)
    for row in answered:
        assert row["strict"]["codes"] == row["truth_codes"] == row["official"]["codes"]


def test_pixels_and_boxes_are_those_of_the_decoded_union(world, answered):
    for row in answered:
        image = np.array(Image.open(row["image_uri"]))
        codes = np.array(row["truth_codes"], np.int64).reshape(-1, 2)
        truth = np.zeros((SIDE, SIDE), bool)
        if row["truth_rle"] is not None:
            truth = masks.decode(row["truth_rle"], height=SIDE, width=SIDE)
        for mode, threshold in (("strict", 0.0), ("official", 0.5)):
            union = world.tokenizer.decode(image, codes, threshold=threshold).any(axis=0)
            found = row[mode]
            assert found["predicted_px"] == union.sum()
            assert found["intersection_px"] == (union & truth).sum()
            assert found["box_xyxy"] == (list(masks.box_of(union)) if union.any() else None)
            assert (masks.decode(found["rle"], height=SIDE, width=SIDE) == union).all()
        assert row["target_px"] == truth.sum()


def test_which_questions_are_asked_and_with_what_before_them(world):
    def asked(turns):
        items = inputs_of(world.rows[:4], tasks=["gres"], turns=turns)
        (body,) = [json.loads(item.payload) for item in items]
        return [(q["question"].split()[2], q["turn"], len(q["messages"])) for q in body["questions"]]

    single = [("red", 1, 1), ("both", 1, 1), ("blue", 1, 1)]
    assert asked("last") == [*single, ("red", 3, 3)]
    assert asked("first") == [*single, ("green", 1, 1)]
    assert asked("all") == [*single, ("green", 1, 1), ("red", 3, 3)]


def test_questions_about_one_image_are_one_input_and_keys_name_the_phrase(world):
    items = inputs_of(world.rows, tasks=["gres"], turns="last")
    assert [item.num_masks for item in items] == [4, 4]
    keys = [question["key"] for question in json.loads(items[1].payload)["questions"]]
    assert keys == ["1_red", "1_both", "1_blue", "1_red"]
    assert inputs_of(world.rows, tasks=["res"], turns="last") == []


def test_an_image_that_cannot_be_read_is_rejected_and_its_questions_stay(world, stage, tmp_path):
    rows = [dict(row) for row in world.rows]
    for row in rows[:4]:
        row["images"] = [{**row["images"][0], "uri": str(tmp_path / "gone.png")}]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    rows.append({**rows[4], "image_id": "9", "images": [{**rows[4]["images"][0], "uri": str(broken)}]})
    table, rejects, counts = stage.answer(inputs_of(rows, tasks=["gres"], turns="last"))
    found = table.to_pylist()
    assert [row["problem"] for row in found] == ["image_missing"] * 4 + [None] * 4 + [found[-1]["problem"]]
    assert found[-1]["problem"] is not None and found[0]["generated"] is None and found[0]["strict"] is None
    assert [(one["row_id"], one["num_masks"]) for one in rejects.to_pylist()] == [
        ("0", 4), ("9", 1),
    ]  # fmt: skip
    assert (counts["rows_rejected"], counts["samples_rejected"], counts["samples_in"]) == (2, 5, 9)


def test_an_image_that_the_processor_refuses_is_a_wrong_answer(world, stage, tmp_path):
    rows = [strip_row(tmp_path, (1, 2)), *world.rows[:3]]
    table, rejects, counts = stage.answer(inputs_of(rows, tasks=["gres"], turns="last"))
    assert [one["problem"] for one in table.to_pylist()] == ["processor", None, None, None]
    (entry,) = rejects.to_pylist()
    assert entry["reason"] == "processor" and "2300 x 10 pixels" in entry["message"]
    assert (counts["samples_in"], counts["samples_rejected"]) == (4, 1)
    assert _metrics(table.to_pylist())["modes"]["strict"]["model"]["words"]["exact_match"] == 0.75


def test_a_question_that_cannot_be_asked_does_not_take_the_others_along(world, stage):
    row = json.loads(json.dumps(world.rows[0]))
    row["messages"][0]["content"][-1]["text"] = "Segment <|image_pad|>."
    table, rejects, counts = stage.answer(inputs_of([row, *world.rows[1:4]], tasks=["gres"], turns="last"))
    assert [one["problem"] for one in table.to_pylist()] == ["media_token", None, None, None]
    (entry,) = rejects.to_pylist()
    assert (entry["mask_id"], entry["reason"]) == (f"{row['sample_id']}#1", "media_token")
    assert (counts["rows_rejected"], counts["samples_rejected"]) == (0, 1)


def _metrics(rows, benchmark="gres", **options):
    readings = {mode: Reading.of(mode, several=benchmark == "gres") for mode in ("strict", "official")}
    return scores.metrics_of(rows, benchmark=benchmark, readings=readings, **options)


def test_numbers_of_a_taught_model_stand_beside_the_answer_no_target(answered):
    found = _metrics(answered)
    assert found["counts"] == {
        "expected": 10, "scored": 10, "skipped": 0, "lost": 0, "images_lost": 0, "no_target": 2,
        "malformed_words": 0, "answers_with_malformed": 0, "answers_cut": 0,
        "thoughts_unfinished": 0, "thought_tokens": 0,
        "tokens": sum(row["num_tokens"] for row in answered),
    }  # fmt: skip
    own, nothing = (found["modes"]["strict"][who] for who in ("model", "no_target"))
    assert own["words"] == {"exact_match": 1, "target_exact_match": 1, "target_first_code": 1}
    assert own["gres"]["n_acc"] == own["gres"]["t_acc"] == 1
    assert (nothing["gres"]["giou"], nothing["words"]["exact_match"]) == (0.2, 0.2)
    assert nothing["targets"]["mean_iou"] == nothing["gres"]["t_acc"] == 0
    single = [of_masks.samples_of([row], "strict") for row in answered if row["target_px"]]
    ious = [float(one.intersection_px[0] / one.union_px[0]) for one in single]
    assert own["targets"]["mean_iou"] == pytest.approx(np.mean(ious)) and min(ious) > 0
    assert own["by_tag"]["none"]["gres"] == nothing["by_tag"]["none"]["gres"]
    assert own["by_tag"]["red"]["counts"]["expected"] == 6
    assert found["modes"]["official"]["read"]["mask_threshold"] == 0.5


def test_a_question_that_was_not_asked_is_wrong_in_strict_mode_and_missing_in_official(answered):
    lost = dict.fromkeys(("strict", "official", "generated", "num_malformed", "num_tokens", "cut"))
    rows = [{**row, **lost, "problem": "image_missing"} if n < 5 else row for n, row in enumerate(answered)]
    found = _metrics(rows)
    strict, official = (found["modes"][mode]["model"] for mode in ("strict", "official"))
    assert strict["counts"] == {"expected": 10, "scored": 5, "skipped": 5}
    assert strict["words"]["exact_match"] == 0.5 and official["words"]["exact_match"] == 1
    assert (strict["gres"]["n_acc"], official["gres"]["n_acc"]) == (0.5, 1.0)
    assert found["modes"]["strict"]["no_target"]["gres"]["giou"] == 0.2  # the baseline needs no image
    assert found["counts"]["skipped"] == 5


@pytest.mark.parametrize("benchmark", ["res", "rec"])
def test_other_benchmarks_read_one_mask_per_answer(world, taught, benchmark):
    rows = [_of_benchmark(row, benchmark) for row in world.rows if row["tags"] != ["none"]]
    chat = write_chats(world.home / f"chat-{benchmark}", rows, weights_sha256=world.sha256)
    job = prepare(
        config_of(world, benchmark=benchmark, model=taught, chats=chat, out=str(world.home / benchmark))
    )
    table, _, _ = stage_of(job).answer(inputs_of(rows, tasks=job.asked.tasks, turns="last"))
    answers = table.to_pylist()
    both = next(row for row in answers if row["tags"] == ["both"])
    assert len(both["truth_codes"]) == 2
    assert both["strict"]["codes"] == both["truth_codes"][:1]
    assert both["official"]["codes"] == both["truth_codes"][1:]  # the last code of each level wins
    found = _metrics(answers, benchmark)["modes"]["strict"]["model"][benchmark]
    assert all(0 <= value <= 1 for value in found.values())


def _of_benchmark(row: dict, benchmark: str) -> dict:
    return {**row, "task": {"res": "res", "rec": "grounding"}[benchmark]}


def test_min_pixels_empties_small_predictions(answered):
    assert (
        _metrics(answered, scoring=Scoring(min_pixels=10**9))["modes"]["strict"]["model"]["gres"]["t_acc"]
        == 0.0
    )


def test_the_same_questions_get_the_same_answers(world, stage, answered):
    again, _, _ = stage.answer(inputs_of(world.rows, tasks=["gres"], turns="all"))
    assert again.to_pylist() == answered


def test_the_table_shows_this_run_the_baseline_and_runs_beside(answered):
    metrics = _metrics(answered)
    worse = _metrics([{**row, "strict": {**row["strict"], "codes": []}} for row in answered])
    head, *lines = scores.table_of(metrics, {"untrained": worse}, "strict")
    assert head == ["strict, x 100", "this run", "always No target.", "untrained"]
    assert ["exact words", "100.00", "20.00", "20.00"] in lines
    assert ["N-acc", "100.00", "100.00", "100.00"] in lines
    head, *lines = scores.tag_table(metrics, "strict")
    assert [line[:2] for line in lines] == [["both", "2"], ["none", "2"], ["red", "6"], ["all", "10"]]


def test_numbers_for_tracking_are_flat_and_leave_out_what_is_missing(answered):
    flat = outcome.flat_metrics(_metrics([row for row in answered if row["target_px"]]))
    assert flat["evaluation/strict/words/exact_match"] == 1
    assert flat["baseline/official/gres/t_acc"] == 0
    assert flat["evaluation/strict/tag/red/counts/expected"] == 6
    assert not any("n_acc" in name for name in flat)
    assert all(isinstance(value, float) for value in flat.values())


def test_runs_that_answered_other_questions_are_not_put_beside(world, job, tmp_path):
    config = dataclasses.replace(job.config, beside=(f"old={tmp_path}",))
    with pytest.raises(ConfigError, match=r"--beside old: there is no .*metrics\.json"):
        prepare(config)
    metrics = {"measured_with": outcome.measured_with(job)}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert prepare(config).beside == {"old": metrics}
    metrics["measured_with"]["questions"] = "others"
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(ConfigError, match="answered other questions"):
        prepare(config)


def test_a_word_that_the_limit_of_tokens_cuts_is_broken_and_counted(world, taught):
    limited = config_of(world, model=taught, generation=AnswerConfig(max_new_tokens=2))
    table, _, _ = stage_of(prepare(limited)).answer(inputs_of(world.rows[:1], tasks=["gres"], turns="last"))
    (row,) = table.to_pylist()
    assert row["generated"].startswith("<|mt_start|><|mt_0") and row["num_tokens"] == 2
    assert (row["cut"], row["num_malformed"], row["strict"]["codes"]) == (True, 1, [])
    assert row["official"]["codes"] == [[row["truth_codes"][0][0], -1]]  # as the authors' repair reads it
    assert row["official"]["predicted_px"] >= 0
    counts = _metrics([row])["counts"]
    assert (counts["malformed_words"], counts["answers_with_malformed"], counts["answers_cut"]) == (1, 1, 1)


def test_an_answer_that_ends_with_the_last_token_allowed_was_not_cut(world, taught, answered):
    (length,) = {row["num_tokens"] for row in answered[:1]}
    limited = config_of(world, model=taught, generation=AnswerConfig(max_new_tokens=length))
    table, _, _ = stage_of(prepare(limited)).answer(inputs_of(world.rows[:1], tasks=["gres"], turns="last"))
    (row,) = table.to_pylist()
    assert (row["num_tokens"], row["cut"], row["generated"]) == (length, False, row["truth"])


def test_rows_of_answers_fit_their_schema_when_nothing_was_asked():
    assert schema.table([], ANSWER_ROW).num_rows == 0
    metrics = _metrics([])
    assert metrics["counts"]["expected"] == 0 and metrics["modes"]["strict"]["model"]["gres"]["giou"] is None


# ---------------------------------------------------------------- lost questions, thoughts, own answers


def test_lost_questions_are_wrong_in_strict_mode_and_left_out_of_official(answered):
    lost = LostQuestions(targets=3, none=2, px=700)
    plain, found = (_metrics(answered, scoring=Scoring(lost=one)) for one in (NOTHING_LOST, lost))
    assert found["counts"]["lost"] == 5 and found["modes"]["official"] == plain["modes"]["official"]
    before, after = (metrics["modes"]["strict"]["model"] for metrics in (plain, found))
    assert after["counts"] == {"expected": 15, "scored": 10, "skipped": 5}
    assert after["gres"]["giou"] == pytest.approx(before["gres"]["giou"] * 10 / 15)
    assert (after["gres"]["n_acc"], after["gres"]["t_acc"]) == (2 / 4, 8 / 11)
    assert after["words"]["exact_match"] == 10 / 15 and after["words"]["target_exact_match"] == 8 / 11
    samples = of_masks.samples_of(answered, "strict")
    hit, union = samples.intersection_px.sum(), samples.union_px.sum()
    assert after["gres"]["ciou"] == pytest.approx(hit / (union + 700))
    assert after["by_tag"] == before["by_tag"]


def test_lost_questions_are_read_of_the_chats_unless_a_part_of_them_is_asked(world, tmp_path):
    chat = write_chats(tmp_path / "chat", world.rows, weights_sha256=world.sha256)
    manifest = tmp_path / "chat" / "_MANIFEST.json"
    body = json.loads(manifest.read_text())
    body["totals"] |= {"gres/lost_targets": 2, "gres/lost_px": 9, "gres/lost_none": 1, "res/lost_none": 7}
    body["fingerprint"]["words"] = [{"images_lost": 4}, {}]
    manifest.write_text(json.dumps(body))
    assert prepare(config_of(world, chats=chat)).scoring.lost == LostQuestions(2, 1, 9, 4)
    assert prepare(config_of(world, chats=chat, limit=1)).scoring.lost == NOTHING_LOST


def test_a_thinking_model_is_asked_to_think_and_its_answer_is_scored(world, taught, tmp_path):
    shutil.copytree(taught, tmp_path / "mllm")
    stated = tmp_path / "mllm" / "samtok.json"
    stated.write_text(json.dumps({**json.loads(stated.read_text()), "thinking": True}))
    job = prepare(config_of(world, model=str(tmp_path / "mllm"), generation=AnswerConfig()))
    assert job.asked.thinking and job.config.generation.max_new_tokens == 1024
    off = prepare(config_of(world, model=str(tmp_path / "mllm"), thinking="off", generation=AnswerConfig()))
    assert not off.asked.thinking and off.config.generation.max_new_tokens == 128
    thinking = prepare(config_of(world, model=taught, thinking="on"))
    stage, asked, truth = stage_of(thinking), [], truth_of(world.rows[:3])
    stage.engine = Scripted(
        stage.engine, asked, lambda text: f"<think>a dog</think><answer>{truth(text)}</answer>"
    )
    rows = stage.answer(inputs_of(world.rows[:3], tasks=["gres"], turns="last"))[0].to_pylist()
    assert all(THINKING_SUFFIX in text for text in asked)
    assert [row["strict"]["codes"] for row in rows] == [row["truth_codes"] for row in rows]
    assert {row["thought_tokens"] for row in rows} == {
        len(stage.adapter.tokenizer.encode("a dog", add_special_tokens=False))
    }
    assert not any(row["unfinished"] for row in rows)
    assert _metrics(rows)["counts"]["thought_tokens"] == sum(row["thought_tokens"] for row in rows) > 0


def test_a_thought_without_an_end_is_a_wrong_answer_in_strict_mode(world, taught):
    stage = stage_of(prepare(config_of(world, model=taught, thinking="on")))
    truth = truth_of(world.rows[:3])
    stage.engine = Scripted(stage.engine, [], lambda text: f"<think>{truth(text)}")
    rows = stage.answer(inputs_of(world.rows[:3], tasks=["gres"], turns="last"))[0].to_pylist()
    assert all(row["unfinished"] and row["thought_tokens"] is None for row in rows)
    found = _metrics(rows)
    assert found["counts"]["thoughts_unfinished"] == 3
    strict, official = (found["modes"][mode]["model"] for mode in ("strict", "official"))
    assert (strict["gres"]["giou"], strict["counts"]["skipped"]) == (0, 3)
    assert official["words"]["exact_match"] == 1  # as there, a text without tags is scored whole


def test_true_answers_with_thoughts_cannot_be_compared_with(world):
    row = json.loads(json.dumps(world.rows[0]))
    row["messages"][1]["content"][0]["text"] = "<think>a</think><answer>b</answer>"
    with pytest.raises(DataError, match="thoughts were written for, with --thinking on"):
        inputs_of([row], tasks=["gres"], turns="last")


def test_later_rounds_follow_the_models_own_answers_where_that_is_asked_for(world, taught):
    (row,) = [row for row in world.rows[:4] if len(row["messages"]) == 4]
    for history, before in (("predicted", "nothing here"), ("true", None)):
        stage, asked = stage_of(prepare(config_of(world, model=taught, turns="all", history=history))), []
        stage.engine = Scripted(stage.engine, asked, lambda _: "nothing here")
        rows = stage.answer(inputs_of([row], tasks=["gres"], turns="all"))[0].to_pylist()
        assert [one["round"] for one in rows] == [1, 2]
        wanted = before or text_of(row["messages"][1])
        assert wanted not in asked[0] and wanted in asked[1]


def test_masks_one_by_one_are_kept_where_a_benchmark_scores_them_so(world, taught):
    job = prepare(config_of(world, model=taught))
    stage = AnswerQuestions(job.config, job.asked._replace(keeps_masks=True), job.readings)
    asked = inputs_of(world.rows[:4], tasks=["gres"], turns="last", keeps_masks=True)
    for row in stage.answer(asked)[0].to_pylist():
        assert [one["codes"] for one in row["truth_masks"]] == row["truth_codes"]
        size = {"height": SIDE, "width": SIDE}
        for mode in ("strict", "official"):
            kept = row[mode]["masks"]
            assert [one["codes"] for one in kept] == [
                list(c) for c in dict.fromkeys(map(tuple, row[mode]["codes"]))
            ]
            assert masks.union([one["rle"] for one in kept], **size) == row[mode]["rle"]
