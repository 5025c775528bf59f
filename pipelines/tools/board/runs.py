"""Finished evaluations, and which of them answered the same questions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipelines import shards, storage
from samtok.errors import ConfigError, DataError

METRICS, LINEAGE = "metrics.json", "lineage.json"

ASKED = ("benchmark", "chat", "tasks", "turns", "limit")
"""Settings that decide which questions are asked."""


@dataclass(frozen=True)
class Run:
    """A finished evaluation: its name in tables, its folder, and what ``metrics.json`` there says."""

    name: str
    uri: str
    metrics: Mapping[str, Any]

    @property
    def benchmark(self) -> str:
        """Name of the benchmark."""
        return self.metrics["benchmark"]

    @property
    def measured_with(self) -> Mapping[str, Any]:
        """All that decided the numbers besides code."""
        return self.metrics["measured_with"]

    @property
    def questions(self) -> str:
        """Digest of the questions."""
        return self.measured_with["questions"]

    @property
    def counts(self) -> Mapping[str, int]:
        """Questions that were expected, scored and skipped, and what else was counted."""
        return self.metrics.get("counts", {})

    @property
    def lost(self) -> int | None:
        """How many questions were lost before they could be asked; None where that is not counted."""
        lost = self.metrics.get("lost")
        if isinstance(lost, Mapping):  # by reason
            return sum(count for count in lost.values() if isinstance(count, int))
        return lost if isinstance(lost, int) else None

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The list of its data files; raises DataError if there is none."""
        return shards.load_manifest(self.uri)

    @cached_property
    def lineage(self) -> dict[str, Any]:
        """Where it came from, as ``lineage.json`` says; empty if that is not there."""
        where = storage.join(self.uri, LINEAGE)
        return storage.read_json(where) if storage.exists(where) else {}

    @property
    def chats(self) -> Mapping[str, Any]:
        """What the lineage says of the chats that were asked."""
        return self.lineage.get("chat") or self.lineage.get("chats") or {}

    def scored(self, mode: str) -> Mapping[str, Any]:
        """Returns the numbers of a mode; raises ConfigError if it was not scored in it."""
        modes = self.metrics["modes"]
        if mode not in modes:
            raise ConfigError(
                f"--mode {mode}: {self.name} ({self.uri}) was not scored so; it has {', '.join(modes)}."
            )
        return modes[mode]


@dataclass(frozen=True)
class Group:
    """Runs that answered the same questions of one benchmark, so their numbers stand in one table."""

    runs: tuple[Run, ...]

    @property
    def benchmark(self) -> str:
        """Name of the benchmark."""
        return self.runs[0].benchmark

    def baseline(self, wanted: str | None) -> Run | None:
        """Returns the run that others are compared with: the wanted one by name or folder, or the first."""
        if wanted is None:
            return self.runs[0]
        return next((run for run in self.runs if _is(run, wanted)), None)


def read_runs(texts: Sequence[str]) -> list[Run]:
    """Reads finished evaluations.

    Args:
        texts: Each ``NAME=RUN`` or ``RUN``, a folder, which is named after its last part then.

    Raises:
        ConfigError: For a folder that is no finished evaluation.
    """
    return [_read(*_named(text)) for text in texts]


def groups_of(runs: Sequence[Run]) -> list[Group]:
    """Returns runs by their benchmark and questions, in the order in which these come up.

    Raises:
        ConfigError: If two runs of a group have one name, or no run of one name can be held against one of
            another since their benchmarks share nothing.
    """
    found: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        found.setdefault((run.benchmark, run.questions), []).append(run)
    for group in found.values():
        names = [run.name for run in group]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            folders = " and ".join(run.uri for run in group if run.name == twice)
            raise ConfigError(f"{folders} would both be called {twice}; give each a name, as NAME=RUN.")
    _require_something_in_common(runs)
    order = list(dict.fromkeys(run.benchmark for run in runs))
    return [
        Group(tuple(group)) for group in sorted(found.values(), key=lambda g: order.index(g[0].benchmark))
    ]


def require_baseline(runs: Sequence[Run], wanted: str | None) -> None:
    """Raises ConfigError if a run that others shall be compared with is none of the runs."""
    if wanted is not None and not any(_is(run, wanted) for run in runs):
        names = ", ".join(dict.fromkeys(run.name for run in runs))
        raise ConfigError(f"--baseline {wanted} is none of the runs: {names}.")


def differing_questions(group: Group, other: Group) -> str:
    """Returns in words which settings made two groups of a benchmark ask other questions."""
    one, two = (found.runs[0].measured_with for found in (group, other))
    names = [name for name in ASKED if one.get(name) != two.get(name)]
    return ", ".join("chats" if name == "chat" else name for name in names) or "questions"


def _require_something_in_common(runs: Sequence[Run]) -> None:
    names = {run.name for run in runs}
    by_benchmark: dict[str, set[str]] = {}
    for run in runs:
        by_benchmark.setdefault(run.benchmark, set()).add(run.name)
    if len(names) > 1 and all(len(found) == 1 for found in by_benchmark.values()):
        listed = ", ".join(f"{run.name} is {run.benchmark}" for run in runs)
        raise ConfigError(
            f"These runs have no benchmark in common, so nothing can be compared: {listed}. Evaluate the "
            "same benchmark with each; runs of one model over several benchmarks get one name, as NAME=RUN."
        )


def _is(run: Run, wanted: str) -> bool:
    return wanted == run.name or wanted.rstrip("/") == run.uri


def _named(text: str) -> tuple[str, str]:
    name, equals, uri = text.partition("=")
    if not equals or "/" in name:
        name, uri = "", text
    uri = uri.rstrip("/")
    if not uri:
        raise ConfigError(f"{text!r} names no folder; give RUN or NAME=RUN.")
    return name or uri.rpartition("/")[2], uri


def _read(name: str, uri: str) -> Run:
    where = storage.join(uri, METRICS)
    if not storage.exists(where):
        raise ConfigError(
            f"{uri} is no finished evaluation: it has no {METRICS}. Finish jobs/evaluate_mllm.py with "
            f"--out {uri}; the command that began it goes on with it."
        )
    try:
        metrics = storage.read_json(where)
    except DataError as error:
        raise ConfigError(f"{uri} is no finished evaluation: {error}") from error
    if missing := _missing(metrics):
        raise ConfigError(
            f"{uri} is no finished evaluation of an MLLM: its {METRICS} has no {missing}. Give the --out of "
            "jobs/evaluate_mllm.py."
        )
    return Run(name, uri, metrics)


def _missing(metrics: Any) -> str | None:
    """Returns the first entry that such a file must have and this one lacks."""
    for path in (("benchmark",), ("modes",), ("measured_with", "questions")):
        found = metrics
        for name in path:
            if not isinstance(found, Mapping) or name not in found:
                return ".".join(path)
            found = found[name]
    return None
