"""The fine-tuning job as real processes: kills at any moment, object storage, errors that reach the user."""

import dataclasses
import random
import shutil
import time
from pathlib import Path

import pytest

from pipelines import provenance, storage
from pipelines.sft.config import TrainMllmConfig
from pipelines.sft.job import train_mllm
from pipelines.training import checkpoints
from pipelines.training.config import CheckpointsConfig
from tests.jobs import job, run_job
from tests.mllm_evaluations import World, write_chats
from tests.sft import EPOCH, short, train, validation, workers
from tests.training import curve_of, record_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 12 * EPOCH


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("sft") / "world", 12)


def settings(world: World, out: Path | str, **changes) -> TrainMllmConfig:
    """A run of two workers with a checkpoint after every half epoch."""
    config = short(
        world, out, steps=STEPS, **workers(2), checkpoints=CheckpointsConfig(every=EPOCH // 2, keep=2)
    )
    every = dataclasses.replace(config.validation, every=STEPS // 3)
    return dataclasses.replace(config, **({"validation": every} | changes))


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """The uninterrupted run of two workers, without Ray."""
    folder = tmp_path_factory.mktemp("sft")
    train(settings(world, folder / "whole"), rendezvous=folder / "meet")
    return folder / "whole"


def command(config: TrainMllmConfig, folder: Path) -> tuple[str, ...]:
    """Returns the flags of a run."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(provenance.config_json(config))
    return ("--config", str(folder / "config.json"))


def assert_equal(out: str, whole: Path) -> None:
    """Curve, both exported models, and what was measured and said are the same, bit for bit."""
    assert curve_of(out) == curve_of(whole)
    for name in ("final", "best"):
        files = [storage.join(str(place), name, "model.safetensors") for place in (out, whole)]
        assert storage.read_bytes(files[0]) == storage.read_bytes(files[1]), name
    for name in ("validations", "best", "rejects", "tokens", "workers"):
        assert record_of(out)[name] == record_of(whole)[name], name
    last = f"generations/{STEPS:08d}.json"
    assert storage.read_json(storage.join(out, last)) == storage.read_json(storage.join(str(whole), last))


def steps_saved(out: Path | str) -> int:
    return max(checkpoints.steps(str(out)), default=0)


@pytest.mark.long
def test_a_killed_worker_is_replaced_on_object_storage_and_mlflow_has_it_all(world, whole, bucket, tmp_path):
    """Model, corpora and results are on s3."""
    from mlflow import MlflowClient

    out, uri = storage.join(bucket, "out"), f"sqlite:///{tmp_path / 'mlflow.db'}"
    model, chat = (
        copied(place, storage.join(bucket, Path(place).name)) for place in (world.model, world.chat)
    )
    config = settings(world, out, model=model, chats=(chat,), tracking=uri, log_every_s=0.0)
    held_out = dataclasses.replace(config.validation, chats=(f"uri={chat},limit=9",))
    config = dataclasses.replace(config, validation=held_out)
    with job("train_mllm", *command(config, tmp_path), log=tmp_path / "log") as running:
        running.until(lambda: steps_saved(out) >= EPOCH)
        found = running.processes("RayTrainWorker")
        assert len(found) == 2, [process.cmdline() for process in running.processes()]
        random.choice(found).kill()
        assert running.wait(400) == 0, running.output()[-3000:]
    assert "resumed at step" in running.output() and "Traceback" not in running.output()
    assert_equal(out, whole)
    assert storage.exists(storage.join(out, "report/index.html"))
    assert not storage.list_files(storage.join(out, "ray"))
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("train_mllm")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["steps"] == str(STEPS)
    losses = {point.step: point.value for point in client.get_metric_history(run.info.run_id, "train/loss")}
    assert losses == {row["step"] + 1: pytest.approx(row["loss"]) for row in curve_of(out)}
    pictures = {
        Path(file.path).name
        for folder in ("pictures", "generations")
        for file in client.list_artifacts(run.info.run_id, folder)
    }
    assert {"curves.png", f"{STEPS // 3:08d}.png", f"{STEPS:08d}.png"} <= pictures
    lineage = storage.read_json(storage.join(out, "final", "lineage.json"))
    assert lineage["mlflow_run"] == run.info.run_id


def copied(folder: str, uri: str) -> str:
    """Puts a folder on object storage."""
    for file in storage.list_files(folder):
        name = str(Path(file.uri).relative_to(folder))
        storage.write_bytes(storage.join(uri, name), storage.read_bytes(file.uri))
    return uri


@pytest.mark.long
def test_a_job_killed_twice_and_moved_goes_on_when_it_is_run_again(world, whole, tmp_path):
    """At an epoch's border, then at any time, each time in another folder."""
    places = [tmp_path / name for name in ("first", "second", "third")]
    for out, moment in zip(places, (EPOCH, random.randrange(EPOCH + 1, STEPS // 2)), strict=False):
        flags = command(settings(world, out), tmp_path)
        with job("train_mllm", *flags, log=tmp_path / f"log-{moment}") as running:
            running.until(lambda out=out, moment=moment: steps_saved(out) >= moment)
            running.kill()
        assert not (out / "record.json").exists(), "it ended before it was killed"
        shutil.move(out, places[places.index(out) + 1])
    flags = command(settings(world, places[-1]), tmp_path)
    code, output = run_job("train_mllm", *flags, log=tmp_path / "again")
    assert code == 0 and "resumed at step" in output, output[-3000:]
    assert_equal(str(places[-1]), whole)
    page = (places[-1] / "report" / "index.html").read_text()
    assert page.count("data:image/png;base64") >= 1
    assert train_mllm(settings(world, places[-1])) == 0, "a finished run is left as it is"
    assert_equal(str(places[-1]), whole)


@pytest.mark.long
def test_an_error_of_one_worker_ends_the_others_too(world, tmp_path):
    """One chat of an epoch's 49 cannot be used or replaced, so that one worker meets it."""
    row = dict(world.rows[0], images=[dict(world.rows[0]["images"][0], uri="/nowhere/x.png")])
    bad = write_chats(tmp_path / "bad", [row], weights_sha256=world.sha256)
    config = settings(world, tmp_path / "out", chats=(world.chat, bad), validation=validation())
    begun = time.monotonic()
    code, output = run_job("train_mllm", *command(config, tmp_path), log=tmp_path / "log")
    assert code == 3, output[-3000:]
    assert "none of 17 chats drawn from" in output and "leave the corpus out" in output
    assert "Traceback" not in output and time.monotonic() - begun < 240
