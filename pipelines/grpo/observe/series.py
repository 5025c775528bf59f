"""A metric of a run as means over enough prompts: at the start, lately, and at its best. Pure."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

_SURE = 5.0
"""Standard errors from which a fall is none of chance. The best of a run is a maximum over many windows, and
the deviation is an estimate, so 2 or 3 are passed by a metric that stands still: of 60 runs of 200 steps
around a constant 17 fall below half of their best by more than 3, and one by more than 5."""


class Mean(NamedTuple):
    """A mean over some prompts."""

    value: float
    prompts: float


class Series:
    """Takes in a metric step by step.

    A window has at least some steps and at least some prompts, so that small batches get longer windows and
    not more false alarms. The deviation of one prompt is taken from the differences of successive steps,
    which a slow trend hardly changes.

    Args:
        first: Steps at the start, at least.
        window: The last steps, at least.
        prompts: Prompts of each of both, at least.
    """

    def __init__(self, *, first: int, window: int, prompts: float) -> None:
        self.first, self.window, self.prompts = first, window, prompts
        self.start: Mean | None = None  # over the first steps, None before they are over
        self.now: Mean | None = None  # over the last steps, None before there are enough
        self.best: Mean | None = None  # the largest that ``now`` has been
        self._early: list[Mean] = []
        self._late: list[Mean] = []
        self._squares, self._pairs = 0.0, 0

    def add(self, value: float, prompts: float) -> None:
        """Takes in the mean of a step over ``prompts`` of more than 0."""
        new = Mean(value, prompts)
        if self._late:
            old = self._late[-1]
            self._squares += (new.value - old.value) ** 2 / (1 / new.prompts + 1 / old.prompts)
            self._pairs += 1
        if self.start is None:
            self._early.append(new)
            self.start = self._mean(self._early, self.first)
        self._late.append(new)
        total = _prompts(self._late)
        while len(self._late) > self.window and total - self._late[0].prompts >= self.prompts:
            total -= self._late.pop(0).prompts
        self.now = now = self._mean(self._late, self.window)
        if now is not None and (self.best is None or now.value > self.best.value):
            self.best = now

    def fell(self, before: Mean | None, left: float) -> bool:
        """Whether the mean of now is less than ``left`` of an earlier positive one, by more than chance."""
        now = self.now
        if now is None or before is None or before.value <= 0 or now.value >= left * before.value:
            return False
        deviation = math.sqrt(self._squares / self._pairs) if self._pairs else 0.0
        error = deviation * math.sqrt(1 / now.prompts + 1 / before.prompts)
        return before.value - now.value > _SURE * error

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps; plain JSON."""
        return {
            "early": [list(one) for one in self._early],
            "late": [list(one) for one in self._late],
            "best": None if self.best is None else list(self.best),
            "squares": self._squares,
            "pairs": self._pairs,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to what a checkpoint kept."""
        self._early = [Mean(*one) for one in state["early"]]
        self._late = [Mean(*one) for one in state["late"]]
        self.start, self.now = self._mean(self._early, self.first), self._mean(self._late, self.window)
        self.best = None if state["best"] is None else Mean(*state["best"])
        self._squares, self._pairs = state["squares"], state["pairs"]

    def _mean(self, steps: Sequence[Mean], least: int) -> Mean | None:
        total = _prompts(steps)
        if len(steps) < least or total < self.prompts:
            return None
        return Mean(sum(one.value * one.prompts for one in steps) / total, total)


def _prompts(steps: Sequence[Mean]) -> float:
    return sum(one.prompts for one in steps)
