"""Which exported models to keep: the k best by a number of the validations. Decides; deletes nothing."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from samtok.errors import ConfigError


class Verdict(NamedTuple):
    """What to do after a validation: keep this step's export or not, and drop those of other steps."""

    keep: bool
    drop: list[int]


class BestK:
    """Remembers the k best steps by the largest value of a validation's metric; of equal ones, the
    earliest."""

    def __init__(self, metric: str, k: int) -> None:
        self.metric, self.k = metric, k
        self.best: list[tuple[int, float]] = []  # steps that are kept with their values, the best first

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
        before = [entry for entry in self.best if entry[0] != step]
        new = [(step, float(value))] if value is not None and math.isfinite(value) else []
        self.best = sorted([*before, *new], key=lambda entry: (-entry[1], entry[0]))[: self.k]
        kept = {entry[0] for entry in self.best}
        return Verdict(step in kept, [entry[0] for entry in before if entry[0] not in kept])

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps; plain JSON."""
        return {"metric": self.metric, "mode": "max", "best": [list(entry) for entry in self.best]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to what a checkpoint kept; if it is more than k, the next validation drops the rest.

        Raises:
            ConfigError: If it was kept by another metric.
        """
        if state["metric"] != self.metric:
            raise ConfigError(
                f"the checkpoint kept the exports with the max of {state['metric']}, now it is the "
                f"max of {self.metric}. Keep the metric, or start in another --out."
            )
        self.best = [(int(step), float(value)) for step, value in state["best"]]
