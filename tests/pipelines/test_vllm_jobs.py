"""Jobs that generate with a real vLLM, in its own environment: ``make test-vllm``."""

import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.generation.environment import FOLDER
from tests.jobs import run_job
from tests.mllm_evaluations import World
from tests.training import curve_of

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / FOLDER / "bin" / "python"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not PYTHON.exists(), reason=f"no {FOLDER}; make setup-vllm"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world") / "world", 3)


def answers(out: Path) -> list[tuple[str, str]]:
    rows = [row for file in sorted(out.glob("data/*.parquet")) for row in pq.read_table(file).to_pylist()]
    return sorted((row["sample_id"], row["generated"]) for row in rows)


def evaluated(world: World, out: Path, *more: str) -> list[tuple[str, str]]:
    flags = world.flags(out, "--report-pictures", "0", "--max-reject-rate", "1", *more)
    code, said = run_job("evaluate_mllm", *flags, log=out.parent / f"{out.name}.log")
    assert code == 0, said[-3000:]
    return answers(out)


@pytest.fixture(scope="module")
def by_transformers(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    return evaluated(world, tmp_path_factory.mktemp("hf") / "out", "--workers", "0")


@pytest.mark.long
def test_an_evaluation_by_vllm_has_the_answers_of_transformers(world, by_transformers, tmp_path):
    assert evaluated(world, tmp_path / "out", "--generation.engine", "vllm") == by_transformers


@pytest.fixture(scope="module")
def server(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A vLLM server of the model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", world.model, "--dtype", "float32"),
        *("--enforce-eager", "--max-model-len", "512", "--generation-config", "vllm", "--port", str(port)),
        *("--host", "127.0.0.1", "--kv-cache-memory-bytes", str(1 << 28)),
    ]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file, text=True) as started:
        yield f"http://127.0.0.1:{port}"
        started.send_signal(signal.SIGINT)
        try:
            started.wait(30)
        except subprocess.TimeoutExpired:
            started.kill()


@pytest.mark.long
def test_an_evaluation_by_a_server_has_the_answers_of_transformers(world, by_transformers, server, tmp_path):
    """It waits for the server, which starts at the same time."""
    flags = ("--generation.engine", "http", "--generation.url", server, "--workers", "0")
    assert evaluated(world, tmp_path / "out", *flags) == by_transformers


def test_grpo_samples_with_vllm_and_both_sides_agree_at_every_step(tmp_path):
    """Two samplers in the other environment; the learner's release of transformers is another. The reward
    differs within every group, so that weights move."""
    out = tmp_path / "run"
    code, said = run_job(
        *("grpo_gres", "--preset", "smoke", "--out", str(out), "--tracking", "off"),
        *("--rollout.engine", "vllm", "--rollout.workers", "2", "--checks.parity-every", "1"),
        *("--optimizer.lr", "1e-3", "--optimizer.warmup-steps", "0"),
        *("--reward.plug-ins", "tests.grpo_runs:even", "--reward.weights", "even=1"),
        log=tmp_path / "log",
        env={"PYTHONPATH": str(ROOT), "SAMTOK_HOME": str(tmp_path)},
    )
    assert code == 0, said[-4000:]
    parity = re.findall(r"parity at step (\d+): .* differ by (\S+) on average and (\S+) at most", said)
    assert [int(step) for step, *_ in parity] == [0, 1, 2, 3, 4]
    assert all(float(worst) < 1e-4 for *_, worst in parity), parity
    rows = curve_of(out)
    assert all(row["gradient_norm"] > 0 for row in rows)
    assert max(row["mismatch_max"] for row in rows) < 1e-4
