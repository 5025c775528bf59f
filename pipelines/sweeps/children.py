"""The MLflow runs of a sweep's trials, below the run of the sweep itself.

The driver keeps them for all trials: a trial that the scheduler ends could not close its own. A driver that
is killed right after a trial ended leaves that trial's run open; the next driver closes it.
"""

import json
from collections.abc import Mapping

from pipelines import provenance, storage
from pipelines.sweeps.config import EXPERIMENT
from pipelines.tokenizer_training.prepare import PreparedTokenizer
from pipelines.tracking import Tracker
from pipelines.training.checkpoints import load_history
from pipelines.training.resume import RECORD_FILE, is_complete

CLOSED_FILE = "mlflow_closed.json"
"""Says that all of a trial is in MLflow, so that its curve is not logged twice."""


class Children:
    """Opens the run of a trial, below that of the sweep, when it is first asked for, and closes it once."""

    def __init__(self, tracking: str, parent: str | None, tasks: Mapping[str, PreparedTokenizer]) -> None:
        self.tracking, self.parent, self.tasks = tracking, parent, tasks
        self._open: dict[str, Tracker] = {}

    def of(self, name: str) -> Tracker:
        """Returns the run of a trial; a resumed trial has the one it had."""
        if name not in self._open:
            task = self.tasks[name]
            tracker = Tracker(
                self.tracking, experiment=EXPERIMENT, home=task.config.out, name=name, parent=self.parent
            )
            tracker.params({"trial": name, **provenance.as_json(task.config)})
            tracker.tags({"fingerprint": task.digest})
            self._open[name] = tracker
        return self._open[name]

    def close(self, name: str) -> None:
        """Logs what became of a trial that has ended, and closes its run, unless that was done before."""
        task = self.tasks[name]
        where = storage.join(task.config.out, CLOSED_FILE)
        body = {"tracking_uri": self.tracking, "fingerprint": task.digest}
        if storage.exists(where) and storage.read_json(where) == body:
            return
        tracker, record = self.of(name), None
        if is_complete(task.config.out):
            record = storage.read_json(storage.join(task.config.out, RECORD_FILE))
            rows = load_history(task.config.out, record["history"])
            tracker.history(
                [(int(r["step"]) + 1, {f"train/{k}": v for k, v in r.items() if k != "step"}) for r in rows]
            )
            final = {f"final/{key}": float(value) for key, value in record["final"].items()}
            tracker.metrics(final, step=record["steps"])
        tracker.tags({"status": "ended by the scheduler" if record is None else "finished"})
        tracker.end()
        if tracker.run_id is not None:
            storage.write_bytes(where, json.dumps(body).encode())

    def fail(self, name: str) -> None:
        """Closes the run of a trial as failed; it is opened again when the trial is tried again."""
        self.of(name).end("FAILED")
