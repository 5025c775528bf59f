"""Steps of an optimizer: learning rate, seeds, and the end of a run whose gradients are NaN or infinite."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.training.config import OptimizerConfig
from samtok.errors import SamtokError


class TrainingDiverged(SamtokError):
    """Losses or gradients that are NaN or infinite, step after step."""


@dataclass
class Steps:
    """How far a run is."""

    done: int = 0  # steps done
    bad_in_a_row: int = 0  # steps skipped since the last good one
    skipped: int = 0  # steps skipped in all

    def count(self, norm: float, metrics: Mapping[str, Any], most_bad: int) -> bool:
        """Counts a step by the norm of its gradient; returns whether it was good. Engines skip bad ones.
        Raises TrainingDiverged if ``most_bad`` steps in a row were bad."""
        number, self.done = self.done, self.done + 1
        if math.isfinite(norm):  # a NaN loss has a NaN gradient
            self.bad_in_a_row = 0
            return True
        self.skipped += 1
        self.bad_in_a_row += 1
        if self.bad_in_a_row >= most_bad:
            parts = ", ".join(f"{name} {value:g}" for name, value in metrics.items() if name != "step")
            raise TrainingDiverged(
                f"{self.bad_in_a_row} steps in a row had a loss or gradient that is NaN or infinite, the "
                f"last of them step {number} ({parts}). Lower --optimizer.lr or raise "
                "--optimizer.warmup-steps, with another --out; or raise --max-bad-steps."
            )
        return False


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Returns the rate of a step: it rises over the warm-up and falls along a cosine to the last step."""
    warmup = config.warmup(steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - 1 - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return config.lr * (config.final_lr_share + (1 - config.final_lr_share) * cosine)


def mixed_seed(*numbers: int) -> int:
    """Returns a seed that differs wherever any of the numbers does."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
