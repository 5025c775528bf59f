"""Questions are asked of a model, its answers become masks, and every question is accounted for."""

import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from pipelines import schema
from pipelines.config import WorkerConfig
from pipelines.generation import models
from pipelines.generation.config import GenerationConfig
from pipelines.mllm_evaluation import outcome, scores
from pipelines.mllm_evaluation.config import EvaluateMllmConfig
from pipelines.mllm_evaluation.prepare import Evaluation, prepare, readings_of
from pipelines.mllm_evaluation.rows import ANSWER_ROW, inputs_of
from pipelines.mllm_evaluation.stage import AnswerQuestions
from pipelines.shard_pool import ShardWorker
from samtok import masks
from samtok.errors import CheckpointError, ConfigError, DataError
from samtok.metrics.text_masks import Reading
from tests.mllm_evaluations import SIDE, World, strip_row, write_chats


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"), 2)


@pytest.fixture(scope="module")
def taught(world) -> str:
    """A model that knows the answers of the world by heart."""
    return world.train(world.home / "taught", steps=40)


def _config(world: World, **changed) -> EvaluateMllmConfig:
    values = {
        "benchmark": "gres",
        "model": world.model,
        "chats": world.chat,
        "out": str(world.home / "out"),
        "tokenizer": world.tokenizer_uri,
        "tracking": "off",
        "generation": GenerationConfig(max_new_tokens=16, batch_size=3),
        "worker": WorkerConfig(gpus=0.0),
    }
    return EvaluateMllmConfig(**{**values, **changed})


def _stage(job: Evaluation, **changed) -> AnswerQuestions:
    expected = {name: job.fingerprint[name] for name in ("model_sha256", "tokenizer_sha256")}
    return AnswerQuestions(job.config, job.readings, **{**expected, **changed})


@pytest.fixture(scope="module")
def job(world, taught) -> Evaluation:
    return prepare(_config(world, model=taught))


@pytest.fixture(scope="module")
def stage(job) -> AnswerQuestions:
    return _stage(job)


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
    readings = {mode: Reading.of(benchmark, mode) for mode in ("strict", "official")}
    return scores.metrics_of(rows, benchmark=benchmark, readings=readings, **options)


def test_numbers_of_a_taught_model_stand_beside_the_answer_no_target(answered):
    found = _metrics(answered)
    assert found["counts"] == {
        "expected": 10, "scored": 10, "skipped": 0, "no_target": 2, "malformed_words": 0,
        "answers_with_malformed": 0, "answers_cut": 0, "tokens": sum(r["num_tokens"] for r in answered),
    }  # fmt: skip
    own, nothing = (found["modes"]["strict"][who] for who in ("model", "no_target"))
    assert own["words"] == {"exact_match": 1, "target_exact_match": 1, "target_first_code": 1}
    assert own["gres"]["n_acc"] == own["gres"]["t_acc"] == 1
    assert (nothing["gres"]["giou"], nothing["words"]["exact_match"]) == (0.2, 0.2)
    assert nothing["targets"]["mean_iou"] == nothing["gres"]["t_acc"] == 0
    single = [scores.samples_of([row], "strict") for row in answered if row["target_px"]]
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
        _config(world, benchmark=benchmark, model=taught, chats=chat, out=str(world.home / benchmark))
    )
    table, _, _ = _stage(job).answer(inputs_of(rows, tasks=job.config.asked_tasks, turns="last"))
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
    assert _metrics(answered, min_pixels=10**9)["modes"]["strict"]["model"]["gres"]["t_acc"] == 0.0


def test_the_same_questions_get_the_same_answers(world, stage, answered):
    again, _, _ = stage.answer(inputs_of(world.rows, tasks=["gres"], turns="all"))
    assert again.to_pylist() == answered


def test_words_that_mean_other_masks_are_refused(world, tmp_path):
    other = write_chats(tmp_path / "other", world.rows, weights_sha256="0" * 64)
    with pytest.raises(ConfigError, match=r"--chats .* different mask tokenizers \(000000000000 and"):
        prepare(_config(world, chats=other))
    small = write_chats(tmp_path / "small", world.rows, weights_sha256=None, num_codes=32)
    with pytest.raises(ConfigError, match=r"--chats .* words of 2 x 32 codes, --tokenizer .* of 2 x 64"):
        prepare(_config(world, chats=small))
    unknown = write_chats(tmp_path / "unknown", world.rows, weights_sha256=None)
    assert prepare(_config(world, chats=unknown)).fingerprint["num_codes"] == 64
    foreign = world.build(tmp_path / "foreign", sha256="f" * 64)
    with pytest.raises(ConfigError, match=r"--model .*foreign and --tokenizer .* different mask tokenizers"):
        prepare(_config(world, model=foreign))
    with pytest.raises(ConfigError, match=r"--model .* words of 2 x 16 codes"):
        prepare(_config(world, model=world.build(tmp_path / "few", num_codes=16)))


