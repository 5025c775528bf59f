"""What the driver shows of a run: one line per step, and the MLflow run."""

import logging
from collections.abc import Mapping
from typing import Any

from pipelines.tracking import Tracker

log = logging.getLogger(__name__)

_SIDE = ("step", "lr", "s_rollout", "s_reward", "s_learn", "s_sync", "s_step", "samples_per_s")


class GrpoProgress:
    """Logs and tracks what happens; a step that is repeated, after a restart or a resume, is tracked once."""

    def __init__(self, steps: int, tracker: Tracker) -> None:
        self.steps, self.tracker = steps, tracker
        self._logged = tracker.last_step("train/reward", default=0) - 1
        self._validated = tracker.last_step("held_out/prompts", default=-1)

    def resumed(self, step: int) -> None:
        """Logs where a run goes on."""
        log.info("resumed at step %d/%d", step, self.steps)

    def step(self, row: Mapping[str, Any]) -> None:
        """Shows one step."""
        log.info("%s", step_line(row, self.steps))
        if row["step"] <= self._logged:
            return
        self._logged = row["step"]
        metrics = {
            (f"time/{name}" if name in _SIDE[2:] else f"train/{name}"): float(value)
            for name, value in row.items()
            if name != "step" and value is not None
        }
        self.tracker.history([(row["step"] + 1, metrics)])

    def validation(self, row: Mapping[str, Any], *, best: bool) -> None:
        """Shows one validation."""
        log.info("%s", validation_line(row, best=best))
        if row["step"] <= self._validated:
            return
        self._validated = row["step"]
        metrics = {f"held_out/{n}": float(v) for n, v in row.items() if n != "step" and v is not None}
        self.tracker.history([(row["step"], metrics)])


def step_line(row: Mapping[str, Any], steps: int) -> str:
    """Returns a step as a line: rewards, what the policy does, how far it moves, and where the time goes."""
    parts = [
        f"step {row['step'] + 1}/{steps} reward {_n(row, 'reward')}",
        f"(targets {_n(row, 'reward_targets')}, none {_n(row, 'reward_none')})",
        f"std {_n(row, 'reward_std')}, equal groups {_n(row, 'zero_std')}",
        f"(signal: targets {_n(row, 'signal_targets')}, none {_n(row, 'signal_none')})",
        f"says none {_n(row, 'said_none')}",
        f"| {_n(row, 'tokens', 1)} tokens, cut {_n(row, 'cut')}, malformed {_n(row, 'malformed')}",
        f"| entropy {_n(row, 'entropy', 3)} kl {_n(row, 'kl', 4)}",
        f"clip {_n(row, 'clip_low', 3)}/{_n(row, 'clip_high', 3)} {_apart(row)}",
        f"age {_n(row, 'staleness', 1)}",
        f"grad {_n(row, 'gradient_norm')}",
        f"| s: roll {_n(row, 's_rollout')} reward {_n(row, 's_reward')} learn {_n(row, 's_learn')} "
        f"sync {_n(row, 's_sync')}, {_n(row, 'samples_per_s', 0)} samples/s",
    ]
    return " ".join(parts)


def _apart(row: Mapping[str, Any]) -> str:
    name = "mismatch" if "mismatch" in row else "off_policy"
    return f"{name} {row[name]:.1g}" if name in row else "mismatch -"


def validation_line(row: Mapping[str, Any], *, best: bool) -> str:
    """Returns a validation as a line, with what always saying "No target." would score."""
    return (
        f"held out after {row['step']} steps, {row['prompts']} prompts: sampled reward "
        f"{_n(row, 'reward_sampled', 3)} (targets {_n(row, 'targets_sampled', 3)}), greedy "
        f"{_n(row, 'reward_greedy', 3)} (targets {_n(row, 'targets_greedy', 3)}), exact single "
        f"{_n(row, 'exact_single', 3)}, gIoU {_n(row, 'giou', 3)}, cIoU {_n(row, 'ciou', 3)}, N-acc "
        f"{_n(row, 'n_acc', 3)}, T-acc {_n(row, 't_acc', 3)}; always no target: "
        f"{_n(row, 'none_share', 3)}{', among the best' if best else ''}"
    )


def _n(row: Mapping[str, Any], name: str, digits: int = 2) -> str:
    value = row.get(name)
    return "-" if value is None else f"{value:.{digits}f}"
