"""Reinforcement learning as a real job: submitted to a cluster, killed with its Ray, and resumed."""

import random

import pytest

from tests.grpo_runs import (
    EVERY,
    PROMPTS,
    STEPS,
    assert_readable,
    assert_same_run,
    draws_of,
    flags,
    saved,
    seen,
)
from tests.jobs import ROOT, job, run_job
from tests.mllm_evaluations import World
from tests.ray_head import RayHead
from tests.training import curve_of, record_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("grpo") / "world", 4)


@pytest.fixture(scope="module")
def submitted(world, tmp_path_factory):
    """The uninterrupted run, submitted to a cluster; returns its folder and what it said."""
    folder = tmp_path_factory.mktemp("grpo")
    with RayHead(folder) as head:
        command = ["python", "jobs/grpo_gres.py", *flags(world, folder / "whole", "--tracking", "off")]
        code, output = head.submit(command)
    assert code == 0, output[-3000:]
    return folder / "whole", output


@pytest.mark.long
def test_a_submitted_job_ends_with_model_curve_and_report(submitted):
    out, output = submitted
    assert_readable(output)
    assert f"step {STEPS}/{STEPS} reward" in output
    assert draws_of(out) == list(range(STEPS * PROMPTS))
    assert all(row["gradient_norm"] > 0 for row in curve_of(out))
    for name in ("final/model.safetensors", "final/lineage.json", "report/index.html"):
        assert (out / name).stat().st_size, name


@pytest.mark.long
def test_a_job_that_was_killed_goes_on_as_if_it_had_not_been(world, submitted, tmp_path):
    """Its Ray dies with it; the same command ends with the same model, and MLflow has each step once."""
    from mlflow import MlflowClient

    out, log, uri = tmp_path / "out", tmp_path / "log", f"sqlite:///{tmp_path / 'mlflow.db'}"
    given = flags(world, out, "--tracking", uri)
    env, moment = {"PYTHONPATH": str(ROOT)}, random.choice((EVERY + 1, STEPS - 1))  # in between checkpoints
    with job("grpo_gres", *given, log=log, env=env) as running:
        running.until(lambda: saved(out) >= EVERY and seen(out) >= moment)
        running.kill()
    assert not (out / "record.json").exists(), "it ended before it was killed"
    code, output = run_job("grpo_gres", *given, log=log, env=env)
    assert code == 0 and "resumed at step" in output and "Traceback" not in output, output[-3000:]
    assert_readable(output)
    assert_same_run(out, submitted[0])
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("grpo_gres")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and record_of(out)["lineage"]["mlflow_run"] == run.info.run_id
    for name in ("reward", "gradient_norm"):
        points = client.get_metric_history(run.info.run_id, f"train/{name}")
        assert [point.step for point in points] == list(range(1, STEPS + 1)), name
        assert [point.value for point in points] == pytest.approx([row[name] for row in curve_of(out)])
    assert run.data.metrics["time/samples_per_s"] > 0
