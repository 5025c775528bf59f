"""The job has a teacher model write on Ray, and goes on after a kill as if nothing had been."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cold_start import main
from pipelines.cold_start.config import ColdStartConfig, TeacherConfig
from pipelines.cold_start.prepare import prepare, teacher_plan
from pipelines.cold_start.teacher import TeachSamples
from tests.jobs import data_digests, job, read_manifest, run_job
from tests.mllm_evaluations import World

pytestmark = pytest.mark.slow

SHARDS = 6


def written(out: Path) -> pa.Table:
    """Returns all that a teacher wrote."""
    files = [record["data"]["file"] for record in read_manifest(out)["shards"]]
    return pa.concat_tables([pq.read_table(out / file) for file in files])


def test_a_killed_teacher_goes_on_and_every_sample_is_accounted_for(tmp_path):
    world = World(tmp_path / "world", 6)
    Path(world.rows[-1]["images"][0]["uri"]).unlink()  # the last image is lost, and its four samples
    out = tmp_path / "thoughts"
    flags = ["--chats", world.chat, "--out", str(out), "--teacher.model", world.model]
    flags += ["--teacher.max-new-tokens", "24", "--teacher.shard-rows", "4", "--pool.actors", "2"]
    flags += ["--pool.gpus-per-actor", "0", "--tracking"]
    with job("cold_start", *flags, "off", log=tmp_path / "killed.log") as running:
        running.until(lambda: any((out / "teacher/commits").glob("*.json")))
        running.kill()
    code, output = run_job(
        "cold_start", *flags, f"sqlite:///{tmp_path}/mlflow.db", log=tmp_path / "resumed.log"
    )
    assert code == 3, output[-3000:]  # a tiny teacher has no thoughts, and the job says so
    assert "none of 24 replies could be used: " in output and "4 image_missing" in output
    totals = read_manifest(out)["totals"]
    assert (totals["rows_in"], totals["rows_rejected"], totals["samples_out"]) == (24, 24, 0)
    _check_replies(world, out, tmp_path / "alone")
    _check_tracking(tmp_path)
    before = data_digests(read_manifest(out))
    assert main([*flags, "off"]) == 3  # in this process, since nothing is left to do and Ray is not needed
    assert data_digests(read_manifest(out)) == before


def _check_tracking(home: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'cold_start'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED" and run.data.metrics["counts/items_rejected"] == 24


def _check_replies(world: World, out: Path, alone: Path) -> None:
    """Compares what actors wrote with what the same class writes in this process."""
    teacher = TeacherConfig(model=world.model, max_new_tokens=24, shard_rows=4)
    ready = prepare(ColdStartConfig(chats=world.chat, out=str(alone), teacher=teacher, tracking="off"))
    plan = teacher_plan(ready)
    assert ready.model_sha256 is not None and len(plan.shard_rows) == SHARDS
    stage = TeachSamples(
        ready.source, teacher, device="cpu", threads=1, seed=0, model_sha256=ready.model_sha256
    )
    expected = pa.concat_tables([stage.teach_shard(plan, shard)["rows"] for shard in range(SHARDS)])
    assert written(out / "teacher").to_pylist() == expected.to_pylist()
