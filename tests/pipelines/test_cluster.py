"""How a job gets its Ray."""

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pipelines import cluster, env
from pipelines.cluster import ClusterInfo
from samtok.errors import ClusterError
from tests.ray_head import RayHead

ROOT = Path(__file__).resolve().parents[2]


def info(*, cpus: float = 4, gpus: float = 0, started_here: bool = False) -> ClusterInfo:
    return ClusterInfo(cpus, gpus, address="10.0.0.1:6379", started_here=started_here)


def test_a_job_that_fits_exactly_is_accepted():
    info(cpus=4, gpus=2).require(cpus=4, gpus=2)
    info().require()


def test_too_few_cpus_are_told_with_both_numbers_and_the_address(monkeypatch):
    monkeypatch.setenv(env.CLUSTER_WAIT_S, "0")
    with pytest.raises(ClusterError, match=r"needs 4\.5 CPUs .* at 10\.0\.0\.1:6379 has 4\. .*add nodes"):
        info().require(cpus=4.5)


def test_too_few_gpus_are_told_although_the_cpus_suffice(monkeypatch):
    monkeypatch.setenv(env.CLUSTER_WAIT_S, "0")
    with pytest.raises(ClusterError, match=r"needs 8 GPUs .* has 2\. .*add nodes to the cluster"):
        info(gpus=2).require(cpus=1, gpus=8)


def test_the_remedy_for_a_local_ray_is_one_that_works_there():
    with pytest.raises(ClusterError, match="count more of them"):
        info(started_here=True).require(cpus=5)
    with pytest.raises(ClusterError, match="set RAY_ADDRESS to a cluster that has them"):
        info(started_here=True).require(gpus=1)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "somewhere", "host:port", ":6379"])
def test_an_address_that_is_none_of_a_ray_head_is_refused(monkeypatch: pytest.MonkeyPatch, address: str):
    monkeypatch.setenv(env.RAY_ADDRESS, address)
    monkeypatch.setenv(env.RAY_AUTH_MODE, "disabled")
    with (
        pytest.raises(ClusterError, match=r"RAY_ADDRESS must be HOST:PORT .*`ray job submit --address`"),
        cluster.session(),
    ):
        pass


def test_a_cluster_that_is_not_there_is_told_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(env.RAY_ADDRESS, "127.0.0.1:9")
    monkeypatch.setenv(env.RAY_AUTH_MODE, "disabled")
    with (
        pytest.raises(ClusterError, match=r"No Ray cluster answers at 127\.0\.0\.1:9 .*unset RAY_ADDRESS"),
        cluster.session(),
    ):
        pass


@pytest.mark.parametrize("folder", ["x" * 40, "absent"])
def test_a_folder_in_which_ray_cannot_have_sockets_is_refused(monkeypatch, tmp_path: Path, folder: str):
    if folder != "absent":
        (tmp_path / folder).mkdir()
    monkeypatch.delenv(env.RAY_ADDRESS, raising=False)
    monkeypatch.setenv(env.RAY_AUTH_MODE, "disabled")
    monkeypatch.setenv(env.RAY_TMPDIR, str(tmp_path / folder))
    with (
        pytest.raises(
            ClusterError, match=r"cannot put its sockets into .* at most \d+ characters. Set RAY_TMPDIR"
        ),
        cluster.session(),
    ):
        pass


def test_workers_elsewhere_get_settings_but_no_secrets_and_nothing_twice(monkeypatch: pytest.MonkeyPatch):
    for name in (env.OMP_NUM_THREADS, env.AWS_REGION, env.AWS_SECRET_ACCESS_KEY, env.AWS_ACCESS_KEY_ID):
        monkeypatch.setenv(name, "3")
    monkeypatch.delenv(env.STORAGE_RETRY_S, raising=False)
    monkeypatch.delenv(env.AWS_ENDPOINT_URL, raising=False)
    monkeypatch.delenv(env.RAY_JOB_CONFIG, raising=False)
    assert cluster.shipped_variables() == {env.OMP_NUM_THREADS: "3", env.AWS_REGION: "3"}
    job = {"runtime_env": {"env_vars": {env.OMP_NUM_THREADS: "1"}}}
    monkeypatch.setenv(env.RAY_JOB_CONFIG, json.dumps(job))
    assert cluster.shipped_variables() == {env.AWS_REGION: "3"}


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts Python processes that wait, and ends them after the test."""
    with contextlib.ExitStack() as stack:

        def start_one(*arguments: str) -> subprocess.Popen:
            command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", *arguments]
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            stack.enter_context(child)
            stack.callback(child.kill)
            assert child.stdout is not None
            child.stdout.readline()
            return child

        yield start_one


def test_cleaning_up_kills_the_processes_of_that_ray_and_no_others(tmp_path: Path, start):
    ours = start(f"--temp-dir={tmp_path}/ray-1/x")
    theirs = start(f"--temp-dir={tmp_path}/ray-2/x")
    cluster.kill_processes_of(tmp_path / "ray-1")
    assert not psutil.pid_exists(ours.pid)
    assert theirs.poll() is None


SCRIPT = """
import os, subprocess, sys
from pathlib import Path
from pipelines import cluster

