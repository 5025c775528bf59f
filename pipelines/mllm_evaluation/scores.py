"""From the table of answers to the numbers of an evaluation, and tables of them for terminal and report.

Everything follows from the committed shards alone, in their order, so a run that was killed and repeated
gives the same bytes. Beside each number stands the baseline that answers "No target." to everything: gIoU
and N-acc alone can look good where nothing was found.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.chats.lost import NOTHING_LOST, LostQuestions
from pipelines.mllm_evaluation.answers import PLAIN, Row, Scoring, is_answered
from pipelines.mllm_evaluation.benchmarks import BENCHMARKS, headlines
from pipelines.mllm_evaluation.config import BASELINE, THIS_RUN
from pipelines.mllm_evaluation.prepare import Beside
from samtok.metrics.referring import Mode
from samtok.metrics.text_masks import Reading, describe


def metrics_of(
    rows: Sequence[Row], *, benchmark: str, readings: Mapping[Mode, Reading], scoring: Scoring = PLAIN
) -> dict[str, Any]:
    """Returns all numbers of an evaluation as ``metrics.json`` has them, shares in [0, 1].

    Args:
        rows: From ``answers.read_answers``.
        benchmark: One of ``BENCHMARKS``.
        readings: The modes that were scored.
        scoring: What else decides the numbers.

    Returns:
        ``counts``; then per mode ``model`` and ``no_target``, the baseline: each with the sections of the
        benchmark and the same ``by_tag``; and how the mode reads texts. Lost questions are in no tag.
    """
    described = describe({str(mode): reading for mode, reading in readings.items()})
    modes = {}
    for mode in readings:
        silent = [_without_prediction(row, mode) for row in rows]
        modes[mode] = {
            "read": {**described[mode], "min_pixels": scoring.min_pixels},
            "model": _with_tags(rows, benchmark, mode, dataclasses.replace(scoring, is_whole=True)),
            "no_target": _with_tags(silent, benchmark, mode, scoring),
        }
    return {"benchmark": benchmark, "counts": counts_of(rows, scoring.lost), "modes": modes}


def counts_of(rows: Sequence[Row], lost: LostQuestions = NOTHING_LOST) -> dict[str, int]:
    """Counts questions, what could not be asked, broken words, and answers that were cut."""
    asked = [row for row in rows if row["problem"] is None]
    return {
        "expected": len(rows),
        "scored": len(asked),
        "skipped": len(rows) - len(asked),
        "lost": len(lost),
        "images_lost": lost.images,
        "no_target": sum(row["target_px"] == 0 for row in rows),
        "malformed_words": sum(row["num_malformed"] for row in asked),
        "answers_with_malformed": sum(row["num_malformed"] > 0 for row in asked),
        "answers_cut": sum(bool(row["cut"]) for row in asked),
        "thoughts_unfinished": sum(row["unfinished"] for row in asked),
        "thought_tokens": sum(row["thought_tokens"] or 0 for row in asked),
        "tokens": sum(row["num_tokens"] for row in asked),
    }


def _with_tags(rows: Sequence[Row], benchmark: str, mode: Mode, scoring: Scoring) -> dict[str, Any]:
    tags = sorted({tag for row in rows for tag in row["tags"]})
    kept = dataclasses.replace(scoring, lost=NOTHING_LOST, is_whole=False)
    of_tags = {
        tag: _section([row for row in rows if tag in row["tags"]], benchmark, mode, kept) for tag in tags
    }
    return {**_section(rows, benchmark, mode, scoring), "by_tag": of_tags}


def _section(rows: Sequence[Row], benchmark: str, mode: Mode, scoring: Scoring) -> dict[str, Any]:
    """Returns the numbers of some rows; lost questions count in "strict" only."""
    if mode == "official":
        scoring = dataclasses.replace(scoring, lost=NOTHING_LOST)
    expected, scored = len(rows) + len(scoring.lost), sum(is_answered(row, mode) for row in rows)
    counts = {"expected": expected, "scored": scored, "skipped": expected - scored}
    return {"counts": counts, **BENCHMARKS[benchmark].numbers(rows, mode, scoring)}


def _without_prediction(row: Row, mode: Mode) -> dict[str, Any]:
    """Returns a row as if it had been answered with "No target."."""
    nothing = {"codes": [], "intersection_px": 0, "predicted_px": 0, "box_xyxy": None, "masks": []}
    return {**row, mode: nothing, "problem": None, "unfinished": False, "generated": "No target."}


def percent(share: float | str | None) -> str:
    """Returns a share as papers print it: times 100, two decimals; none is ``-``, and a text stays."""
    if isinstance(share, str):
        return share
    return "-" if share is None else f"{100 * share:.2f}"


def table_of(metrics: Mapping[str, Any], beside: Beside, mode: str) -> list[list[str]]:
    """Returns the table of one mode as texts: a head, then a line per number, times 100.

    Its columns are this run, the baseline and other runs.
    """
    own = metrics["modes"][mode]
    others = {name: found["modes"][mode]["model"] for name, found in beside.items() if mode in found["modes"]}
    columns = {THIS_RUN: own["model"], BASELINE: own["no_target"], **others}
    numbers = [headlines(metrics["benchmark"], section) for section in columns.values()]
    lines = [[name, *(percent(found.get(name)) for found in numbers)] for name in numbers[0]]
    return [[f"{mode}, x 100", *columns], *lines]


def tag_table(metrics: Mapping[str, Any], mode: str) -> list[list[str]]:
    """Returns this run's numbers by tag as texts: a head, then a line per tag."""
    found = metrics["modes"][mode]["model"]
    sections = {**found["by_tag"], "all": found}
    names = list(headlines(metrics["benchmark"], found))
    lines: list[list[str]] = []
    for tag, section in sections.items():
        numbers = headlines(metrics["benchmark"], section)
        lines.append(
            [tag, str(section["counts"]["expected"]), *(percent(numbers.get(name)) for name in names)]
        )
    return [["tag", "questions", *names], *lines]
