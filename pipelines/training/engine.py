"""From losses to steps: what adds up gradients over micro-batches and workers, clips, and moves the weights.

``PlainEngine`` is AdamW with every worker holding everything. ``engine_deepspeed`` shares optimizer state,
gradients and weights out (ZeRO). Both take the same losses to the same weights but for rounding, and hand out
and take in the same full optimizer state by parameter name, so a checkpoint fits any engine and any number of
workers.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn

from pipelines.training.config import OptimizerConfig
from pipelines.training.row_rates import RowPace, RowRate, check_row_rates, rows_of
from samtok.errors import CheckpointError

_BUCKET_BYTES = 64 << 20
"""Gradients that workers add up at a time, which costs about twice as much memory. With 840 MB of gradients
on two gloo processes, 64 MB took as long as all at once, and 0.14 GB instead of 0.8."""


@dataclass
class OptimizerState:
    """AdamW's state, whole; per parameter name its first and second moment, in its shape, in float32 on the
    CPU."""

    steps: int = 0  # optimizer steps taken
    moments: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


class Engine(ABC):
    """What a training loop drives, with the module's own methods in between. All calls are collective.

    Args:
        module: What is trained, on its device; parameters that need no gradient are left alone.
        config: Of AdamW; the rate comes with every step.
        row_rates: Rows that learn at another rate, by parameter name; ValueError if there are no such rows.
    """

    def __init__(
        self, module: nn.Module, config: OptimizerConfig, row_rates: Mapping[str, RowRate] | None
    ) -> None:
        self.module, self.clip_norm, self.row_rates = module, config.clip_norm, row_rates or {}
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.shapes = {name: parameter.shape for name, parameter in self.parameters.items()}
        check_row_rates(self.row_rates, self.shapes)
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )

    @abstractmethod
    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Adds the gradients of one micro-batch.

        The gradient of a step is the sum over all micro-batches of all workers, so each loss comes already
        divided by what the whole step counts. Workers make the same number of calls, any number of them, with
        losses of the same graph.
        """

    @abstractmethod
    def step(self, rate: float) -> float:
        """Clips, moves the weights and forgets the gradients; returns their norm before clipping.

        If the norm is not finite, on any worker, weights and optimizer state stay as they were.
        """

    def model_state(self) -> dict[str, Tensor]:
        """Gathers the whole state of the module on every worker, not always as a copy; tied weights are under
        all their names."""
        return self.module.state_dict()

    def load_model_state(self, state: Mapping[str, Tensor]) -> None:
        """Loads weights and buffers into the module; what the state does not name stays as it is. Raises
        CheckpointError if a name is unknown or a shape differs."""
        check_state(state, {name: value.shape for name, value in self.module.state_dict().items()})
        self.module.load_state_dict(state, strict=False)

    @abstractmethod
    def optimizer_state(self) -> OptimizerState:
        """Gathers the whole state on every worker."""

    @abstractmethod
    def load_optimizer_state(self, state: OptimizerState) -> None:
        """Takes in a whole state, also an empty one. Call it after the weights were loaded. Raises
        CheckpointError if names or shapes are not those of the trained parameters."""


def engine_of(
    module: nn.Module,
    config: OptimizerConfig,
    deepspeed: Mapping[str, Any] | None,
    *,
    row_rates: Mapping[str, RowRate] | None = None,
) -> Engine:
    """Returns the engine of a run; without the body of a DeepSpeed file the plain one."""
    if deepspeed is None:
        return PlainEngine(module, config, row_rates=row_rates)
    from pipelines.training.engine_deepspeed import DeepSpeedEngine  # loads DeepSpeed

    return DeepSpeedEngine(module, config, deepspeed, row_rates=row_rates)


def autocast(model: nn.Module, precision: str) -> torch.autocast:
    """Returns the context in which the networks compute."""
    device = next(model.parameters()).device.type
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")