def test_chats_that_cannot_be_scored_are_refused_when_they_are_planned(world, tmp_path):
    bare = json.loads(json.dumps(world.rows))
    for row in bare:
        for mask in row["masks"]:
            mask["rle"] = None
    chat = write_chats(tmp_path / "bare", bare, weights_sha256=world.sha256)
    with pytest.raises(DataError, match="--keep-rle") as caught:
        prepare(_config(world, chats=chat, out=str(tmp_path / "a"))).plan()
    assert caught.value.reason == "no_rle"
    with pytest.raises(DataError, match=r"no questions of the tasks grounding, res; it has gres"):
        prepare(_config(world, benchmark="rec", out=str(tmp_path / "b"))).plan()
    rows = json.loads(json.dumps(world.rows[:1]))
    rows[0]["messages"][1]["mask_ids"] = ["green", "no such mask"]
    with pytest.raises(DataError, match="no such mask"):
        inputs_of(rows, tasks=["gres"], turns="last")


def test_the_plan_holds_the_images_of_the_limit_and_other_settings_are_refused(world, tmp_path):
    config = _config(world, out=str(tmp_path / "out"), limit=1, shard_rows=1)
    plan = prepare(config).plan()
    assert plan.shard_rows == (1,)
    assert prepare(config).plan() == plan
    with pytest.raises(ConfigError, match="grammar: planned True, now False"):
        prepare(dataclasses.replace(config, grammar=False)).plan()


def test_official_scripts_know_words_of_two_levels_only(world):
    config = _config(world, broken_words="depth1")
    assert set(readings_of(config, 3)) == {"strict"}
    found = readings_of(config, 2)
    assert (found["strict"].malformed, found["official"].malformed) == ("depth1", "reference")


def test_a_model_that_was_replaced_in_mid_run_is_refused(world, tmp_path):
    shutil.copytree(world.model, tmp_path / "mllm")
    job = prepare(_config(world, model=str(tmp_path / "mllm")))
    config = tmp_path / "mllm" / "generation_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "seed_of_change": 1}))
    with pytest.raises(CheckpointError, match="no longer those that the run was planned with"):
        _stage(job)


def test_a_worker_that_cannot_load_its_model_says_so_when_it_is_asked(world, tmp_path):
    job = prepare(_config(world, out=str(tmp_path / "out")))
    config = dataclasses.replace(job.config, model=str(tmp_path / "no model"))
    make = functools.partial(AnswerQuestions, config, job.readings)
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        ShardWorker(make).do(job.plan(), 0)


def test_the_hash_of_a_model_is_over_what_it_answers_by(world, tmp_path):
    folder = tmp_path / "mllm"
    shutil.copytree(world.model, folder)
    before = models.sha256_of(str(folder))
    (folder / "lineage.json").write_text("{}")
    (folder / "history").mkdir()
    (folder / "history" / "metrics.json").write_text("{}")
    assert models.sha256_of(str(folder)) == before
    (folder / "samtok.json").write_text("{}")
    assert models.sha256_of(str(folder)) != before
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        models.sha256_of(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=r"--model: there is no .*nothing/config.json.*jobs/extend_mllm"):
        prepare(_config(world, model=str(tmp_path / "nothing")))
    with pytest.raises(ConfigError, match=r"--chats .*nothing is .*jobs/compose_dialogues.py --preset"):
        prepare(_config(world, chats=str(tmp_path / "nothing")))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"min_pixels": -1}, "--min-pixels must be >= 0"),
        ({"beside": ("folder",)}, "NAME=RUN_FOLDER"),
        ({"beside": ("a=x", "a=y")}, "names a run twice"),
        ({"beside": ("this run=x",)}, "have a column of that name"),
    ],
)
def test_settings_that_cannot_work_name_their_flag(world, changed, message):
    with pytest.raises(ConfigError, match=message):
        _config(world, **changed)


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
    limited = _config(world, model=taught, generation=GenerationConfig(max_new_tokens=2))
    table, _, _ = _stage(prepare(limited)).answer(inputs_of(world.rows[:1], tasks=["gres"], turns="last"))
    (row,) = table.to_pylist()
    assert row["generated"].startswith("<|mt_start|><|mt_0") and row["num_tokens"] == 2
    assert (row["cut"], row["num_malformed"], row["strict"]["codes"]) == (True, 1, [])
    assert row["official"]["codes"] == [[row["truth_codes"][0][0], -1]]  # as the authors' repair reads it
    assert row["official"]["predicted_px"] >= 0
    counts = _metrics([row])["counts"]
    assert (counts["malformed_words"], counts["answers_with_malformed"], counts["answers_cut"]) == (1, 1, 1)


def test_an_answer_that_ends_with_the_last_token_allowed_was_not_cut(world, taught, answered):
    (length,) = {row["num_tokens"] for row in answered[:1]}
    limited = _config(world, model=taught, generation=GenerationConfig(max_new_tokens=length))
    table, _, _ = _stage(prepare(limited)).answer(inputs_of(world.rows[:1], tasks=["gres"], turns="last"))
    (row,) = table.to_pylist()
    assert (row["num_tokens"], row["cut"], row["generated"]) == (length, False, row["truth"])


def test_rows_of_answers_fit_their_schema_when_nothing_was_asked():
    assert schema.table([], ANSWER_ROW).num_rows == 0
    metrics = _metrics([])
    assert metrics["counts"]["expected"] == 0 and metrics["modes"]["strict"]["model"]["gres"]["giou"] is None
