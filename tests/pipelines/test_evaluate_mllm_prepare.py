"""What is known of an evaluation before a question is asked: what fits together, and what is refused."""

import dataclasses
import functools
import json
import shutil

import pytest

from pipelines.generation import models
from pipelines.mllm_evaluation.prepare import asked_of, prepare, readings_of
from pipelines.mllm_evaluation.rows import inputs_of
from pipelines.mllm_evaluation.stage import AnswerQuestions
from pipelines.shard_pool import ShardWorker
from samtok.errors import CheckpointError, ConfigError, DataError
from tests.mllm_evaluations import World, config_of, stage_of, write_chats


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"), 2)


def test_words_that_mean_other_masks_are_refused(world, tmp_path):
    other = write_chats(tmp_path / "other", world.rows, weights_sha256="0" * 64)
    with pytest.raises(ConfigError, match=r"--chats .* different mask tokenizers \(000000000000 and"):
        prepare(config_of(world, chats=other))
    small = write_chats(tmp_path / "small", world.rows, weights_sha256=None, num_codes=32)
    with pytest.raises(ConfigError, match=r"--chats .* words of 2 x 32 codes, --tokenizer .* of 2 x 64"):
        prepare(config_of(world, chats=small))
    unknown = write_chats(tmp_path / "unknown", world.rows, weights_sha256=None)
    assert prepare(config_of(world, chats=unknown)).fingerprint["num_codes"] == 64
    foreign = world.build(tmp_path / "foreign", sha256="f" * 64)
    with pytest.raises(ConfigError, match=r"--model .*foreign and --tokenizer .* different mask tokenizers"):
        prepare(config_of(world, model=foreign))
    with pytest.raises(ConfigError, match=r"--model .* words of 2 x 16 codes"):
        prepare(config_of(world, model=world.build(tmp_path / "few", num_codes=16)))


def test_chats_that_cannot_be_scored_are_refused_when_they_are_planned(world, tmp_path):
    bare = json.loads(json.dumps(world.rows))
    for row in bare:
        for mask in row["masks"]:
            mask["rle"] = None
    chat = write_chats(tmp_path / "bare", bare, weights_sha256=world.sha256)
    with pytest.raises(DataError, match="--keep-rle") as caught:
        prepare(config_of(world, chats=chat, out=str(tmp_path / "a"))).plan()
    assert caught.value.reason == "no_rle"
    with pytest.raises(DataError, match=r"no questions of the tasks grounding, res; it has gres"):
        prepare(config_of(world, benchmark="rec", out=str(tmp_path / "b"))).plan()
    rows = json.loads(json.dumps(world.rows[:1]))
    rows[0]["messages"][1]["mask_ids"] = ["green", "no such mask"]
    with pytest.raises(DataError, match="no such mask"):
        inputs_of(rows, tasks=["gres"], turns="last")


def test_the_plan_holds_the_images_of_the_limit_and_other_settings_are_refused(world, tmp_path):
    config = config_of(world, out=str(tmp_path / "out"), limit=1, shard_rows=1)
    plan = prepare(config).plan()
    assert plan.shard_rows == (1,)
    assert prepare(config).plan() == plan
    with pytest.raises(ConfigError, match="grammar: planned True, now False"):
        prepare(dataclasses.replace(config, grammar=False)).plan()


def test_official_scripts_know_words_of_two_levels_only(world):
    config = config_of(world, broken_words="depth1")
    asked = asked_of(config, model_thinks=False)
    assert set(readings_of(config, asked, 3)) == {"strict"}
    found = readings_of(config, asked, 2)
    assert (found["strict"].malformed, found["official"].malformed) == ("depth1", "reference")


def test_a_model_that_was_replaced_in_mid_run_is_refused(world, tmp_path):
    shutil.copytree(world.model, tmp_path / "mllm")
    job = prepare(config_of(world, model=str(tmp_path / "mllm")))
    config = tmp_path / "mllm" / "generation_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "seed_of_change": 1}))
    with pytest.raises(CheckpointError, match="no longer those that the run was planned with"):
        stage_of(job)


def test_a_worker_that_cannot_load_its_model_says_so_when_it_is_asked(world, tmp_path):
    job = prepare(config_of(world, out=str(tmp_path / "out")))
    config = dataclasses.replace(job.config, model=str(tmp_path / "no model"))
    make = functools.partial(AnswerQuestions, config, job.asked, job.readings)
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
        prepare(config_of(world, model=str(tmp_path / "nothing")))
    with pytest.raises(ConfigError, match=r"--chats .*nothing is .*jobs/compose_dialogues.py --preset"):
        prepare(config_of(world, chats=str(tmp_path / "nothing")))


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
        config_of(world, **changed)
