"""Runs jobs as real processes, the way a user does, and injects real faults into them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from pipelines import storage

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 240


class Job:
    """A job's process; its output goes to a file so that no pipe can fill up."""

    def __init__(self, name: str, *flags: str, log: Path, env: dict[str, str] | None = None) -> None:
        self.log = log
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *flags],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                env=environment,
            )

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        """Returns the exit code."""
        return self.process.wait(timeout_s)

    def output(self) -> str:
        """Returns what it printed so far."""
        return self.log.read_text(errors="replace")

    def until(self, condition: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
        """Waits for a condition; fails if the job ends or the time runs out before."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, f"the job ended too early:\n{self.output()[-3000:]}"
            assert time.monotonic() < deadline, f"nothing happened in {timeout_s} s:\n{self.output()[-3000:]}"
            time.sleep(0.02)

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Returns its live descendants (Ray's included) whose command line has ``name`` in it."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if name in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def kill(self) -> None:
        """SIGKILL of the driver; what Ray leaves behind is killed too, as after a lost node."""
        family = self.processes()
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family, timeout=30)


@contextmanager
def job(name: str, *flags: str, log: Path, env: dict[str, str] | None = None) -> Iterator[Job]:
    """Starts a job and makes sure that nothing of it is left at the end."""
    started = Job(name, *flags, log=log, env=env)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.kill()


def run_job(name: str, *flags: str, log: Path, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Runs a job to its end; returns exit code and output."""
    with job(name, *flags, log=log, env=env) as started:
        code = started.wait()
    return code, started.output()


NUM_IMAGES = 120
"""Images of the corpus that jobs are tested on (``tests/pipelines/conftest.py``): 15 shards of two chunks."""


def flags(home: Path, out: str, *more: str) -> list[str]:
    """Returns the flags of a tokenization of the test corpus."""
    shapes = home / "shapes"
    return [
        *("--corpus.reader", "coco", "--corpus.source", str(shapes / "annotations/instances_train.json")),
        *("--corpus.images", str(shapes / "train"), "--corpus.dataset", "shapes", "--out", out),
        *("--tokenizer", str(home / "micro"), "--shard-rows", "8", "--chunk-rows", "4"),
        *("--reconstruct", "0.5", "--tracking", "off", "--report-images", "0", *more),
    ]


def commits(out: str | Path) -> int:
    """Returns how many shards of a corpus are committed."""
    return len(storage.list_files(storage.join(str(out), "commits"), suffix=".json"))


def data_digests(manifest: dict) -> list[tuple[str, str]]:
    """Returns name and SHA-256 of all data and reject files of a corpus, in order."""
    return [
        (shard[kind]["file"], shard[kind]["sha256"])
        for shard in manifest["shards"]
        for kind in ("data", "rejects")
    ]


def read_manifest(out: str | Path) -> dict:
    """Reads the manifest of a corpus."""
    return storage.read_json(storage.join(str(out), "_MANIFEST.json"))
