"""Where ZeRO keeps weights and moments: the parts that this worker holds.

Under ZeRO-1 and ZeRO-2 every worker has all weights, as views into one flat piece of memory, and a second
copy in float32 of its own part of that piece. Under ZeRO-3 a worker has only its part of each parameter,
twice as well, and parameters are empty unless they are in use. Either way the optimizer sees a few flat
tensors.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn

from pipelines.training import world
from pipelines.training.parts import MOMENTS, WEIGHTS, Part, key_of
from pipelines.training.row_rates import RowRate


class Parts(ABC):
    """What all stages have in common.

    Args:
        parameters: The trained ones, by name.
        shapes: Theirs, from before ZeRO got hold of them.
        adam: The optimizer, after ZeRO has put its flat tensors in.
        zero: DeepSpeed's optimizer around it.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        shapes: Mapping[str, torch.Size],
        adam: torch.optim.AdamW,
        zero: Any,
    ) -> None:
        self.module, self.parameters, self.shapes = module, parameters, shapes
        self.adam, self.zero = adam, zero
        self.flats = self._flats()
        for flat in self.flats:  # as AdamW's first step would make it, so that it can be loaded before
            zeros = {name: torch.zeros_like(flat) for name in MOMENTS}
            adam.state[flat] = {"step": torch.zeros((), dtype=torch.float32, device=flat.device), **zeros}

    @abstractmethod
    def _flats(self) -> list[Tensor]:
        """Returns the flat tensors that the optimizer sees."""

    @abstractmethod
    def parts(self, *roles: str) -> Iterator[Part]:
        """Yields what this worker holds in float32, as views into the flat tensors."""

    @abstractmethod
    def follow(self) -> None:
        """Makes the weights of the module equal to the copy in float32; collective."""


class CutParts(Parts):
    """Parts of ZeRO-1 and ZeRO-2, whose borders run through parameters."""

    def __init__(self, *known: Any) -> None:
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        super().__init__(*known)
        lazy_init_hp_params_optimizer_state(list(self.parameters.values()), self.flats[0], self.adam.state)

    def _flats(self) -> list[Tensor]:
        return [self.adam.param_groups[0]["params"][0]]

    def parts(self, *roles: str) -> Iterator[Part]:
        for role in roles:
            for name, parameter in self.parameters.items():
                own: Any = parameter._hp_mapping  # pyright: ignore[reportAttributeAccessIssue]
                if own is not None:
                    values = own.hp_fragment if role == WEIGHTS else own.optim_fragment[role]
                    start = own.lp_fragment_address.start
                    yield Part(key_of(role, name), self.shapes[name], start, values.detach())

    def follow(self) -> None:
        self.zero.update_lp_params()

    def rows(self, rates: Mapping[str, RowRate]) -> Iterator[tuple[Tensor, float]]:
        """Yields this worker's part of rows, as views into the flat tensors, each with its factor."""
        for name, rate in rates.items():
            part: Any = self.parameters[name]._hp_mapping  # pyright: ignore[reportAttributeAccessIssue]
            if part is not None:
                span = rate.span(self.shapes[name])
                yield overlap(part.hp_fragment, part.lp_fragment_address.start, span), rate.factor


class SharedParts(Parts):
    """Parts of ZeRO-3: of every parameter an equal share, filled up with zeros at the end."""

    def _flats(self) -> list[Tensor]:
        return list(self.zero.fp32_partitioned_groups_flat)

    def parts(self, *roles: str) -> Iterator[Part]:
        for role in roles:
            for name, parameter in self.parameters.items():
                group, offset, size = self._place(parameter)
                flat = self.flats[group]
                values = (flat if role == WEIGHTS else self.adam.state[flat][role]).narrow(0, offset, size)
                shape = self.shapes[name]
                part = Part(key_of(role, name), shape, size * distributed.get_rank(), values.detach())
                yield part.cut(0, shape.numel())  # without what fills the last share up

    def follow(self) -> None:
        self.zero.checkpoint_event_prologue()  # takes small parameters back that all workers have whole
        for group in range(len(self.flats)):
            self.zero._reassign_or_swap_out_partitioned_parameters(group)
        self.zero.checkpoint_event_epilogue()

    def weights(self, names: Collection[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yields the module's state, each parameter whole on every worker until the next is asked for."""
        from deepspeed.runtime.zero import GatheredParameters

        for name, value in self.module.state_dict(keep_vars=True).items():
            if names is None or name in names:
                with GatheredParameters([value]):
                    yield name, value.detach()

    def model_state(self) -> dict[str, Tensor]:
        """Gathers the state of the module on the first worker, parameter by parameter, on the CPU."""
        names: dict[int, list[str]] = {}  # tied parameters stay one tensor
        for name, value in self.module.state_dict(keep_vars=True).items():
            names.setdefault(id(value), []).append(name)
        tied = {own[0]: own for own in names.values()}
        found: dict[str, Tensor] = {}
        for name, value in self.weights(tied):
            if world.rank() == 0:
                found |= dict.fromkeys(tied[name], value.to("cpu", copy=True))
        return found

    def rows(self, rates: Mapping[str, RowRate]) -> Iterator[tuple[Tensor, float]]:
        """Yields this worker's part of rows, as views into the flat tensors, each with its factor."""
        for name, rate in rates.items():
            part = self._part(name)
            start = part.numel() * distributed.get_rank()
            yield overlap(part, start, rate.span(self.shapes[name])), rate.factor

    def _part(self, name: str) -> Tensor:
        """Returns this worker's part of the weights in float32, a view into a flat tensor."""
        group, offset, size = self._place(self.parameters[name])
        return self.flats[group].narrow(0, offset, size)

    def _place(self, parameter: nn.Parameter) -> tuple[int, int, int]:
        """Returns the flat tensor that a parameter's share is in, and where and how large it is."""
        return self.zero.grad_position[self.zero.get_param_id(parameter)]


def overlap(part: Tensor, start: int, span: tuple[int, int]) -> Tensor:
    """Returns what a part that begins at ``start`` has of a span of elements; may be empty."""
    first = min(max(span[0] - start, 0), part.numel())
    stop = min(max(span[1] - start, first), part.numel())
    return part.narrow(0, first, stop - first)
