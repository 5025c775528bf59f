"""A real Ray head on loopback that jobs are submitted to, with a folder and ports of its own."""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import psutil

from tests.jobs import ROOT

BIN = Path(sys.executable).parent
STARTS = 3
"""Ray gives a node 30 s to start, which a busy machine exceeds."""


_NO_AGENT = "No available agent to submit job"
"""What a head answers whose agent is not up yet, on a busy machine; nothing was submitted then."""


class RayHead:
    """Context manager around ``ray start --head``; only its own processes are ended.

    Args:
        logs: Folder for the output of the head.
        cwd: Where ``ray start`` is called, which is where jobs without a working directory run.
        env: Further variables of the head, and so of jobs.
    """

    def __init__(self, logs: Path, *, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> None:
        self.logs, self.cwd = logs, cwd
        self.folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # Unix sockets need a short path
        self.env = {
            **{k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONDONTWRITEBYTECODE")},
            "RAY_AUTH_MODE": "disabled",  # loopback only
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_BACKEND_LOG_LEVEL": "fatal",
            "OMP_NUM_THREADS": "1",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            **(env or {}),
        }

    def __enter__(self) -> "RayHead":
        for _ in range(STARTS):
            self.ports = _free_ports(4)
            if self._start():
                return self
            self._end()
        raise AssertionError(f"ray start failed:\n{(self.logs / 'head.log').read_text()[-3000:]}")

    def _start(self) -> bool:
        port, dashboard, client, agent = self.ports
        command = [
            *(str(BIN / "ray"), "start", "--head", "--disable-usage-stats", "--num-cpus", "4"),
            *("--port", str(port), "--dashboard-port", str(dashboard), "--temp-dir", str(self.folder)),
            *("--ray-client-server-port", str(client), "--node-ip-address", "127.0.0.1"),
            *("--dashboard-agent-listen-port", str(agent)),  # else one that all Rays of a host want
        ]
        with (self.logs / "head.log").open("ab") as log:
            code = subprocess.run(
                command, cwd=self.cwd, env=self.env, stdout=log, stderr=log, timeout=120, check=False
            ).returncode
        return code == 0 and self._answers()

    def _answers(self) -> bool:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.ports[1]}/api/version", timeout=2).read()
                return True
            except OSError:
                time.sleep(0.5)
        return False

    def add_node(self, *, num_gpus: int = 0) -> None:
        """Adds a node with two CPUs, and GPUs that are only counted."""
        command = [
            *(str(BIN / "ray"), "start", "--address", f"127.0.0.1:{self.ports[0]}", "--disable-usage-stats"),
            *("--num-cpus", "2", "--num-gpus", str(num_gpus), "--node-ip-address", "127.0.0.1"),
        ]
        with (self.logs / "node.log").open("ab") as log:
            subprocess.run(command, env=self.env, stdout=log, stderr=log, timeout=120, check=True)

    def submit(
        self, command: list[str], timeout_s: float = 240, *, working_dir: bool = True
    ) -> tuple[int, str]:
        """Runs ``ray job submit --working-dir .`` to its end; returns exit code and output.

        Args:
            command: The job.
            timeout_s: Longest time it may take.
            working_dir: Whether the checkout is copied to where the job runs.
        """
        submit = [
            *(str(BIN / "ray"), "job", "submit", "--address", f"http://127.0.0.1:{self.ports[1]}"),
            *(("--working-dir", ".") if working_dir else ()),
            *("--", *command),
        ]
        deadline = time.monotonic() + 60
        while True:
            done = subprocess.run(
                submit, env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
            )
            output = done.stdout + done.stderr
            if _NO_AGENT not in output or time.monotonic() > deadline:
                return done.returncode, output
            time.sleep(2)

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        mine = [p for p in psutil.process_iter() if self._started(p)]
        for process in mine:
            process.kill()
        psutil.wait_procs(mine, timeout=30)

    def _started(self, process: psutil.Process) -> bool:
        try:
            return str(self.folder) in " ".join(process.cmdline()) and process.pid != os.getpid()
        except psutil.Error:
            return False


def _free_ports(count: int) -> list[int]:
    """Finds ports outside of 10002-19999, where Ray puts its workers."""
    found = []
    while len(found) < count:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if not 10002 <= port <= 19999 and port not in found:
            found.append(port)
    return found
