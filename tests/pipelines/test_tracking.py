"""MLflow: what a run is called and shows, what is refused and what that costs, runs that open at once."""

import math
import multiprocessing
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.tracking import Tracker, valid_name


def opened(database: Path, out: str = "words") -> Tracker:
    return Tracker(f"sqlite:///{database}", experiment="tokenize_corpus", home=str(database.parent / out))


def client(database: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{database}")


def test_a_run_is_named_after_its_job_and_folder_and_tells_its_command(database, monkeypatch):
    monkeypatch.setattr("sys.argv", ["jobs/tokenize_corpus.py", "--out", "my words"])
    tracker = opened(database)
    tracker.end()
    run = client(database).get_run(tracker.run_id)
    assert run.info.run_name == "tokenize_corpus words"
    assert run.data.tags["mlflow.source.name"] == "jobs/tokenize_corpus.py"
    assert "python jobs/tokenize_corpus.py --out 'my words'" in run.data.tags["mlflow.note.content"]
    assert run.data.tags["mlflow.user"]


def test_an_experiment_opens_at_its_runs_unless_someone_chose_another_view(database):
    opened(database).end()
    found = client(database).get_experiment_by_name("tokenize_corpus")
    assert found.tags["mlflow.experimentKind"] == "custom_model_development"
    client(database).set_experiment_tag(found.experiment_id, "mlflow.experimentKind", "finetuning")
    opened(database, "other").end()
    found = client(database).get_experiment_by_name("tokenize_corpus")
    assert found.tags["mlflow.experimentKind"] == "finetuning"


def test_a_name_or_value_that_mlflow_refuses_costs_no_other_and_not_the_run(database, lines):
    tracker = opened(database)
    wrong: Any = {"good": 1.0, "iou@50": 0.5, "//a/../b": 2.0, "": 3.0, "text": "much", "none": None}
    tracker.metrics(wrong | {"nan": math.nan})
    tracker.params({"weights": {"iou@50": 1, "é ü": "\ud800\0"}, "seed": 0})
    tracker.tags({"a@b": "\ud800", "fine": 1})
    tracker.text("\ud800", "lineage/a@b.json")
    tracker.picture(b"x", "../x.png")
    tracker.metrics({"later": 1.0}, step=3)
    tracker.end()
    run = client(database).get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert {"good": 1.0, "iou_50": 0.5, "b": 2.0, "_": 3.0, "later": 1.0}.items() <= run.data.metrics.items()
    assert run.data.params == {"weights.iou_50": "1", "weights.é ü": "??", "seed": "0"}
    assert {"a_b": "?", "fine": "1"}.items() <= run.data.tags.items()
    assert [file.path for file in client(database).list_artifacts(tracker.run_id, "lineage")] == [
        "lineage/a_b.json"
    ]
    assert sorted(line.split(",")[0] for line in lines) == ["MLflow refuses none", "MLflow refuses text"]


def test_data_of_a_run_are_its_input_once_however_often_they_are_told(database):
    tracker = opened(database)
    for _ in range(2):
        tracker.dataset("grefcoco val\0", digest="0123456789" * 7, source="s3://chats/val")
    tracker.dataset("own", digest="1", source="runs/chats")
    tracker.end()
    found = client(database).get_run(tracker.run_id).inputs.dataset_inputs
    told = {
        (one.dataset.name, one.dataset.digest, one.dataset.source_type, one.dataset.source) for one in found
    }
    assert told == {
        ("grefcoco val?", ("0123456789" * 4)[:36], "s3", '{"uri": "s3://chats/val"}'),
        ("own", "1", "local", '{"uri": "runs/chats"}'),
    }
    assert {(tag.key, tag.value) for one in found for tag in one.tags} == {
        ("mlflow.data.context", "evaluation")
    }


@given(st.text(max_size=20) | st.text("./@a", max_size=12) | st.just("a/b" * 100))
def test_any_name_becomes_one_that_mlflow_takes(name):
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name

    valid = valid_name(name)
    _validate_metric_name(valid)
    _validate_param_name(valid)
    assert valid_name(valid) == valid


@pytest.mark.parametrize("name", ["train/reward", "learner/clip share: high", "iou/rq-64x2", "throughput/é"])
def test_names_of_ours_stay(name):
    assert valid_name(name) == name


def test_a_run_whose_database_failed_is_closed_all_the_same(database, lines):
    tracker = opened(database)
    with sqlite3.connect(database) as connection:
        connection.execute("ALTER TABLE metrics RENAME TO gone")
    tracker.metrics({"iou": 1.0})
    tracker.metrics({"iou": 2.0}, step=1)
    tracker.end("FAILED")
    assert client(database).get_run(tracker.run_id).info.status == "FAILED"
    assert len([line for line in lines if line.startswith("tracking of the run at sqlite")]) == 1


def test_artifacts_that_cannot_be_stored_do_not_cost_the_numbers(database, lines):
    tracker = opened(database)
    (database.parent / "mlruns").write_text("a file where the folder would be")
    tracker.picture(b"x", "x.png")
    tracker.text("y", "y.txt")
    tracker.metrics({"iou": 1.0})
    tracker.end()
    assert client(database).get_run(tracker.run_id).data.metrics == {"iou": 1.0}
    assert [line.partition(" at ")[0] for line in lines] == ["tracking of artifacts"]


def _open(folder: str, name: str, barrier: Any, links: Any) -> None:
    import mlflow  # noqa: F401 so that all open at the same time

    barrier.wait(60)
    links.put(Tracker(f"sqlite:///{folder}/new/mlflow.db", experiment="e", home=f"{folder}/{name}").link)


@pytest.mark.slow
def test_runs_that_open_a_new_database_at_once_are_all_tracked(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    barrier, links = spawn.Barrier(3), spawn.Queue()
    all_of_them = [spawn.Process(target=_open, args=(str(tmp_path), n, barrier, links)) for n in "abc"]
    for process in all_of_them:
        process.start()
    found = [links.get(timeout=300) for _ in all_of_them]
    for process in all_of_them:
        process.join(30)
    assert "off" not in found
