"""The two lines with which a user starts the system, bare, on a real head.

ray job submit -- python jobs/tokenize_corpus.py
ray job submit -- python jobs/grpo_gres.py
"""

import json
import re
import sqlite3
from pathlib import Path

import pytest

from tests.jobs import ROOT
from tests.ray_head import RayHead

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RESULTS = {
    "tokenize_corpus": ("words", "_MANIFEST.json"),
    "grpo_gres": ("grpo-gres", "record.json"),
}


@pytest.fixture(
    scope="module",
    params=[pytest.param("head in the checkout", marks=pytest.mark.long), "head elsewhere, --working-dir ."],
)
def submitted(request, tmp_path_factory) -> tuple[dict[str, tuple[int, str]], Path]:
    """Exit codes and outputs of both jobs, and the folder that relative places start from."""
    work = tmp_path_factory.mktemp("submit")
    home = work / "home"
    elsewhere = "elsewhere" in request.param
    with RayHead(work, cwd=work if elsewhere else ROOT, env={"SAMTOK_HOME": str(home)}) as head:
        done = {
            name: head.submit(["python", f"jobs/{name}.py"], working_dir=elsewhere, timeout_s=400)
            for name in RESULTS
        }
    return done, home  # the head is gone, and with it the copy that Ray made


@pytest.mark.parametrize("name", RESULTS)
def test_a_bare_line_ends_well_and_its_results_stay(submitted, name):
    done, home = submitted
    code, output = done[name]
    assert code == 0, output[-4000:]
    out, last = RESULTS[name]
    assert (home / "runs" / out / last).exists()
    assert json.loads((home / "runs" / out / "config.json").read_text())["out"] == str(home / "runs" / out)
    assert "no flags: running --preset smoke" in output
    places = re.findall(r"^out +(\S+)$", output, flags=re.MULTILINE)
    assert places[0] == places[-1] == str(home / "runs" / out)  # the first line and the last one


def test_the_database_and_the_artifacts_are_beside_the_results(submitted):
    _, home = submitted
    with sqlite3.connect(home / "runs/mlflow.db") as database:
        runs = dict(database.execute("select run_uuid, artifact_uri from runs where status = 'FINISHED'"))
    assert len(runs) == len(RESULTS)
    for uri in runs.values():
        folder = Path(uri.removeprefix("file://"))
        assert folder.is_relative_to(home / "runs/mlruns") and any(folder.rglob("*"))
