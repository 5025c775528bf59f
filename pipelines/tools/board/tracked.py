"""A board in MLflow: one run with the page, and a run below it for each evaluation with its data as input."""

from collections.abc import Sequence

from pipelines import storage
from pipelines.tools.board.numbers import Measured
from pipelines.tools.board.runs import Run
from pipelines.tracking import Tracker

EXPERIMENT, FOLDER = "compare", "tracked"


def track(uri: str, out: str, measured: Sequence[Measured], page: str) -> str:
    """Sends a board to MLflow; returns where it is. The ids of the runs are kept below ``out``, so the same
    board continues its runs."""
    board = Tracker(uri, experiment=EXPERIMENT, home=out)
    options = measured[0].options
    runs = [run.uri for one in measured for run in one.group.runs]
    board.params({"runs": ", ".join(runs), **vars(options)})
    board.text(page, "index.html")
    for one in measured:
        for run in one.group.runs:
            _track_run(uri, out, one, run, board.run_id)
    board.end()
    return board.link


def flat(measured: Measured, run: Run) -> dict[str, float]:
    """Returns the numbers of a run by names of metrics: ``strict/gres/giou``, ``strict/gres/giou/low`` and
    ``/high`` of its interval, ``/above`` and ``/difference`` against the baseline."""
    found: dict[str, float | None] = {f"counts/{name}": count for name, count in run.counts.items()}
    for key, number in measured.whole.numbers[run.name].items():
        name = f"{measured.options.mode}/{key}"
        found |= {name: number.value, f"{name}/low": number.low, f"{name}/high": number.high}
    for key, change in measured.whole.differences.get(run.name, {}).items():
        name = f"{measured.options.mode}/{key}"
        found |= {f"{name}/difference": change.value, f"{name}/above": change.above}
    return {name: float(value) for name, value in found.items() if value is not None}


def _track_run(uri: str, out: str, measured: Measured, run: Run, parent: str | None) -> None:
    benchmark = run.benchmark
    home = storage.join(out, FOLDER, f"{run.name}-{benchmark}-{run.questions[:8]}")
    child = Tracker(uri, experiment=EXPERIMENT, home=home, name=f"{run.name} {benchmark}", parent=parent)
    child.params({**run.measured_with, "run": run.uri})
    child.tags({"benchmark": benchmark, "questions": run.questions})
    child.metrics(flat(measured, run))
    names = ", ".join(f"{dataset} {split}" for dataset, split in sorted(measured.homes)) or benchmark
    child.dataset(names, digest=run.questions, source=run.chats.get("uri") or run.uri)
    child.end()
