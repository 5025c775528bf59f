"""The sweep job as real processes: killed and run again, trials that are ended early, what MLflow has."""

import json
import os
import signal
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipelines.sweeps.config import PRESETS
from tests.jobs import job, run_job
from tests.training import curve_of, record_of, weights_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = PRESETS["smoke"].train.steps


def flags(out: Path, database: Path, *more: str) -> list[str]:
    return ["--preset", "smoke", "--out", str(out), "--tracking", f"sqlite:///{database}", *more]


def endings(out: Path) -> dict[str, tuple[bytes, str]]:
    """Returns record and SHA-256 of the weights of the trials that are finished."""
    records = sorted(out.glob("trials/*/record.json"))
    return {path.parent.name: (path.read_bytes(), weights_of(path.parent)) for path in records}


def changes(out: Path) -> dict[Path, int]:
    """Returns when each file of the trials was written, but for those of their checks before they begin."""
    files = [path for path in out.glob("trials/**/*") if path.is_file() and path.name != "fingerprint.json"]
    return {path: path.stat().st_mtime_ns for path in files}


def runs_of(client: MlflowClient) -> tuple[Run, dict[str, Run]]:
    """Returns the run of the sweep and, by trial, those below it; fails if there are others."""
    experiment = client.get_experiment_by_name("sweep_codebook")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    below = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(below) == len(found) - 1
    children = {run.data.params["trial"]: run for run in below}
    assert len(children) == len(below), "a trial has two runs"
    return parent, children


@pytest.fixture(scope="module")
def resumed(tmp_path_factory) -> tuple[Path, dict, str]:
    """A sweep that was killed once its first trial had ended, and was run again.

    Returns:
        Its folder, the trials that were finished when it was killed, and what the second run printed.
    """
    home = tmp_path_factory.mktemp("sweep")
    command = flags(home / "out", home / "mlflow.db")
    with job("sweep_codebook", *command, log=home / "log") as running:
        running.until(lambda: any((home / "out").glob("trials/*/record.json")))
        running.kill()
    before = endings(home / "out")
    code, output = run_job("sweep_codebook", *command, log=home / "again")
    assert code == 0, output[-3000:]
    return home / "out", before, output


@pytest.mark.long
def test_a_killed_sweep_goes_on_and_leaves_finished_trials_as_they_are(resumed):
    out, before, output = resumed
    after, names = endings(out), set(PRESETS["smoke"].quantizers)
    assert 1 <= len(before) < len(names), "it was killed too early or too late"
    assert set(after) == names
    assert {name: after[name] for name in before} == before
    assert f"{len(names)} trials, {len(before)} done before" in output
    assert f"trial 1/{len(names) - len(before)}:" in output
    assert "training the 20 steps" not in output, "the common steps were trained twice"
    assert not (out / "ray").exists()


