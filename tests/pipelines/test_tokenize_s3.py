"""The tokenization job against a true S3 server: equal bytes, through kills of the driver and the server."""

import random
import time
from pathlib import Path

import pytest

from pipelines import shards, storage
from tests.jobs import commits, data_digests, flags, job, read_manifest, run_job
from tests.s3_server import S3Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.long
@pytest.mark.parametrize("seed", [3])
def test_a_killed_driver_is_resumed_to_the_same_bytes_on_s3(home: Path, whole: Path, bucket: str, seed: int):
    out = f"{bucket}/words"
    stop_at = random.Random(seed).randint(2, 10)
    with job("tokenize_corpus", *flags(home, out), log=home / "s3.log") as first:
        first.until(lambda: storage.exists(f"{out}/plan.json") and commits(out) >= stop_at)
        first.kill()
    done = commits(out)
    assert stop_at <= done < 15
    code, output = run_job("tokenize_corpus", *flags(home, out), log=home / "s3-resumed.log")
    assert code == 0, output[-3000:]
    assert f"15 shards, {done} committed" in output
    assert data_digests(read_manifest(out)) == data_digests(read_manifest(whole))
    stored = {info.uri.rpartition("/")[2] for info in storage.list_files(f"{out}/data")}
    assert stored == {shard["data"]["file"].removeprefix("data/") for shard in read_manifest(out)["shards"]}


@pytest.mark.long
def test_a_run_survives_a_killed_actor_and_a_restart_of_the_s3_server(
    home: Path, whole: Path, bucket: str, s3: S3Server
):
    out = f"{bucket}/outage"
    with job("tokenize_corpus", *flags(home, out), log=home / "outage.log") as running:
        running.until(lambda: storage.exists(f"{out}/plan.json") and commits(out) >= 3)
        actors = running.processes("TokenizeCarefully")
        assert actors
        actors[0].kill()
        s3.kill()
        time.sleep(3)  # an outage has a length; the job must go on trying through it
        assert running.process.poll() is None, running.output()[-3000:]
        s3.start()
        assert running.wait() == 0, running.output()[-3000:]
    assert data_digests(read_manifest(out)) == data_digests(read_manifest(whole))
    assert shards.load_manifest(out)["totals"] == read_manifest(whole)["totals"]


def test_no_secret_is_written_beside_the_results(home: Path, bucket: str, s3: S3Server):
    out = f"{bucket}/dry"
    code, output = run_job("tokenize_corpus", *flags(home, out, "--dry-run"), log=home / "s3-dry.log")
    assert code == 0 and "plan      120 images" in output
    assert s3.env["AWS_SECRET_ACCESS_KEY"] not in output
    assert storage.list_files(out) == []
