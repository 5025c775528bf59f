"""METEOR's Java program: what is said where it cannot run, and that it is always ended.

A shell script stands for Java where the program must misbehave.
"""

import importlib.util
import os
import shutil
import time
from pathlib import Path

import pytest

from samtok.errors import SamtokError
from samtok.metrics import meteor
from samtok.metrics.captions import CaptionSample, CaptionScores
from samtok.metrics.captions import meteor as score
from tests.samtok.test_metrics_captions import FIXTURE, samples

INSTALLED = importlib.util.find_spec("pycocoevalcap") is not None
NEEDS_PACKAGE = "needs pycocoevalcap: pip install samtok[captions]"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Puts something in the place of the program, as pycocoevalcap would have it."""
    jar = tmp_path / "site/pycocoevalcap/meteor/meteor-1.5.jar"
    jar.parent.mkdir(parents=True)
    jar.write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return jar


@pytest.fixture
def java(tmp_path, monkeypatch, package):
    """Returns a function that makes a script the Java of this machine."""

    def become(script: str) -> None:
        path = tmp_path / "bin/java"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")

    return become


def test_without_java_there_is_no_score_but_a_reason(package, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert score(FIXTURE) == CaptionScores(score=None, missing="needs Java")
    with pytest.raises(SamtokError, match=r"METEOR needs Java\."):
        meteor.scores([["a"]], [[["a"]]])


@pytest.mark.skipif(INSTALLED, reason="pycocoevalcap is installed")
def test_without_pycocoevalcap_there_is_no_score_but_a_reason(tmp_path, monkeypatch):
    (tmp_path / "java").write_text("#!/bin/sh\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert score(FIXTURE) == CaptionScores(score=None, missing=NEEDS_PACKAGE)


ANSWER = r"printf 'Segment 1 score:\t0.25\nSegment 2 score:\t0.5\n\nFinal score:            0.375\n'"


def test_the_program_gets_one_caption_per_line_and_as_many_references_for_each(java, tmp_path, package):
    java(f'cp "$5" "$6" {tmp_path}; pwd > {tmp_path}/place; echo "$@" > {tmp_path}/arguments; {ANSWER}')
    rows = samples(("A café, seen \ud800.", "One.", "Two\ncats!"), (None, "Three ||| dogs"))
    assert score(rows) == CaptionScores(score=0.375, segments=(0.25, 0.5))
    assert (tmp_path / "predicted").read_text(encoding="utf-8") == "a café seen ?\n\n"
    lines = (tmp_path / "references").read_text(encoding="utf-8").split("\n")
    assert lines == ["one", "two cats", "three | | | dogs", "three | | | dogs", ""]
    assert Path((tmp_path / "place").read_text().strip()) == package.parent
    arguments = (tmp_path / "arguments").read_text().split()
    assert arguments[:4] == ["-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", "meteor-1.5.jar"]
    assert arguments[6:] == ["-l", "en", "-norm", "-r", "2"]
    assert not Path(arguments[4]).exists()  # nothing is left behind


def test_official_leaves_out_what_has_no_prediction(java, tmp_path):
    java(f'cp "$5" {tmp_path}; {ANSWER}')
    rows = samples(("a", "a"), (None, "b"), ("c", "c"))
    assert score(rows, mode="official").segments == (0.25, 0.5)
    assert (tmp_path / "predicted").read_text() == "a\nc\n"
    assert score([]) == CaptionScores(score=None)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'no room' >&2; exit 3", r"ended with code 3: no room\. It needs Java 8 or later and 2 GiB"),
        ("exit 1", "ended with code 1: nothing was said"),
        ("kill -9 $$", "ended with code -9"),
        ("echo hello", "METEOR wrote no scores but 'hello"),
        (r"printf 'Segment 1 score:\tx\nFinal score: 1\n'", "METEOR wrote no scores"),
        (r"printf 'Segment 1 score:\t0.5\nFinal score: 1\n'", "METEOR wrote 1 scores for 3 captions"),
    ],
)
def test_a_program_that_fails_is_an_error(java, script, message):
    java(script)
    with pytest.raises(SamtokError, match=message):
        score(FIXTURE)


def test_a_java_that_cannot_be_started_is_an_error(java, tmp_path):
    java("")
    (tmp_path / "bin/java").write_bytes(b"#!/no/such/shell\n")
    with pytest.raises(SamtokError, match="METEOR's Java program cannot be started: .*No such file"):
        score(FIXTURE)


def test_a_program_that_does_not_end_is_stopped_with_all_that_it_started(java, tmp_path):
    java(f"sleep 60 & echo $$ $! > {tmp_path}/started; yes 'a line that fills any pipe'")
    start = time.monotonic()
    with pytest.raises(SamtokError, match=r"METEOR did not end within 0\.5 s and was stopped"):
        score(FIXTURE, limit_s=0.5)
    assert time.monotonic() - start < 20
    for process in map(int, (tmp_path / "started").read_text().split()):
        assert _ended(process)


def _ended(process: int) -> bool:
    """Whether a process is gone within 10 s, or waits only to be taken notice of."""
    for _ in range(1000):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
@pytest.mark.skipif(not INSTALLED, reason=NEEDS_PACKAGE)
@pytest.mark.timeout(600)
def test_meteor_equals_the_published_numbers():
    skipped = CaptionSample(image_id="skipped", references=("A cat.",), predicted=None)
    found = score([*FIXTURE, skipped], mode="official")
    assert found.score == pytest.approx(0.2455449304, abs=1e-10)
    assert found.segments == pytest.approx((0.2286606983, 0.3887662972, 0.1602763376), abs=1e-10)


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
@pytest.mark.skipif(not INSTALLED, reason=NEEDS_PACKAGE)
def test_meteor_takes_the_best_reference_and_captions_without_words():
    empty = score(samples(("", "a cat"), ("a cat", "a cat", "two dogs run")))
    assert empty.score is not None and empty.segments[0] == 0 < empty.score < empty.segments[1]
    assert empty.segments[1] == score(samples(("a cat", "a cat"))).score
