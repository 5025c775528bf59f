"""What the driver shows of a run while workers train: one line at a time, and the MLflow run."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from pipelines.tracking import Tracker
from pipelines.training.config import TrainingConfig
from pipelines.training.fit import Event

log = logging.getLogger(__name__)

_NOT_SHOWN = {"step", "seconds", "skipped"}
_RECENT = 0.9
"""Weight of the past in the seconds per step from which the time that is left is guessed."""


class Progress:
    """Shows and logs the workers' events; steps that are repeated after a restart are logged once.

    Args:
        unit: Name of the count in a step's metrics whose rate is shown, such as masks.
        hidden: Metrics that go to the tracker and not into lines.
        validation_line: Makes the line of a ``validation``.
    """

    def __init__(
        self,
        config: TrainingConfig,
        tracker: Tracker,
        *,
        unit: str,
        hidden: Collection[str],
        validation_line: Callable[[Mapping[str, Any]], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.steps, self.log_every_s = config.steps, config.log_every_s
        self.tracker, self.clock = tracker, clock
        self.unit, self.validation_line = unit, validation_line
        self.hidden = {unit, f"{unit}_so_far", *hidden, *_NOT_SHOWN}
        self._logged = 0
        self._sums: dict[str, list[float]] = defaultdict(list)
        self._shown_at = clock()
        self._seconds_per_step: float | None = None
        self._validated = -1

    def handle(self, events: Sequence[Event]) -> None:
        """Is the callback of ``fit_on_ray``."""
        rows: list[tuple[int, dict[str, float]]] = []
        for kind, body in events:
            if kind == "step":
                self._step(body)
            elif kind == "validation":
                log.info("%s", self.validation_line(body))
            elif kind == "resumed":
                log.info("resumed at step %d/%d", body["step"], self.steps)
                self._logged = max(self._logged, body["step"])
            rows += self._metrics(kind, body)
        self.tracker.history(rows)

    def _step(self, body: Mapping[str, Any]) -> None:
        for name, value in body.items():
            self._sums[name].append(value)
        seconds, before = body["seconds"], self._seconds_per_step
        self._seconds_per_step = seconds if before is None else _RECENT * before + (1 - _RECENT) * seconds
        if body["skipped"]:
            log.warning("step %d was skipped: its loss or gradient is NaN or infinite", body["step"])
        done = body["step"] + 1
        if self.clock() - self._shown_at >= self.log_every_s or done == self.steps:
            self._line(done)

    def _line(self, done: int) -> None:
        means = {name: sum(values) / len(values) for name, values in self._sums.items()}
        shown = " ".join(f"{name} {means[name]:.4g}" for name in means if name not in self.hidden)
        rate = sum(self._sums[self.unit]) / max(sum(self._sums["seconds"]), 1e-9)
        left = (self._seconds_per_step or 0.0) * (self.steps - done)
        log.info("step %d/%d %s | %.0f %s/s, %.0f s left", done, self.steps, shown, rate, self.unit, left)
        self._sums.clear()
        self._shown_at = self.clock()

    def _metrics(self, kind: str, body: Mapping[str, Any]) -> list[tuple[int, dict[str, float]]]:
        if kind == "step":
            step = body["step"] + 1
            if step <= self._logged:
                return []
            self._logged = step
            row = {f"train/{name}": value for name, value in body.items() if name not in ("step", "seconds")}
            rate = body[self.unit] / max(body["seconds"], 1e-9)
            return [(step, {**row, f"throughput/{self.unit}_per_s": rate})]
        if kind == "validation" and body["step"] > self._validated:
            self._validated = body["step"]
            row = {
                f"validation/{name}": float(value)
                for name, value in body.items()
                if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
            }
            return [(body["step"], row)]
        return []
