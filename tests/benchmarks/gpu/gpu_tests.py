"""The project's tests for GPUs, each as far as this machine has what it imports."""

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from tests.benchmarks.gpu.place import Found, Place

ROOT = Path(__file__).resolve().parents[3]


def run(place: Place) -> Found:
    """Runs the files with tests that are marked ``gpu``."""
    files = sorted(
        path.relative_to(ROOT)
        for path in ROOT.glob("tests/*/test_*.py")
        if "pytest.mark.gpu" in path.read_text()
    )
    if importlib.util.find_spec("pytest") is None:
        rows = [
            {"file": str(file), "passed": None, "skipped": None, "why": "no pytest here"} for file in files
        ]
        return Found(rows, "Not run.")
    rows, problems = [], []
    for file in files:
        row, wrong = _run(file)
        rows.append(row)
        problems += wrong
        if place.device == "cuda" and row["skipped"]:
            problems.append(f"{file} skipped {row['skipped']} tests on a GPU.")
    return Found(rows, "`pytest -m gpu` of each file that has such tests.", problems)


def _run(file: Path) -> tuple[dict[str, object], list[str]]:
    with tempfile.TemporaryDirectory(prefix="samtok-") as folder:
        report = Path(folder) / "report.xml"
        options = ["--import-mode=importlib", "-q", "-m", "gpu", "-p", "no:cacheprovider", "-c", "/dev/null"]
        command = [sys.executable, "-m", "pytest", *options, "--noconftest", f"--rootdir={ROOT}"]
        done = subprocess.run(
            [*command, f"--junitxml={report}", str(file)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    ends = [{part.tag for part in case} for case in cases]
    text = done.stdout + done.stderr
    missing = [line.strip() for line in text.splitlines() if "ModuleNotFoundError: No module named" in line]
    row = {
        "file": str(file),
        "passed": sum(not {"failure", "error", "skipped"} & end for end in ends),
        "skipped": sum("skipped" in end for end in ends),
        "why": missing[0] if missing else "",
    }
    failed = sum(bool({"failure", "error"} & end) for end in ends)
    if missing:
        return row, []
    problems = [f"{failed} tests of {file} failed: {text[-1500:]}"] if failed else []
    return row, problems or ([] if ends else [f"{file} did not run: {text[-1500:]}"])