@pytest.mark.long
def test_a_resumed_sweep_ends_with_one_table_of_all_trials(resumed):
    out, _, output = resumed
    rows = {row["name"]: row for row in json.loads((out / "results.json").read_text())}
    assert list(rows) == list(PRESETS["smoke"].quantizers)
    for name, row in rows.items():
        final = record_of(out / "trials" / name)["final"]
        assert (row["status"], row["iou"], row["steps"]) == ("finished", final["iou"], STEPS)
        assert f"{row['iou']:.4f}" in output
    page = (out / "report" / "index.html").read_text()
    ceiling = record_of(out / "base")["final"]["iou"]
    assert f"{len(rows)} of {len(rows)}" in page and f"{ceiling:.3f}" in page
    assert (out / "report" / "tradeoff.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_a_resumed_sweep_is_one_run_in_mlflow_with_a_closed_run_of_every_trial(resumed):
    out, _, output = resumed
    assert "tracking at" not in output
    client = MlflowClient(f"sqlite:///{out.parent / 'mlflow.db'}")
    parent, children = runs_of(client)
    assert parent.info.status == "FINISHED" and set(children) == set(PRESETS["smoke"].quantizers)
    pictures = [file.path for file in client.list_artifacts(parent.info.run_id, "pictures")]
    assert pictures == ["pictures/tradeoff.png"]
    for name, child in children.items():
        assert (child.info.status, child.data.tags["status"]) == ("FINISHED", "finished")
        final, metrics = record_of(out / "trials" / name)["final"], child.data.metrics
        assert metrics["final/iou"] == parent.data.metrics[f"iou/{name}"] == pytest.approx(final["iou"])
        curve = client.get_metric_history(child.info.run_id, "train/loss")
        told = {point.step: point.value for point in curve}
        assert list(told.values()) == pytest.approx([row["loss"] for row in curve_of(out / "trials" / name)])


@pytest.mark.long
def test_what_asha_ends_early_is_measured_marked_and_not_run_again(tmp_path):
    """From trained weights, where one bit a mask is far worse than eight from the first look on."""
    out, database = tmp_path / "out", tmp_path / "mlflow.db"
    command = flags(
        *(out, database, "--base-steps", "0", "--quantizers", "rq-16x2", "vq-2"),
        *("--train.model", "tiny", "--train.start.tokenizer", "tiny", "--train.steps", "14"),
        *("--scheduler.kind", "asha", "--scheduler.grace-steps", "10", "--scheduler.reduction", "2"),
        *("--train.validation.every", "10", "--train.num-cpus", "3"),
    )
    code, output = run_job("sweep_codebook", *command, log=tmp_path / "log")
    assert code == 0, output[-3000:]
    good, bad = json.loads((out / "results.json").read_text())
    assert (good["name"], good["status"], good["steps"]) == ("rq-16x2", "finished", 14)
    assert (bad["name"], bad["status"], bad["steps"]) == ("vq-2", "stopped", 10)
    assert good["iou"] > bad["iou"] > 0
    assert not (out / "trials" / "vq-2" / "record.json").exists()
    _, children = runs_of(MlflowClient(f"sqlite:///{database}"))
    how = {name: (run.info.status, run.data.tags["status"]) for name, run in children.items()}
    assert how == {"rq-16x2": ("FINISHED", "finished"), "vq-2": ("FINISHED", "ended by the scheduler")}
    assert children["vq-2"].data.metrics["validation/iou"] == pytest.approx(bad["iou"])

    before = changes(out)
    assert out / "trials" / "vq-2" / "stopped.json" in before
    code, output = run_job("sweep_codebook", *command, log=tmp_path / "again")
    assert code == 0 and "2 trials, 2 done before" in output, output[-3000:]
    assert changes(out) == before
    assert json.loads((out / "results.json").read_text()) == [good, bad]


@pytest.mark.long
def test_an_interrupted_sweep_does_not_pass_for_a_finished_one(tmp_path):
    """Tune takes the signal itself and returns as if all were well."""
    out, database = tmp_path / "out", tmp_path / "mlflow.db"
    command = flags(out, database, "--base-steps", "0", "--quantizers", "rq-16x2", "vq-2")
    with job("sweep_codebook", *command, log=tmp_path / "log") as running:
        running.until(lambda: any(out.glob("trials/*/checkpoints/*/state.json")))
        os.kill(running.process.pid, signal.SIGINT)
        assert running.wait() == 5, running.output()[-3000:]
    assert "did not end" in running.output() and "vq-2: interrupted" in running.output()
    parent, _ = runs_of(MlflowClient(f"sqlite:///{database}"))
    assert parent.info.status == "FAILED"
    assert not (out / "trials" / "vq-2" / "stopped.json").exists(), "it would not be run again"


@pytest.mark.long
def test_what_a_trial_failed_of_reaches_the_user_and_the_page(tmp_path):
    out, database = tmp_path / "out", tmp_path / "mlflow.db"
    command = flags(
        *(out, database, "--base-steps", "0", "--quantizers", "fsq-8x8", "--scheduler.max-failures", "0"),
        *("--train.optimizer.lr", "1e30"),
    )
    code, output = run_job("sweep_codebook", *command, log=tmp_path / "log")
    assert code == 5, output[-3000:]
    assert "1 of 1 trials did not end (fsq-8x8: " in output and "or raise --train.max-bad-steps" in output
    assert "Traceback" not in output
    parent, children = runs_of(MlflowClient(f"sqlite:///{database}"))
    assert parent.info.status == children["fsq-8x8"].info.status == "FAILED"
    (row,) = json.loads((out / "results.json").read_text())
    assert row["status"] == "failed" and "TrainingDiverged" in (out / "report" / "index.html").read_text()
