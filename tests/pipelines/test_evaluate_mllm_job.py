"""The job runs on Ray, survives a kill without a trace in its numbers, and shows runs beside each other."""

import json
from pathlib import Path

import pytest

from pipelines.mllm_evaluation.config import GenerationConfig
from pipelines.mllm_evaluation.rows import inputs_of
from pipelines.mllm_evaluation.scores import metrics_of
from pipelines.mllm_evaluation.stage import AnswerQuestions, AnswerSettings
from samtok.metrics.text_masks import Reading
from tests.jobs import job, run_job
from tests.mllm_evaluations import World

pytestmark = pytest.mark.slow

NUM_IMAGES = 24


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    world = World(tmp_path_factory.mktemp("world"), NUM_IMAGES)
    Path(world.rows[-1]["images"][0]["uri"]).unlink()  # the last image is lost, and its four questions
    return world


def _commits(out: Path) -> int:
    return len(list((out / "commits").glob("*.json")))


def _expected(world: World, shard_images: int) -> dict:
    """Returns the numbers of an evaluation in this process, shard by shard as the job cuts them."""
    readings = {mode: Reading.of("gres", mode) for mode in ("strict", "official")}
    stage = AnswerQuestions(
        world.model, world.tokenizer_uri, AnswerSettings(GenerationConfig(max_new_tokens=64), readings)
    )
    inputs, rows = inputs_of(world.rows, tasks=["gres"], turns="last"), []
    for start in range(0, len(inputs), shard_images):
        rows += stage.answer(inputs[start : start + shard_images])[0].to_pylist()
    return metrics_of(rows, benchmark="gres", readings=readings)


def test_a_run_that_is_killed_and_repeated_gives_the_numbers_of_one_that_was_not(world):
    out, log = world.home / "killed", world.home / "killed.log"
    flags = world.flags(out, "--generation.max-new-tokens", "64", "--shard-rows", "1")
    with job("evaluate_mllm", *flags, log=log) as running:
        running.until(lambda: _commits(out) >= 2)
        running.kill()
    done = _commits(out)
    assert 2 <= done < NUM_IMAGES and not (out / "metrics.json").exists()
    code, output = run_job("evaluate_mllm", *flags, log=world.home / "resumed.log")
    assert code == 0, output[-3000:]
    assert f"{NUM_IMAGES} images in {NUM_IMAGES} shards, {done} committed" in output
    metrics = json.loads((out / "metrics.json").read_text())
    found = {name: value for name, value in metrics.items() if name != "measured_with"}
    assert found == json.loads(json.dumps(_expected(world, 1)))
    assert metrics["counts"]["expected"] == 4 * NUM_IMAGES and metrics["counts"]["skipped"] == 4
    _check_closing(world, out, output)

    before = (out / "metrics.json").read_bytes()
    code, output = run_job(
        "evaluate_mllm", *flags, "--beside", f"earlier={out}", log=world.home / "beside.log"
    )  # nothing to do, so Ray is not needed
    assert code == 0 and "earlier" in output, output[-3000:]
    assert (out / "metrics.json").read_bytes() == before


def _check_closing(world: World, out: Path, output: str) -> None:
    """Looks at the table, the lineage, the report and MLflow of a finished run."""
    import mlflow

    assert "strict, x 100" in output and "always No target." in output and "N-acc" in output
    assert f"questions  {4 * NUM_IMAGES}  asked {4 * NUM_IMAGES - 4}  skipped 4" in output
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
