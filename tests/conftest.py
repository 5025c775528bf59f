"""Fixtures for all tests: a real S3 server, started once, on first use."""

import gc
import logging
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `tests.x` can be imported

from tests.collected import COLLECTED
from tests.s3_server import S3Server

PROTECTS = {
    "faults": (
        *("grpo_faults", "tokenize_job", "tokenize_s3", "storage_s3", "storage_faults", "train_job"),
        *("sft_job", "tracking", "any_mix", "crashes"),
    ),
    "cluster": (
        *("cluster", "submit", "doctor", "grpo_job", "sweep_job", "dialogues_job", "cold_start_job"),
        *("evaluate_job", "evaluate_mllm_job", "extend_mllm", "dry_run", "architecture"),
    ),
    "numerics": (
        *("parity", "quantizer_distributed", "sampling", "tiny_vision", "engine_deepspeed", "grpo_learner"),
        *(
            "grpo_learners",
            "grpo_ranks",
            "sft_distributed",
            "train_micro",
            "training_distributed",
            "training_data",
            "sft",
            "tokenizer_training",
            "gpu_check",
            "families",
        ),
    ),
    "docs": ("printed_commands",),
    "compat": ("old_artifacts", "older_transformers"),
}
"""What slow tests protect, by their files without ``test_``: results after kills and outages, whole jobs on
real Rays, numbers (no Ray, so they run beside the others), printed commands, earlier releases' artifacts."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks slow tests by what they protect, and keeps the list of all."""
    config.stash[COLLECTED] = tuple(items)
    kinds = {f"test_{stem}": kind for kind, stems in PROTECTS.items() for stem in stems}
    for item in items:
        marked = any(map(item.get_closest_marker, PROTECTS))
        if item.get_closest_marker("slow") and not marked and item.path.stem in kinds:
            item.add_marker(kinds[item.path.stem])


def pytest_collection_finish() -> None:
    """Leaves what was collected out of each later look for garbage, which took a tenth of the time of all."""
    gc.collect()
    gc.freeze()


# One example can take long where others want the cores too; the time limit of a test holds for all of it.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The S3 server of this test session. A test that kills it starts it again."""
    server = S3Server(tmp_path_factory.mktemp("s3") / "data")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new empty bucket, as ``s3://name``; this process and its children are signed in to its server."""
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    return s3.make_bucket(f"test-{uuid.uuid4().hex[:12]}")


class _Lines(logging.Handler):
    """Keeps what was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What our own loggers say, whatever a job that ran in this process has set up before."""
    handler, logger = _Lines(), logging.getLogger("pipelines")
    before = logger.level, logger.propagate, logger.handlers[:]
    logger.propagate, logger.handlers[:] = False, [handler]
    logger.setLevel(logging.INFO)
    yield handler.lines
    level, logger.propagate, logger.handlers[:] = before
    logger.setLevel(level)
