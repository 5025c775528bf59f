"""Dry runs of every preset of a job in one interpreter, and what they left behind.

    python -m tests.dry_runs JOB ROOT      in the working directory ROOT; prints JSON, by preset

HOME, TMPDIR and SAMTOK_HOME should be below ROOT. Flags that a preset leaves to the user get places that are
not there.
"""

import contextlib
import dataclasses
import io
import json
import logging
import os
import runpy
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tyro

ROOT = Path(__file__).parent.parent
HEAVY = ("ray", "torch", "transformers", "mlflow")
_CORPORA = ("corpora", "validation.corpora", "train.corpora", "train.validation.corpora")
GIVEN = dict.fromkeys(_CORPORA, "reader=sa1b,source=none/sa1b")
"""Values of flags that are more than a place."""
EITHER = {("cold_start", "authors"): ("--teacher.model", "none/model")}
"""Flags of which a preset leaves one or another to the user."""


def main() -> int:
    """Runs them."""
    job, root = sys.argv[1], Path(sys.argv[2])
    names = runpy.run_path(str(ROOT / "jobs" / f"{job}.py"))
    from tests.printed import parsed_by

    _, presets = parsed_by(job)
    found = {}
    for preset, config in presets.items():
        before, started = tree(root), time.monotonic()
        out, err = io.StringIO(), io.StringIO()
        flags = ["--preset", preset, *missing_flags(config), *EITHER.get((job, preset), ()), "--dry-run"]
        logging.getLogger("pipelines").handlers.clear()  # they hold the streams of the preset before
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = names["main"](flags)
            except SystemExit as end:
                code = end.code
        found[preset] = {
            "flags": flags,
            "code": code,
            "out": out.getvalue(),
            "err": err.getvalue(),
            "seconds": time.monotonic() - started,
            "heavy": [name for name in HEAVY if name in sys.modules],
            "changed": sorted(set(tree(root).items()) ^ set(before.items())),
        }
    sys.stdout.write(json.dumps(found))
    return 0


def tree(root: Path) -> dict[str, tuple[int, int]]:
    """Returns size and time of every file and folder below a folder."""
    found = {}
    for folder, names, files in os.walk(root):
        for name in (*names, *files):
            stat = (Path(folder) / name).lstat()
            found[f"{folder}/{name}"] = stat.st_size, stat.st_mtime_ns
    return found


def missing_flags(config: Any, prefix: str = "") -> Iterator[str]:
    """Yields flags for what a preset leaves to the user."""
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name.replace("_", "-")
        if value is tyro.MISSING:
            yield from (f"--{name}", GIVEN.get(name.removeprefix("train."), f"none/at/{field.name}"))
        elif dataclasses.is_dataclass(value):
            yield from missing_flags(value, f"{name}.")


if __name__ == "__main__":
    raise SystemExit(main())
