"""Targets of the Makefile leave alone what they have not made. Its Python does nothing here."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.printed import parsed_by

ROOT = Path(__file__).parent.parent
OWN = (
    "runs/words/_MANIFEST.json",
    "runs/embedded/notes.txt",
    "runs/mlflow.db",
    "mlflow.db",
    "mlruns/0/meta.yaml",
)


TARGETS = (["quickstart"], ["tour"], ["tour-tasks"], ["tour-thinking"], ["clean"])


@pytest.mark.parametrize("targets", TARGETS, ids=" ".join)
def test_a_target_removes_nothing_of_a_user_and_runs_presets_that_are_there(targets, tmp_path: Path):
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in (*OWN, ".venv/bin/python", ".venv/.installed"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('#!/bin/sh\necho "$@" >> ran.txt\n')
    (tmp_path / ".venv/bin/python").chmod(0o755)
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", *targets], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [name for name in OWN if not (tmp_path / name).exists()] == []
    assert (tmp_path / ".venv").exists() == (targets != ["clean"])
    ran = (tmp_path / "ran.txt").read_text() if targets != ["clean"] else ""
    jobs = re.findall(r"^jobs/(\w+)\.py --preset (\S+)", ran, re.MULTILINE)
    assert bool(jobs) == bool(ran)
    for job, preset in jobs:
        assert preset in parsed_by(job)[1], (job, preset)
