"""The driver's ear for a sweep: progress lines, MLflow child runs, the mark of trials that were ended early.

Trials must not talk to MLflow themselves: one that the scheduler ends would stay open there for ever.
Import this module after Ray was connected (``pipelines.cluster``): Ray reads its variables at import.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

from ray.tune import Callback

from pipelines import run as runs
from pipelines import storage
from pipelines.sweeps.config import EXPERIMENT, STOPPED_FILE
from pipelines.tokenizer_training.checkpoints import load_history
from pipelines.tokenizer_training.worker import RECORD_FILE, Task
from pipelines.tracking import Tracker

log = logging.getLogger(__name__)


class Listener(Callback):
    """Hears of every trial.

    Args:
        tracking: MLflow tracking URI, or off.
        parent: Run id of the sweep.
        tasks: By trial name.
    """

    def __init__(self, tracking: str, parent: str | None, tasks: Mapping[str, Task]) -> None:
        self.tracking, self.parent, self.tasks = tracking, parent, tasks
        self.trackers: dict[str, Tracker] = {}
        self.ended = 0

    def __getstate__(self) -> dict[str, Any]:  # Tune saves its callbacks; connections are not for that
        return {**self.__dict__, "trackers": {}}

    def tracker_of(self, name: str) -> Tracker:
        """Returns the child run of a trial; a resumed trial has the one it had."""
        if name not in self.trackers:
            task = self.tasks[name]
            tracker = Tracker(
                self.tracking, experiment=EXPERIMENT, home=task.config.out, name=name, parent=self.parent
            )
            tracker.params({"quantizer": name, **json.loads(runs.config_json(task.config))})
            tracker.tags({"fingerprint": task.fingerprint})
            self.trackers[name] = tracker
        return self.trackers[name]

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Opens the child run."""
        self.tracker_of(trial.config["name"])

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        """Logs a look at held-out masks."""
        name, step = trial.config["name"], int(result["step"])
        row = {key: value for key, value in result.items() if isinstance(value, float) and key != "step"}
        self.tracker_of(name).metrics({f"validation/{key}": v for key, v in row.items()}, step=step)
        log.info("%s step %d/%d IoU %.4f", name, step, self.tasks[name].config.steps, result["iou"])

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Closes the child run; a trial without a record was ended by the scheduler."""
        name = trial.config["name"]
        out, last = self.tasks[name].config.out, trial.last_result
        if storage.exists(storage.join(out, RECORD_FILE)):
            self._log_curve(name, out)
            how = "finished"
        else:
            row = {key: value for key, value in last.items() if isinstance(value, float)}
            storage.write_bytes(storage.join(out, STOPPED_FILE), json.dumps({"final": row}).encode())
            how = "ended by the scheduler"
        self.tracker_of(name).tags({"status": how})
        self.tracker_of(name).end()
        self.ended += 1
        log.info("trial %d/%d: %s %s, IoU %.4f", self.ended, len(self.tasks), name, how, last.get("iou", 0.0))

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Closes the child run as failed."""
        name = trial.config["name"]
        self.ended += 1
        log.error("trial %d/%d: %s failed", self.ended, len(self.tasks), name)
        self.tracker_of(name).end("FAILED")

    def _log_curve(self, name: str, out: str) -> None:
        record = storage.read_json(storage.join(out, RECORD_FILE))
        rows = load_history(out, record["history"])
        shown = [(int(r["step"]) + 1, {f"train/{k}": v for k, v in r.items() if k != "step"}) for r in rows]
        self.tracker_of(name).history(shown)
        final = {k: float(v) for k, v in record["final"].items()}
        self.tracker_of(name).metrics({f"final/{k}": v for k, v in final.items()}, step=record["steps"])
