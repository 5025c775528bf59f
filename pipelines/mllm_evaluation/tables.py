"""The numbers of an evaluation as tables of texts, for the terminal and the report."""

from collections.abc import Mapping
from typing import Any

from pipelines.mllm_evaluation.config import BASELINE, THIS_RUN
from pipelines.mllm_evaluation.prepare import Beside
from pipelines.mllm_evaluation.scores import headlines, percent


def table_of(metrics: Mapping[str, Any], beside: Beside, mode: str) -> list[list[str]]:
    """Returns the table of one mode as texts: a head, then a line per number, times 100.

    Its columns are this run, the baseline and other runs.
    """
    own = metrics["modes"][mode]
    others = {name: found["modes"][mode]["model"] for name, found in beside.items() if mode in found["modes"]}
    columns = {THIS_RUN: own["model"], BASELINE: own["no_target"], **others}
    numbers = [headlines(metrics["benchmark"], section) for section in columns.values()]
    lines = [[name, *(percent(found[name]) for found in numbers)] for name in numbers[0]]
    return [[f"{mode}, x 100", *columns], *lines]


def tag_table(metrics: Mapping[str, Any], mode: str) -> list[list[str]]:
    """Returns this run's numbers by tag as texts: a head, then a line per tag."""
    found = metrics["modes"][mode]["model"]
    sections = {**found["by_tag"], "all": found}
    names = list(headlines(metrics["benchmark"], found))
    lines: list[list[str]] = []
    for tag, section in sections.items():
        numbers = headlines(metrics["benchmark"], section)
        lines.append([tag, str(section["counts"]["expected"]), *(percent(numbers[name]) for name in names)])
    return [["tag", "questions", *names], *lines]
