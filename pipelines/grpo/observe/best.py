"""Which exported models to keep: the k best by a number of the validations. Decides; deletes nothing."""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from samtok.errors import ConfigError

Mode = Literal["max", "min"]


class Verdict(NamedTuple):
    """What to do after a validation: keep this step's export or not, and drop those of other steps."""

    keep: bool
    drop: list[int]


class BestK:
    """Remembers the k best steps; of equal ones, the earliest.

    Args:
        metric: Entry of a validation, such as ``targets_sampled``.
        k: How many exports to keep.
        mode: Whether the largest or the smallest is best.

    Raises:
        ConfigError: For ``k`` below 1 or an unknown mode.
    """

    def __init__(self, metric: str, k: int, mode: Mode = "max") -> None:
        if k < 1:
            raise ConfigError(f"at least 1 of the best exports must be kept, got {k}")
        if mode not in ("max", "min"):
            raise ConfigError(f"the best of {metric} is its max or its min, got {mode!r}")
        self.metric, self.k, self.mode = metric, k, mode
        self._best: list[tuple[int, float]] = []

    @property
    def best(self) -> tuple[tuple[int, float], ...]:
        """Steps that are kept with their values, the best first."""
        return tuple(self._best)

    def take(self, row: Mapping[str, Any]) -> Verdict:
        """Takes in one validation; a step that was taken before is judged anew.

        A value that is no number is never kept.

        Raises:
            ConfigError: If it has no such metric.
        """
        if self.metric not in row:
            known = ", ".join(sorted(name for name in row if name != "step"))
            raise ConfigError(f"a validation has no {self.metric!r} to choose the best by; it has {known}.")
        step, value = int(row["step"]), row[self.metric]
        before = [entry for entry in self._best if entry[0] != step]
        after = list(before)
        if value is not None and math.isfinite(value):
            after.append((step, float(value)))
        after.sort(key=lambda entry: (-entry[1] if self.mode == "max" else entry[1], entry[0]))
        self._best = after[: self.k]
        kept = {entry[0] for entry in self._best}
        return Verdict(step in kept, [entry[0] for entry in before if entry[0] not in kept])

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps; plain JSON."""
        return {"metric": self.metric, "mode": self.mode, "best": [list(entry) for entry in self._best]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to what a checkpoint kept; if it is more than k, the next validation drops the rest.

        Raises:
            ConfigError: If it was kept by another metric or mode.
        """
        before, now = (state["metric"], state["mode"]), (self.metric, self.mode)
        if before != now:
            raise ConfigError(
                f"the checkpoint kept the exports with the {before[1]} of {before[0]}, now it is the "
                f"{now[1]} of {now[0]}. Keep the metric, or start in another --out."
            )
        self._best = [(int(step), float(value)) for step, value in state["best"]]
