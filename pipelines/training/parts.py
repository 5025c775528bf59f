"""Parts of tensors: how each worker's share of a training's state is named, written and filled again."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipelines.training import world

WEIGHTS, MOMENTS, EXTRA = "weights", ("exp_avg", "exp_avg_sq"), "extra"
"""Roles; a tensor's key is ``ROLE/NAME``."""


@dataclass(frozen=True)
class Part:
    """Consecutive elements of a tensor that a worker holds."""

    key: str
    shape: torch.Size  # of the whole tensor
    start: int  # number of the first element
    values: Tensor  # one axis; a view, so that what fills it changes what is trained

    def cut(self, start: int, stop: int) -> "Part":
        """Returns what this part has of the tensor's elements ``[start, stop)``; may be empty."""
        first = min(max(start - self.start, 0), len(self.values))
        last = min(max(stop - self.start, first), len(self.values))
        return replace(self, start=self.start + first, values=self.values[first:last])


def key_of(role: str, name: str) -> str:
    """Returns the key of a tensor."""
    return f"{role}/{name}"


def wholes(role: str, tensors: Mapping[str, Tensor]) -> list[Part]:
    """Returns whole tensors as parts; each must be contiguous, else RuntimeError."""
    return [Part(key_of(role, name), t.shape, 0, t.detach().view(-1)) for name, t in tensors.items()]


def shared_out(parts: list[Part]) -> Iterator[Part]:
    """Yields this worker's equal share of what every worker has."""
    total, rank, size = sum(len(part.values) for part in parts), world.rank(), world.size()
    first, stop = total * rank // size, total * (rank + 1) // size
    for part in parts:
        own = part.cut(part.start + first, part.start + stop)
        if len(own.values) or not len(part.values):
            yield own
        first, stop = max(first - len(part.values), 0), max(stop - len(part.values), 0)
