"""Rows of a table that learn at a rate of their own, such as the embeddings of new words.

An update of AdamW, its weight decay included, is proportional to the learning rate. So the rows move as all
others do, and then stay at ``factor`` of their way: that is AdamW with ``factor`` times the rate. It needs no
parameter of their own, which tied embeddings, checkpoints and ZeRO would all have to know about.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowRate:
    """Rows ``first`` to ``stop - 1`` of a parameter learn at ``factor`` times the rate of the others."""

    first: int
    stop: int
    factor: float

    def span(self, shape: torch.Size) -> tuple[int, int]:
        """Returns where these rows begin and end in the flat parameter."""
        width = shape[1:].numel()
        return self.first * width, self.stop * width


def check_row_rates(rates: Mapping[str, RowRate], shapes: Mapping[str, torch.Size]) -> None:
    """Makes sure that the rows are there; raises ValueError, which names the parameter that is not trained or
    has fewer rows."""
    for name, rate in rates.items():
        rows = shapes[name][0] if shapes.get(name) else 0
        if not 0 <= rate.first < rate.stop <= rows or rate.factor < 0:
            raise ValueError(
                f"{rate} does not fit {name}: expected rows in [0, {rows}) of a trained parameter, and a "
                "factor of at least 0"
            )


class RowPace:
    """Holds slices of an optimizer's parameters to their own pace, in every step that it takes.

    It is AdamW, or any optimizer whose update is proportional to its rate; pieces are views, each with its
    factor.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, pieces: Iterable[tuple[Tensor, float]]) -> None:
        self.pieces = [(piece, factor) for piece, factor in pieces if factor != 1 and piece.numel()]
        self._before: list[Tensor] = []
        if self.pieces:
            optimizer.register_step_pre_hook(self._remember)
            optimizer.register_step_post_hook(self._hold_back)

    def _remember(self, *_: Any) -> None:
        self._before = [piece.detach().clone() for piece, _ in self.pieces]

    @torch.no_grad()
    def _hold_back(self, *_: Any) -> None:
        for (piece, factor), old in zip(self.pieces, self._before, strict=True):
            piece.copy_(torch.lerp(old, piece, factor))
        self._before = []


def rows_of(parameters: Mapping[str, Tensor], rates: Mapping[str, RowRate]) -> Iterator[tuple[Tensor, float]]:
    """Yields the rows as views into whole parameters, each with its factor."""
    for name, rate in rates.items():
        yield parameters[name].detach()[rate.first : rate.stop], rate.factor
