"""What a GPU makes of this project, in less than nine minutes: right words, speed, steps of every training.

    python -m tests.benchmarks.gpu_check                     # needs a GPU
    python -m tests.benchmarks.gpu_check --tiny              # the same with tiny sizes, on a CPU too

Needs samtok with torch, transformers and sam2, but none of what runs on a cluster: no Ray, MLflow, DeepSpeed
or PyArrow. Weights are random and made in code. A part that fails is reported with its error, the others run
all the same, and the exit code is 1 then. Writes OUT/gpu_check.json after every part, and OUT/gpu_check.md.
"""

import argparse
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import transformers

from tests.benchmarks.gpu import agreement, gpu_tests, grpo, matmul, sft, throughput, tokenizer_training
from tests.benchmarks.gpu.place import FULL, TINY, Found, Place
from tests.benchmarks.measuring import machine

PARTS: dict[str, tuple[float, Callable[[Place], Found]]] = {
    "matmul": (15, matmul.measure),
    "parity": (80, agreement.parity),
    "agreement": (40, agreement.bfloat16),
    "images": (30, throughput.images),
    "masks": (80, throughput.masks),
    "tokenizer training": (45, tokenizer_training.step),
    "sft": (90, sft.step),
    "generation": (50, grpo.generation),
    "grpo": (60, grpo.step),
    "gpu tests": (50, gpu_tests.run),
}
"""Each with the seconds that it may take; at half of them it stops repeating, past them it has failed."""

PATIENCE = 4
"""How many times as long a part may take on a CPU, which may have other work."""


def main(argv: list[str] | None = None) -> int:
    """Runs all parts; returns 1 if one failed."""
    options = _options(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.tiny:
        print("torch finds no CUDA device, and the full sizes need one; give --tiny.", file=sys.stderr)
        return 2
    if device == "cuda":  # the CPU does its part of parity with all cores
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    place = Place(TINY if options.tiny else FULL, device)
    body: dict[str, Any] = {"tiny": options.tiny, "device": device, "machine": machine(device), "parts": {}}
    body["machine"]["commit"] = options.commit or body["machine"]["commit"]
    options.out.mkdir(parents=True, exist_ok=True)
    for name, (limit_s, measure) in PARTS.items():
        body["parts"][name] = found = _run(measure, place, limit_s)
        print(f"{name}: {found['seconds']:.1f} s" + _wrong(found), file=sys.stderr, flush=True)
        (options.out / "gpu_check.json").write_text(json.dumps(body, indent=2) + "\n")
    text = as_markdown(body)
    (options.out / "gpu_check.md").write_text(text)
    print(text)
    return int(any(map(_wrong, body["parts"].values())))


def _run(measure: Callable[[Place], Found], place: Place, limit_s: float) -> dict[str, Any]:
    """Runs a part; its error is part of what was found."""
    started = time.monotonic()
    place.until = started + limit_s / 2
    error, found = None, Found([], "")
    try:
        with _ended_after(limit_s if place.device == "cuda" else PATIENCE * limit_s):
            found = measure(place)
    except Exception as problem:  # noqa: BLE001 whatever it is, the other parts run
        traceback.print_exc()
        error = f"{type(problem).__name__}: {problem}"[:2000]
    return {"seconds": time.monotonic() - started, "error": error, **asdict(found)}


@contextmanager
def _ended_after(limit_s: float) -> Iterator[None]:
    """Raises TimeoutError in what takes longer, as soon as it is back in Python."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"took longer than {limit_s:g} s.")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _wrong(part: dict[str, Any]) -> str:
    """Returns what is wrong with a part; nothing if it is as it should be."""
    found = [*([part["error"]] if part["error"] else []), *part["problems"]]
    return f" FAILED: {' '.join(found)}" if found else ""


def as_markdown(body: dict[str, Any]) -> str:
    """Returns all that was measured, as text with tables."""
    lines = ["# GPU check", ""]
    if body["tiny"]:
        lines += ["Sizes are tiny: this shows that the check runs, and says nothing about speed.", ""]
    lines += [*_table([{"machine": name, "": value} for name, value in body["machine"].items()]), ""]
    for name, part in body["parts"].items():
        lines += [f"## {name}, {part['seconds']:.1f} s{_wrong(part)}", ""]
        lines += [part["note"], "", *_table(part["rows"]), ""] if part["rows"] else []
    return "\n".join(lines)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    head = list(rows[0])
    cells = [head, ["---"] * len(head), *([_cell(row[name]) for name in head] for row in rows)]
    return [f"| {' | '.join(row)} |" for row in cells]


def _cell(value: Any) -> str:
    if value is None:
        return "not measured"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, which a CPU does in half a minute")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/gpu_check"))
    parser.add_argument("--commit", help="what is measured, where the folder is no clone of git")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
