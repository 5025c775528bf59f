"""The job runs on Ray, survives a kill without a trace in its numbers, and shows runs beside each other."""

import json
from pathlib import Path

import pytest

from pipelines import cli
from pipelines.mllm_evaluation.config import PRESETS, AnswerConfig, EvaluateMllmConfig
from pipelines.mllm_evaluation.job import evaluate_mllm
from pipelines.mllm_evaluation.prepare import asked_of, readings_of
from pipelines.mllm_evaluation.rows import inputs_of
from pipelines.mllm_evaluation.scores import metrics_of
from pipelines.mllm_evaluation.stage import AnswerQuestions
from tests.jobs import job, run_job
from tests.mllm_evaluations import World

pytestmark = [pytest.mark.slow, pytest.mark.long]

NUM_IMAGES, MAX_NEW_TOKENS = 16, 48


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    world = World(tmp_path_factory.mktemp("world"), NUM_IMAGES)
    Path(world.rows[-1]["images"][0]["uri"]).unlink()  # the last image is lost, and its four questions
    return world


def _commits(out: Path) -> int:
    return len(list((out / "commits").glob("*.json")))


def _expected(world: World, shard_images: int) -> dict:
    """Returns the numbers of an evaluation in this process, shard by shard as the job cuts them."""
    config = EvaluateMllmConfig(
        model=world.model,
        chats=world.chat,
        out="unused",
        tokenizer=world.tokenizer_uri,
        generation=AnswerConfig(max_new_tokens=MAX_NEW_TOKENS),
    )
    asked = asked_of(config, model_thinks=False)
    readings = readings_of(config, asked, 2)
    stage = AnswerQuestions(config, asked, readings)
    inputs, rows = inputs_of(world.rows, tasks=["gres"], turns="last"), []
    for start in range(0, len(inputs), shard_images):
        rows += stage.answer(inputs[start : start + shard_images])[0].to_pylist()
    return metrics_of(rows, benchmark="gres", readings=readings)


def _flags(world: World, *more: str) -> list[str]:
    limit = ("--generation.max-new-tokens", str(MAX_NEW_TOKENS), "--shard-rows", "1")
    return world.flags(world.home / "killed", *limit, *more)


@pytest.fixture(scope="module")
def killed(world) -> int:
    """A run that was killed; how many shards it had committed."""
    out = world.home / "killed"
    with job("evaluate_mllm", *_flags(world, "--tracking", "off"), log=world.home / "killed.log") as running:
        running.until(lambda: _commits(out) >= 2)
        running.kill()
    return _commits(out)


@pytest.fixture(scope="module")
def resumed(world, killed) -> tuple[Path, str]:
    """The folder of the same run after it was repeated, without Ray, and what that printed."""
    flags = _flags(world, "--tracking", "off", "--workers", "0")
    code, output = run_job("evaluate_mllm", *flags, log=world.home / "resumed.log")
    assert code == 0, output[-3000:]
    return world.home / "killed", output


def test_a_killed_run_has_whole_shards_and_no_numbers(world, killed):
    assert 2 <= killed < NUM_IMAGES and not (world.home / "killed" / "metrics.json").exists()


def test_a_run_that_is_killed_and_repeated_gives_the_numbers_of_one_that_was_not(world, killed, resumed):
    out, output = resumed
    assert f"{NUM_IMAGES} inputs in {NUM_IMAGES} shards, {killed} committed" in output
    counted = f"questions in {4 * NUM_IMAGES}  out {4 * NUM_IMAGES - 4}  rejected 4\n"
    assert f"{counted}rejected  4 image_missing: " in output
    metrics = json.loads((out / "metrics.json").read_text())
    found = {name: value for name, value in metrics.items() if name != "measured_with"}
    assert found == json.loads(json.dumps(_expected(world, 1)))
    assert metrics["counts"]["expected"] == 4 * NUM_IMAGES and metrics["counts"]["skipped"] == 4


def test_a_finished_run_repeats_its_numbers_and_shows_others_beside_them(world, resumed, capsys):
    out, _ = resumed
    before = (out / "metrics.json").read_bytes()
    config = cli.parse(EvaluateMllmConfig, PRESETS, _flags(world, "--beside", f"earlier={out}"), doc="")
    assert evaluate_mllm(config) == 0  # in this process, since nothing is left to do and Ray is not needed
    assert (out / "metrics.json").read_bytes() == before
    _check_closing(world, out, capsys.readouterr().out)


def _check_closing(world: World, out: Path, output: str) -> None:
    """Looks at the table, the lineage, the report and MLflow of a finished run."""
    import mlflow

    for words in ("strict, x 100", "official, x 100", "always No target.", "earlier", "N-acc"):
        assert words in output, words
    lineage = json.loads((out / "lineage.json").read_text())
    assert lineage["tokenizer"]["weights_sha256"] == world.sha256
    assert "image_missing" in (out / "report/index.html").read_text()
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{world.home}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'evaluate_mllm'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.tags["model_sha256"] == lineage["model"]["sha256"]
    assert run.data.metrics["evaluation/counts/skipped"] == 4
    pictures = {Path(item.path).name for item in client.list_artifacts(run.info.run_id, "report")}
    assert pictures >= {"index.html", "random.png"}
