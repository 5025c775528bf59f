"""The training job as real processes: results, kills at any moment, errors that reach the user."""

import dataclasses
import json
import random
import time
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.tokenizer_training.config import ValidationConfig
from pipelines.training import checkpoints
from samtok.model.tokenizer import MaskTokenizer
from tests.jobs import Job, job, run_job
from tests.ray_head import RayHead
from tests.training import curve_of, record_of, short, train, weights_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS, EPOCH = 90, 15  # 120 images, 8 a step


def corpus(home: Path) -> str:
    shapes = home / "shapes"
    return (
        f"reader=coco,source={shapes}/annotations/instances_train.json,images={shapes}/train,dataset=shapes"
    )


def flags(home: Path, out: Path | str, *more: str) -> list[str]:
    """Returns the flags of the same run as ``config`` describes."""
    return [
        *("--preset", "micro", "--out", str(out), "--corpora", corpus(home)),
        *("--validation.corpora", corpus(home), "--steps", str(STEPS), "--quantize-from", "0.5"),
        *("--kmeans-samples", "80", "--optimizer.lr", "1e-3", "--optimizer.warmup-steps", "3"),
        *("--sampling.images-per-step", "8", "--sampling.masks-per-image", "4"),
        *("--validation.every", "30", "--validation.images", "4", "--validation.final-images", "6"),
        *("--checkpoints.every", "5", "--checkpoints.keep", "2", "--tracking", "off", *more),
    ]


@pytest.fixture(scope="module")
def whole(home, tmp_path_factory):
    """The uninterrupted run of two workers, without Ray."""
    folder = tmp_path_factory.mktemp("training")
    config = short(
        folder / "whole",
        workers=2,
        steps=STEPS,
        corpora=(corpus(home),),
        validation=ValidationConfig(corpora=(corpus(home),), every=30, images=4, final_images=6),
    )
    config = dataclasses.replace(
        config,
        checkpoints=dataclasses.replace(config.checkpoints, every=5, keep=2),
    )
    train(config, rendezvous=folder / "meet")
    return folder / "whole"


def assert_equal(out: Path | str, whole: Path) -> None:
    """Loss curve, final and best weights, and what was measured are the same, bit for bit."""
    assert curve_of(out) == curve_of(whole)
    for name in ("final", "best"):
        files = [storage.join(str(place), name, "model.safetensors") for place in (out, whole)]
        assert storage.read_bytes(files[0]) == storage.read_bytes(files[1]), name
        loaded = MaskTokenizer.from_pretrained(storage.join(str(out), name), read=storage.read_bytes)
        assert loaded.weights_sha256 == weights_of(whole, name)
    for name in ("final", "best", "validations", "masks", "rejects"):
        assert record_of(out)[name] == record_of(whole)[name], name


def steps_saved(out: Path | str) -> int:
    return max(checkpoints.steps(str(out)), default=0)


def test_a_killed_worker_is_replaced_and_the_result_is_the_same(home, whole, tmp_path):
    out = tmp_path / "out"
    with job("train_tokenizer", *flags(home, out, "--workers", "2"), log=tmp_path / "log") as running:
        running.until(lambda: steps_saved(out) >= random.choice([5, 20, 45]))
        random.choice(training_workers(running)).kill()
        assert running.wait(400) == 0, running.output()[-3000:]
    assert "resumed at step" in running.output()
    assert_equal(out, whole)


def training_workers(running: Job) -> list:
    found = running.processes("RayTrainWorker")
    assert len(found) == 2, [process.cmdline() for process in running.processes()]
    return found


@pytest.mark.long
def test_a_job_killed_twice_on_object_storage_goes_on_when_it_is_run_again(home, whole, bucket, tmp_path):
    """At an epoch's border, and at any time; it ends as the run on a local disk."""
    out = storage.join(bucket, "tokenizer")
    command = flags(home, out, "--workers", "2")
    for moment in (EPOCH, random.randrange(EPOCH + 1, STEPS // 2)):
        with job("train_tokenizer", *command, log=tmp_path / "log") as running:
            running.until(lambda moment=moment: steps_saved(out) >= moment)
            running.kill()
        assert not storage.exists(storage.join(out, "record.json")), "it ended before it was killed"
    code, output = run_job("train_tokenizer", *command, log=tmp_path / "again")
    assert code == 0, output[-3000:]
    assert "resumed at step" in output
    assert_equal(out, whole)
    assert storage.exists(storage.join(out, "report/index.html"))
    assert not storage.list_files(storage.join(out, "ray"))


@pytest.mark.long
def test_a_second_driver_is_refused_and_one_whose_folder_was_taken_over_ends(home, tmp_path):
    out = tmp_path / "out"
    command = flags(home, out, "--workers", "2", "--steps", "5000")
    with job("train_tokenizer", *command, log=tmp_path / "first") as first:
        first.until(lambda: steps_saved(out) >= 5)
        code, output = run_job("train_tokenizer", *command, log=tmp_path / "second")
        assert code == 2 and f"process {first.process.pid} on" in output, output[-3000:]
        holder = {**storage.read_json(str(out / "lease.json")), "writer": "another", "pid": 1}
        storage.write_bytes(str(out / "lease.json"), json.dumps(holder).encode())
        assert first.wait(120) == 4, first.output()[-3000:]
        assert "taken over by process 1" in first.output() and "Traceback" not in first.output()
    saved = steps_saved(out)
    time.sleep(2)
    assert steps_saved(out) == saved and storage.read_json(str(out / "lease.json")) == holder


def test_a_finished_run_is_left_as_it_is_and_its_report_is_whole(home, whole, tmp_path):
    before = weights_of(whole)
    command = flags(home, whole, "--workers", "2")
    code, output = run_job("train_tokenizer", *command, log=tmp_path / "log")
    assert code == 0 and "nothing is left to train" in output, output[-3000:]
    assert weights_of(whole) == before
    page = (whole / "report" / "index.html").read_text()
    assert page.count("data:image/png;base64") >= 2 and "shapes" in page


@pytest.mark.long
def test_the_job_runs_under_ray_job_submit_and_tracks_in_mlflow(home, tmp_path):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    out = tmp_path / "out"
    command = ["python", "jobs/train_tokenizer.py", *flags(home, out, "--steps", "12", "--tracking", uri)]
    with RayHead(tmp_path) as head:
        code, output = head.submit(command)
    assert code == 0, output[-3000:]
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("train_tokenizer")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["steps"] == "12"
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert [point.value for point in losses] == pytest.approx([row["loss"] for row in curve_of(out)])
    assert {"curves.png", "masks.png"} <= {
        Path(file.path).name for file in client.list_artifacts(run.info.run_id, "pictures")
    }
    assert json.loads((out / "final" / "lineage.json").read_text())["mlflow_run"] == run.info.run_id


@pytest.mark.long
def test_a_corpus_without_usable_masks_is_refused_before_workers_start(home, tmp_path):
    command = flags(home, tmp_path / "out", "--sampling.min-area-px", "100000")
    code, output = run_job("train_tokenizer", *command, log=tmp_path / "log")
    assert code == 3, output[-3000:]
    assert "--sampling.min-area-px" in output and "Traceback" not in output
