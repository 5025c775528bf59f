"""Runs the jobs over a folder of faulty inputs and says how each ends.

    python -m tests.benchmarks.fault_samples FOLDER

Every folder in it that has an ``ann.json`` and a folder ``img`` is tokenized as a COCO corpus; every
``*.jsonl`` is imported as chats, which are then learnt from, by examples and by rewards. Of all runs must be
true: exit code 0 or 3 (2 for a file that is no such input at all), no traceback, and counts that add up.
Prints a line of Markdown per run, with what the terminal says last, and fails if one breaks the rule.
"""

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.jobs import run_job

SMALL = ("--tracking", "off", "--max-reject-rate", "0.5")


def main() -> int:
    """Runs all of them, one after another."""
    parser = argparse.ArgumentParser(description="Runs the jobs over a folder of faulty inputs.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    sys.stdout.write("| input | job | exit code | what the terminal says |\n| --- | --- | ---: | --- |\n")
    good = True
    with tempfile.TemporaryDirectory(prefix="samtok-faults-") as work:
        for name, job, arguments in _runs(folder, Path(work)):
            log = Path(work) / f"{name.replace('/', '-')}-{job}.log"
            code, output = run_job(job, *arguments, *SMALL, log=log)
            fault = _fault(code, output)
            good &= fault is None
            said = fault or _said(output)
            sys.stdout.write(f"| {name} | {job} | {code} | {said.replace('|', '/')} |\n")
            sys.stdout.flush()
            if fault:
                sys.stderr.write(output[-4000:] + "\n")
    return int(not good)


def _runs(folder: Path, work: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Yields (input, job, flags); a later job of an input reads what an earlier one wrote."""
    for annotations in sorted(folder.glob("*/ann.json")):
        case = annotations.parent
        corpus = ["--corpus.reader", "coco", "--corpus.source", str(annotations)]
        corpus += ["--corpus.images", str(case / "img"), "--tokenizer", "tiny", "--workers", "0"]
        yield case.name, "tokenize_corpus", [*corpus, "--out", str(work / case.name)]
    for chats in sorted(folder.glob("*/*.jsonl")):
        name, out = f"{chats.parent.name}/{chats.name}", work / f"{chats.parent.name}-{chats.stem}"
        imported = ["--chats.source", str(chats), "--chats.images", str(chats.parent / "img")]
        imported += ["--chats.task", "gres", "--chats.num-codes", "8"]  # those of the models that ship
        yield name, "compose_dialogues", [*imported, "--out", str(out)]
        if not (out / "_MANIFEST.json").exists():
            continue
        used = ["--preset", "smoke", "--chats", str(out)]
        yield name, "train_mllm", [*used, "--out", f"{out}-trained"]
        yield name, "grpo_gres", [*used, "--out", f"{out}-learnt", "--prompts.tasks", "gres"]


def _fault(code: int, output: str) -> str | None:
    if code not in (0, 2, 3):
        return f"exit code {code}"
    if "Traceback" in output:
        return "a traceback"
    for line in output.splitlines():
        found = re.findall(r"\b(in|out|rejected|filtered) (\d+)", line)
        counts = {word: int(number) for word, number in found}
        if {"in", "out"} <= counts.keys() and counts["in"] != sum(counts.values()) - counts["in"]:
            return f"counts that do not add up: {line.strip()}"
    return None


def _said(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"ERROR|WARNING|rejected|filtered", line)]
    return (telling or lines or ["nothing"])[-1][:160]


if __name__ == "__main__":
    raise SystemExit(main())
