"""``--dry-run`` of every job and preset: light, quick, without a trace; a missing input names its command."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines import cli
from pipelines.ingestion.synthetic.corpus import make_shapes
from tests.printed import JOBS, ROOT, parsed_by

pytestmark = [pytest.mark.slow, pytest.mark.numerics]

LIMIT_S = 5.0


def dry_runs(job: str, root: Path) -> dict[str, dict[str, Any]]:
    """Runs all presets of a job in a folder with the mixtures of a checkout; see tests/dry_runs.py."""
    (root / "tmp").mkdir(exist_ok=True)
    shutil.copytree(ROOT / "infra/mixtures", root / "infra/mixtures", dirs_exist_ok=True)
    places = {name: str(root / "tmp") for name in ("HOME", "TMPDIR", "SAMTOK_HOME")}
    env = {**os.environ, **places, "PYTHONPATH": str(ROOT)}
    env.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "tests.dry_runs", job, str(root)]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def check(job: str, preset: str, run: dict[str, Any]) -> None:
    """What holds for every dry run."""
    where = f"{job} {' '.join(run['flags'])}:\n{run['out'][-500:]}{run['err'][-2000:]}"
    assert not run["heavy"], where
    assert not run["changed"], where
    assert run["seconds"] < LIMIT_S, where
    if run["code"] == 0:
        assert '"out": ' in run["out"] and re.search("^plan +\\w", run["out"], re.MULTILINE), where
    else:
        assert run["code"] == 2 and "ERROR   ConfigError" in run["err"].splitlines()[-1], where
        commands = re.findall(r"`python jobs/(\w+)\.py ([^`]*)`", run["err"])
        assert commands or "Download sam2.1" in run["err"], where
        for maker, flags in commands:
            kind, presets = parsed_by(maker)
            cli.parse(kind, presets, shlex.split(flags), doc="")


@pytest.mark.parametrize("job", JOBS)
def test_a_dry_run_where_nothing_is(job: str, tmp_path: Path):
    found = dry_runs(job, tmp_path)
    for preset, run in found.items():
        check(job, preset, run)
    assert found["smoke"]["code"] == 0, "smoke needs nothing"


@pytest.mark.parametrize("job", ["tokenize_corpus", "evaluate_tokenizer"])
def test_a_dry_run_counts_images_that_are_there(job: str, tmp_path: Path):
    kind, presets = parsed_by("make_shapes")

    shapes = tmp_path / "runs/embedded/shapes"
    assert (
        make_shapes(
            cli.parse(
                kind, presets, ["--preset", "heldout", "--num-images", "12", "--out", str(shapes)], doc=""
            )
        )
        == 0
    )
    run = dry_runs(job, tmp_path)["smoke"]
    check(job, "smoke", run)
    assert "12 images" in run["out"] and "nothing was written" in run["out"]
