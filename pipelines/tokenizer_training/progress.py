"""What the driver shows of a run while workers train: one line at a time, and the MLflow run."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipelines.tokenizer_training.config import TrainTokenizerConfig
from pipelines.tracking import Tracker

log = logging.getLogger(__name__)

Event = tuple[str, Mapping[str, Any]]

_NOT_SHOWN = {"step", "masks", "images", "masks_so_far", "seconds", "skipped", "codes_restarted"}
_RECENT = 0.9
"""Weight of the past in the seconds per step from which the time that is left is guessed."""


class Progress:
    """Hears the workers' events; what is told again after workers were replaced is not logged again.

    Args:
        config: The run.
        tracker: Where metrics go.
        clock: Seconds; a test has its own.
    """

    def __init__(
        self, config: TrainTokenizerConfig, tracker: Tracker, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config, self.tracker, self.clock = config, tracker, clock
        self._logged = 0
        self._sums: dict[str, list[float]] = defaultdict(list)
        self._shown_at = clock()
        self._seconds_per_step: float | None = None
        self._validated = 0

    def hear(self, events: Sequence[Event]) -> None:
        """Takes in what happened since the last time."""
        rows: list[tuple[int, dict[str, float]]] = []
        for kind, body in events:
            if kind == "step":
                self._step(body)
            elif kind == "validation":
                log.info("%s", _validation_line(body))
            elif kind == "resumed":
                log.info("resumed at step %d/%d", body["step"], self.config.steps)
                self._logged = max(self._logged, body["step"])
            rows += self._metrics(kind, body)
        self.tracker.history(rows)

    def _step(self, body: Mapping[str, Any]) -> None:
        for name, value in body.items():
            self._sums[name].append(value)
        seconds, before = body["seconds"], self._seconds_per_step
        self._seconds_per_step = seconds if before is None else _RECENT * before + (1 - _RECENT) * seconds
        if body["skipped"]:
            log.warning("step %d was skipped: its loss or gradient is no number", body["step"])
        done = body["step"] + 1
        if self.clock() - self._shown_at >= self.config.log_every_s or done == self.config.steps:
            self._line(done)

    def _line(self, done: int) -> None:
        means = {name: sum(values) / len(values) for name, values in self._sums.items()}
        shown = " ".join(f"{name} {means[name]:.4g}" for name in means if name not in _NOT_SHOWN)
        rate = sum(self._sums["masks"]) / max(sum(self._sums["seconds"]), 1e-9)
        left = (self._seconds_per_step or 0.0) * (self.config.steps - done)
        log.info("step %d/%d %s | %.0f masks/s, %.0f s left", done, self.config.steps, shown, rate, left)
        self._sums.clear()
        self._shown_at = self.clock()

    def _metrics(self, kind: str, body: Mapping[str, Any]) -> list[tuple[int, dict[str, float]]]:
        if kind == "step":
            step = body["step"] + 1
            if step <= self._logged:
                return []
            self._logged = step
            row = {f"train/{name}": value for name, value in body.items() if name not in ("step", "seconds")}
            rate = body["masks"] / max(body["seconds"], 1e-9)
            return [(step, {**row, "throughput/masks_per_s": rate})]
        if kind == "validation" and body["step"] > self._validated:
            self._validated = body["step"]
            row = {
                f"validation/{n}": float(v) for n, v in body.items() if n not in ("step", "best", "quantized")
            }
            return [(body["step"], row)]
        return []


def _validation_line(body: Mapping[str, Any]) -> str:
    levels = ", ".join(f"{v:.0f}" for name, v in body.items() if name.startswith("perplexity_"))
    how = (
        f"perplexity {levels}, {body['distinct']} distinct words"
        if body["quantized"]
        else "not quantized yet"
    )
    best = ", the best so far" if body["best"] else ""
    return (
        f"held out after {body['step']} steps: IoU {body['iou']:.4f}, {body['iou_shuffled']:.4f} with codes "
        f"of another image, {100 * body['below_half']:.1f} % under one half, {how}{best}"
    )
