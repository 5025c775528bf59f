"""METEOR 1.5 (Denkowski and Lavie 2014): the Java program that pycocoevalcap 1.2 brings, run on files.

pycocoevalcap talks to the program line by line and waits without a limit, also for one that has died, and
leaves it behind. Here the program gets two files and a time, writes all scores at once, and is ended with
whatever it started. The numbers are the same to the last digit.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from samtok.errors import SamtokError

LIMIT_S = 1800.0
"""Seconds for all captions. 500 took 14 CPU seconds, of which 12 load the tables of paraphrases."""

_JAR = Path("meteor/meteor-1.5.jar")
_HEAP = "-Xmx2G"  # as pycocoevalcap gives it

_Words = Sequence[str]


def missing() -> str | None:
    """Returns what METEOR needs and this machine does not have; None if it can run."""
    if shutil.which("java") is None:
        return "needs Java"
    return None if _jar() else "needs pycocoevalcap: pip install samtok[captions]"


def scores(
    predicted: Sequence[_Words], references: Sequence[Sequence[_Words]], *, limit_s: float = LIMIT_S
) -> tuple[float, list[float]]:
    """Returns METEOR of all captions together, and of each alone, in [0, 1].

    Args:
        predicted: Words of each caption; none is an empty caption, which scores 0.
        references: Words of its true captions, at least one for each.
        limit_s: Seconds after which the program is stopped.

    Raises:
        SamtokError: What it needs is missing, or it fails, does not end in time, or writes something else.
    """
    java, jar = shutil.which("java"), _jar()
    if java is None or jar is None:
        raise SamtokError(f"METEOR {missing()}.")
    most = max(map(len, references))  # the program takes as many for each caption; the best one counts
    lines = [line for of_one in references for line in (*of_one, *[of_one[0]] * (most - len(of_one)))]
    with TemporaryDirectory(prefix="samtok-meteor-") as folder:
        files = [_write(Path(folder, "predicted"), predicted), _write(Path(folder, "references"), lines)]
        options = ["-Dfile.encoding=UTF-8", _HEAP, "-jar", jar.name]
        command = [java, *options, *files, "-l", "en", "-norm", "-r", str(most)]
        written = _run(command, jar.parent, Path(folder), limit_s)
    return _read(written, len(predicted))


def _jar() -> Path | None:
    spec = importlib.util.find_spec("pycocoevalcap")
    places = (spec.submodule_search_locations if spec else None) or ()
    return next((path for path in (Path(place) / _JAR for place in places) if path.is_file()), None)


def _write(path: Path, lines: Sequence[_Words]) -> str:
    text = "".join(" ".join(words) + "\n" for words in lines)
    path.write_bytes(text.encode(errors="replace"))  # half a character, as JSON's escapes can write it
    return str(path)


def _run(command: Sequence[str], cwd: Path, folder: Path, limit_s: float) -> str:
    """Runs a program in a group of its own, which is ended as a whole; returns what it writes."""
    out, err = folder / "out", folder / "err"
    with out.open("wb") as to_out, err.open("wb") as to_err:  # files: a full pipe would hold it up
        try:
            streams = {"stdin": subprocess.DEVNULL, "stdout": to_out, "stderr": to_err}
            process = subprocess.Popen(command, cwd=cwd, start_new_session=True, **streams)
        except OSError as error:
            raise SamtokError(f"METEOR's Java program cannot be started: {error}.") from error
        try:
            code = process.wait(limit_s)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise SamtokError(
                    f"METEOR did not end within {limit_s:g} s and was stopped; give it more time."
                ) from error
            raise
    if code:
        said = err.read_text(errors="replace").strip() or "nothing was said"
        raise SamtokError(
            f"METEOR's Java program ended with code {code}: {said[-300:]}. It needs Java 8 or later and 2 "
            "GiB of memory."
        )
    return out.read_text(errors="replace")


def _read(written: str, num_captions: int) -> tuple[float, list[float]]:
    values = [line.split(":") for line in written.splitlines() if " score:" in line]
    try:
        segments = [float(value) for name, value in values if name.startswith("Segment ")]
        (final,) = (float(value) for name, value in values if name == "Final score")
    except ValueError as error:
        raise SamtokError(f"METEOR wrote no scores but {written[-300:]!r}.") from error
    if len(segments) != num_captions:
        raise SamtokError(f"METEOR wrote {len(segments)} scores for {num_captions} captions.")
    return final, segments