def zero_stage(deepspeed: Mapping[str, Any] | None) -> int:
    """Returns what workers share out; 0 is nothing. From 2 on all of them must use the same parts of the
    model at a time."""
    return 0 if deepspeed is None else deepspeed["zero_optimization"]["stage"]


class PlainEngine(Engine):
    """AdamW on every worker, gradients summed over workers."""

    def __init__(
        self, module: nn.Module, config: OptimizerConfig, *, row_rates: Mapping[str, RowRate] | None = None
    ) -> None:
        super().__init__(module, config, row_rates)
        RowPace(self.optimizer, rows_of(self.parameters, self.row_rates))

    def backward(self, loss: Float[Tensor, ""]) -> None:
        loss.backward()

    def step(self, rate: float) -> float:
        for parameter in self.parameters.values():
            if parameter.grad is None:  # as ZeRO has it: the moments of unused parameters decay too
                parameter.grad = torch.zeros_like(parameter)
        self._sum_over_workers()
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), self.clip_norm))
        if math.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _sum_over_workers(self) -> None:
        if not distributed.is_initialized() or distributed.get_world_size() == 1:
            return
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        for bucket in buckets(gradients, _BUCKET_BYTES):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            distributed.all_reduce(flat)
            parts = flat.split([gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def optimizer_state(self) -> OptimizerState:
        found, steps = {}, 0
        for name, parameter in self.parameters.items():
            state = self.optimizer.state.get(parameter)
            if state:
                found[name] = (_copied(state["exp_avg"], "cpu"), _copied(state["exp_avg_sq"], "cpu"))
                steps = int(state["step"])
        return OptimizerState(steps, found)

    def load_optimizer_state(self, state: OptimizerState) -> None:
        check_moments(state, self.shapes)
        self.optimizer.state.clear()
        for name, (first, second) in state.moments.items():
            parameter = self.parameters[name]
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(state.steps), device=parameter.device),
                "exp_avg": _copied(first, parameter.device),
                "exp_avg_sq": _copied(second, parameter.device),
            }


def buckets(tensors: Sequence[Tensor], limit_bytes: int) -> Iterator[list[Tensor]]:
    """Cuts tensors, in order, into groups of at most so many bytes; a larger tensor is a group of its own."""
    group: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if group and size + tensor.nbytes > limit_bytes:
            yield group
            group, size = [], 0
        group.append(tensor)
        size += tensor.nbytes
    if group:
        yield group


def _copied(tensor: Tensor, device: torch.device | str) -> Tensor:
    return tensor.detach().to(device, copy=True)


def check_state(state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
    """Makes sure that a state, or a part of one, belongs to a module with these shapes; raises
    CheckpointError, which names the first that differs."""
    for name, value in state.items():
        if value.shape != shapes.get(name):
            there = tuple(shapes[name]) if name in shapes else "missing"
            raise CheckpointError(
                f"{name} of the checkpoint is {tuple(value.shape)}, in the model it is {there}. The "
                "checkpoint is of another architecture: use the model of its run, or another --out."
            )


def check_moments(state: OptimizerState, shapes: Mapping[str, torch.Size]) -> None:
    """Makes sure that a state belongs to parameters of these shapes; one before the first step fits all.
    Raises CheckpointError, which names the first that differs."""
    if not state.moments:
        return
    if odd := sorted(set(state.moments) ^ set(shapes)):
        raise CheckpointError(
            f"the optimizer state of the checkpoint and this run differ in {', '.join(odd[:3])}"
            f"{' and more' if len(odd) > 3 else ''}. Use the settings in config.json of the "
            "checkpoint's run, or another --out."
        )
    for name, moments in state.moments.items():
        if any(moment.shape != shapes[name] for moment in moments):
            raise CheckpointError(
                f"the optimizer state of {name} is {tuple(moments[0].shape)}, the parameter "
                f"{tuple(shapes[name])}. The checkpoint is of another architecture: use the model of its "
                "run, or another --out."
            )
