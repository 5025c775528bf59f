"""Ray Tune's callback of a sweep: progress lines, MLflow, the mark of trials that were ended early.

Import this module after Ray was connected (``pipelines.cluster``): Ray reads its variables at import.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

from ray.tune import Callback

from pipelines import storage
from pipelines.sweeps.config import STOPPED_FILE
from pipelines.sweeps.run import Children
from pipelines.tokenizer_training.prepare import PreparedTokenizer
from pipelines.training.resume import is_complete

log = logging.getLogger(__name__)


class TrialCallback(Callback):
    """Follows every trial of those that are left to run, by name."""

    def __init__(self, children: Children, tasks: Mapping[str, PreparedTokenizer]) -> None:
        self.children, self.tasks = children, tasks
        self.ended = 0

    def __getstate__(self) -> dict[str, Any]:  # Tune saves its callbacks; connections are not for that
        return {"ended": self.ended}

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Opens the child run."""
        self.children.of(trial.config["name"])

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        """Logs a validation."""
        name, step = trial.config["name"], int(result["step"])
        row = {key: value for key, value in result.items() if isinstance(value, float) and key != "step"}
        self.children.of(name).metrics({f"validation/{key}": v for key, v in row.items()}, step=step)
        log.info("%s step %d/%d IoU %.4f", name, step, self.tasks[name].config.steps, result["iou"])

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Closes the child run; a trial without a record was ended by the scheduler."""
        name = trial.config["name"]
        task, last = self.tasks[name], trial.last_result
        out = task.config.out
        how = "finished"
        if not is_complete(out):
            row = {key: value for key, value in last.items() if isinstance(value, float)}
            body = {"fingerprint": task.digest, "final": row}
            storage.write_bytes(storage.join(out, STOPPED_FILE), json.dumps(body).encode())
            how = "ended by the scheduler"
        self.children.close(name)
        self.ended += 1
        log.info("trial %d/%d: %s %s, IoU %.4f", self.ended, len(self.tasks), name, how, last["iou"])

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Closes the child run as failed."""
        name = trial.config["name"]
        self.ended += 1
        log.error("trial %d/%d: %s failed", self.ended, len(self.tasks), name)
        self.children.fail(name)
