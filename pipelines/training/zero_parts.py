"""Where ZeRO keeps weights and moments: whole tensors in and out of the parts that workers hold.

Under ZeRO-1 and ZeRO-2 every worker has all weights, as views into one flat piece of memory, and a second
copy in float32 of its own part of that piece. Under ZeRO-3 a worker has only its part of each parameter,
twice as well, and parameters are empty unless they are in use. Either way the optimizer sees a few flat
tensors.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from pipelines.training.engine import check_state
from pipelines.training.row_rates import RowRate

MOMENTS = ("exp_avg", "exp_avg_sq")


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

    def moment(self, name: str, key: str) -> Tensor:
        """Gathers a moment of a parameter on every worker, on the CPU."""
        from deepspeed.utils import safe_get_full_optimizer_state

        whole = safe_get_full_optimizer_state(self.parameters[name], key)
        assert whole is not None, "ZeRO knows every trained parameter"
        return whole.cpu()


class CutParts(Parts):
    """Parts of ZeRO-1 and ZeRO-2, whose borders run through parameters."""

    def __init__(self, *known: Any) -> None:
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        super().__init__(*known)
        lazy_init_hp_params_optimizer_state(list(self.parameters.values()), self.flats[0], self.adam.state)

    def _flats(self) -> list[Tensor]:
        return [self.adam.param_groups[0]["params"][0]]

    def put_moment(self, name: str, key: str, whole: Tensor) -> None:
        """Takes this worker's part of a moment."""
        from deepspeed.utils import safe_set_full_optimizer_state

        parameter = self.parameters[name]
        safe_set_full_optimizer_state(parameter, whole.to(parameter.device), key)

    def follow_weights(self) -> None:
        """Makes the copy in float32 equal to the weights that the module has."""
        from deepspeed.utils import safe_set_full_fp32_param

        for parameter in self.parameters.values():
            safe_set_full_fp32_param(parameter, parameter.detach())

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

    def put_moment(self, name: str, key: str, whole: Tensor) -> None:
        """Takes this worker's part of a moment; DeepSpeed's own function cannot cut what needs filling up."""
        from deepspeed.utils import safe_set_local_optimizer_state

        size = self._part(name).numel()
        filled = functional.pad(whole.flatten(), (0, size * distributed.get_world_size() - whole.numel()))
        part = filled.narrow(0, size * distributed.get_rank(), size)
        safe_set_local_optimizer_state(self.parameters[name], part.to(self.flats[0].device), key)

    def follow_weights(self) -> None:
        """Makes the copy in float32 equal to the weights that the module has."""
        self.zero.refresh_fp32_params()

    def model_state(self) -> dict[str, Tensor]:
        """Gathers the state of the module on every worker, parameter by parameter, on the CPU."""
        from deepspeed.runtime.zero import GatheredParameters

        found: dict[str, Tensor] = {}
        seen: dict[int, Tensor] = {}  # tied parameters stay one tensor
        for name, value in self.module.state_dict(keep_vars=True).items():
            if id(value) not in seen:
                with GatheredParameters([value]):
                    seen[id(value)] = value.detach().to("cpu", copy=True)
            found[name] = seen[id(value)]
        return found

    def load_model_state(self, state: Mapping[str, Tensor]) -> None:
        """Loads weights and buffers into the module."""
        from deepspeed.runtime.zero import GatheredParameters

        own = self.module.state_dict(keep_vars=True)
        check_state(state, {name: getattr(value, "ds_shape", value.shape) for name, value in own.items()})
        for name in sorted(state):  # the order of a file that was read differs from worker to worker
            with GatheredParameters([own[name]], modifier_rank=0), torch.no_grad():
                own[name].copy_(state[name])

    def rows(self, rates: Mapping[str, RowRate]) -> Iterator[tuple[Tensor, float]]:
        """Yields this worker's part of rows, as views into the flat tensors, each with its factor."""
        for name, rate in rates.items():
            part = self._part(name)
            start = part.numel() * distributed.get_rank()
            yield overlap(part, start, rate.span(self.shapes[name])), rate.factor

    def _part(self, name: str) -> Tensor:
        """Returns this worker's part of the weights in float32, a view into a flat tensor."""
        parameter = self.parameters[name]
        group, offset, size = self.zero.grad_position[self.zero.get_param_id(parameter)]
        return self.flats[group].narrow(0, offset, size)


def overlap(part: Tensor, start: int, span: tuple[int, int]) -> Tensor:
    """Returns what a part that begins at ``start`` has of a span of elements; may be empty."""
    first = min(max(span[0] - start, 0), part.numel())
    stop = min(max(span[1] - start, first), part.numel())
    return part.narrow(0, first, stop - first)
