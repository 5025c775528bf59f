"""Seconds that every job takes without flags, each in an empty folder: its inputs are made too.

    python -m tests.benchmarks.smoke_times [JOB ...]

Prints a line of Markdown per job as it ends, and fails if one fails or takes longer than 90 s.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
LIMIT_S = 90


def main() -> int:
    """Runs them, one after another."""
    jobs = sys.argv[1:] or sorted(path.stem for path in (ROOT / "jobs").glob("*.py"))
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    sys.stdout.write("| job | seconds |\n| --- | ---: |\n")
    good = True
    for job in jobs:
        with tempfile.TemporaryDirectory(prefix="samtok-smoke-") as folder:
            started = time.monotonic()
            command = [sys.executable, str(ROOT / f"jobs/{job}.py")]
            done = subprocess.run(
                command,
                cwd=folder,
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            seconds = time.monotonic() - started
        if done.returncode:
            sys.stderr.write(done.stdout[-3000:])
        good &= done.returncode == 0 and seconds <= LIMIT_S
        sys.stdout.write(f"| {job} | {seconds:.0f}{'' if done.returncode == 0 else ' FAILED'} |\n")
        sys.stdout.flush()
    return int(not good)


if __name__ == "__main__":
    raise SystemExit(main())