JOINER = '''
import ray
from pipelines import cluster
with cluster.session() as joined:
    assert not joined.started_here, joined
    print("joined", joined.num_cpus, ray.get(ray.remote(lambda: 6 * 7).remote()))
'''

with cluster.session(at_least_cpus=2.5) as started:
    import ray

    def look():
        return os.environ.get("PYTHONDONTWRITEBYTECODE"), os.environ.get("OF_THE_TEST")

    print("workers see", ray.get(ray.remote(look).remote()))
    print("started", started.started_here, started.num_cpus >= 3, started.num_gpus)
    with cluster.session() as again:
        assert again == started
    print("still there", ray.is_initialized())
    environment = {**os.environ, "RAY_ADDRESS": started.address}
    subprocess.run([sys.executable, "-c", JOINER], env=environment, check=True, timeout=120)
    environment["RAY_AUTH_TOKEN"] = "not-the-token"
    joiner = [sys.executable, "-c", JOINER]
    refused = subprocess.run(joiner, env=environment, timeout=120, capture_output=True, text=True)
    print("stranger", "Could not join the Ray cluster" in refused.stderr, "joined" in refused.stdout)
    print("still works", ray.get(ray.remote(lambda: 1).remote()))
    own = Path(ray._private.worker._global_node.get_temp_dir_path())
    folder = own.parent
    print("modes", oct(own.stat().st_mode & 0o777), oct(folder.stat().st_mode & 0o777))
    print("variable", os.environ["PYTHONDONTWRITEBYTECODE"])

print("ended", ray.is_initialized(), folder.exists())
print("token saved", (Path.home() / ".ray" / "auth_token").exists())
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_local_ray_starts_works_is_joined_only_with_its_token_and_ends(tmp_path: Path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "OF_THE_TEST": "inherited"}
    done = subprocess.run(
        [sys.executable, "-u", "-c", SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert done.stdout.splitlines() == [
        "workers see (None, 'inherited')",
        "started True True 0.0",
        "still there True",
        "joined 3.0 42",
        "stranger True False",
        "still works 1",
        "modes 0o777 0o700",
        "variable 1",
        "ended False False",
        "token saved False",
    ], done.stderr
    assert done.returncode == 0


WAITS = """
import logging, sys, time
from pipelines import cluster
from pipelines.config import WorkerConfig
from samtok.errors import ClusterError

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
cluster.WAIT_LINE_S = cluster.WAIT_POLL_S = 1.0
print("device", cluster.with_device(WorkerConfig()).device, flush=True)
started = time.monotonic()
with cluster.session() as info:
    try:
        info.require(gpus=1)
    except ClusterError as error:
        print(f"refused after {time.monotonic() - started:.0f} s: {error}")
    else:
        print("granted")
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_cluster_that_grows_is_waited_for_and_decides_the_device(tmp_path: Path):
    with RayHead(tmp_path) as head:
        address = f"127.0.0.1:{head.ports[0]}"
        own = {**head.env, env.RAY_ADDRESS: address, env.CLUSTER_WAIT_S: "3"}
        command = [sys.executable, "-c", WAITS]
        options = {"env": own, "cwd": ROOT, "text": True}
        small = subprocess.run(command, **options, capture_output=True, timeout=100, check=True).stdout
        assert "device cpu" in small and "GPUs that a worker asks for are waited for" in small
        assert re.search(r"waiting for the cluster at [\d.:]+: it has 0 of 1 GPUs; for 3 s more", small)
        assert "refused after" in small and f"wait longer for it to grow ({env.CLUSTER_WAIT_S})" in small
        own[env.CLUSTER_WAIT_S] = "120"
        with subprocess.Popen(command, **options, stdout=subprocess.PIPE) as waiting:
            assert waiting.stdout is not None
            for line in waiting.stdout:
                if line.startswith("waiting for"):
                    break
            head.add_node(num_gpus=1)
            assert waiting.stdout.read().endswith("granted\n")
        grown = subprocess.run(command, **options, capture_output=True, timeout=100, check=True).stdout
        assert "device cuda" in grown and "granted" in grown
