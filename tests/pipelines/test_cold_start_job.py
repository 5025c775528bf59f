"""The job has a teacher model write on Ray, and takes up what an earlier run has left."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cold_start import main
from pipelines import shards
from pipelines.cold_start.config import ColdStartConfig, TeacherConfig
from pipelines.cold_start.prepare import prepare
from pipelines.cold_start.teacher import TeachSamples
from pipelines.config import WorkerConfig
from tests.jobs import data_digests, read_manifest, run_job
from tests.mllm_evaluations import World

pytestmark = pytest.mark.slow

SHARDS, COMMITTED = 6, 2


def written(out: Path) -> pa.Table:
    """Returns all that a teacher wrote."""
    files = [record["data"]["file"] for record in read_manifest(out)["shards"]]
    return pa.concat_tables([pq.read_table(out / file) for file in files])


@pytest.mark.long
def test_actors_write_what_an_earlier_run_left_and_every_sample_is_accounted_for(tmp_path):
    world = World(tmp_path / "world", 6)
    Path(world.rows[-1]["images"][0]["uri"]).unlink()  # the last image is lost, and its four samples
    out = tmp_path / "thoughts"
    expected = begin(world, out)
    flags = ["--chats", world.chat, "--out", str(out), "--teacher.model", world.model, "--tracking", "off"]
    flags += ["--teacher.max-new-tokens", "24", "--teacher.shard-rows", "4", "--workers", "2"]
    flags += ["--worker.gpus", "0"]
    code, output = run_job("cold_start", *flags, log=tmp_path / "job.log")
    assert code == 3, output[-3000:]  # a tiny teacher has no thoughts, and the job says so
    assert f"{SHARDS} shards, {COMMITTED} committed" in output
    assert "none of the 24 replies could be used" in output and "4 image_missing" in output
    totals = read_manifest(out)["totals"]
    assert (totals["rows_in"], totals["rows_rejected"], totals["samples_out"]) == (24, 24, 0)
    assert written(out / "teacher").to_pylist() == expected.to_pylist()
    before = data_digests(read_manifest(out))
    assert main(flags) == 3  # in this process, since nothing is left to do and Ray is not needed
    assert data_digests(read_manifest(out)) == before


def begin(world: World, out: Path) -> pa.Table:
    """Writes the first replies as a run that was killed leaves them; returns those of a whole run."""
    teacher = TeacherConfig(model=world.model, max_new_tokens=24, shard_rows=4)
    config = ColdStartConfig(
        chats=world.chat, out=str(out), teacher=teacher, worker=WorkerConfig(gpus=0.0), tracking="off"
    )
    job = prepare(config)
    plan = job.teacher_plan()
    assert job.model_sha256 is not None and len(plan.shard_rows) == SHARDS
    stage = TeachSamples(job.source, job.config, job.model_sha256)
    done = [stage(plan, shard) for shard in range(SHARDS)]
    for one in done[:COMMITTED]:
        shards.commit(plan, **one)
    return pa.concat_tables([one["rows"] for one in done])
