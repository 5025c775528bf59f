"""From losses to steps: what adds up gradients over micro-batches and workers, clips, and moves the weights.

``PlainEngine`` is AdamW with every worker holding everything. ``engine_deepspeed`` shares optimizer state,
gradients and weights out (ZeRO). Both take the same losses to the same weights but for rounding, and hand out
and take in parts of the same state by parameter name, so a checkpoint fits any engine and any number of
workers.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn

from pipelines.training import world
from pipelines.training.config import OptimizerConfig
from pipelines.training.parts import MOMENTS, WEIGHTS, Part, key_of, shared_out, wholes
from pipelines.training.row_rates import RowPace, RowRate, check_row_rates, rows_of
from samtok.errors import CheckpointError

_BUCKET_BYTES = 64 << 20
"""Gradients that workers add up at a time, which costs about twice as much memory. With 840 MB of gradients
on two gloo processes, 64 MB took as long as all at once, and 0.14 GB instead of 0.8."""


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

    def weights(self, names: Collection[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yields the state of the module, one whole tensor after the other; all workers must go through all.

        A tensor may be gone when the next one is asked for. Tied weights come under each of their names.

        Args:
            names: What of it is wanted; None is all.
        """
        for name, tensor in self.module.state_dict().items():
            if names is None or name in names:
                yield name, tensor

    def model_state(self) -> dict[str, Tensor]:
        """Gathers the whole state of the module on the first worker, not always as a copy, and nothing on the
        others; collective. Tied weights are one tensor under all their names."""
        return self.module.state_dict() if world.rank() == 0 else {}

    def untrained_state(self) -> dict[str, Tensor]:
        """Returns other weights and buffers of the module, which only ZeRO-3 shares out."""
        return {n: t for n, t in self.module.state_dict().items() if n not in self.parameters}

    @property
    def roots(self) -> tuple[Any, ...]:
        """Objects from which all tensors of the engine can be reached."""
        return self.module, self.optimizer

    @property
    @abstractmethod
    def steps_taken(self) -> int:
        """Steps that moved the weights."""

    @abstractmethod
    def parts(self) -> list[Part]:
        """Returns what this worker holds of weights and moments, as views; no moments before a first step."""

    def own_parts(self) -> Iterable[Part]:
        """Returns what this worker is to save of them."""
        return self.parts()

    @abstractmethod
    def restore(self, steps: int, fill: Callable[[list[Part]], None]) -> None:
        """Goes back to a state after so many steps.

        Args:
            fill: Gets ``parts`` and gives them their values; raises on all workers or on none.
        """

    def shapes_after(self, steps: int) -> dict[str, torch.Size]:
        """Returns the shapes of all weights and moments by key, whoever holds them."""
        roles = (WEIGHTS, *(MOMENTS if steps else ()))
        return {key_of(role, name): shape for role in roles for name, shape in self.shapes.items()}


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

    @property
    def steps_taken(self) -> int:
        return max((int(state["step"]) for state in self.optimizer.state.values()), default=0)

    def parts(self) -> list[Part]:
        found = wholes(WEIGHTS, self.parameters)
        if self.steps_taken:
            for moment in MOMENTS:
                own = {name: self.optimizer.state[p][moment] for name, p in self.parameters.items()}
                found += wholes(moment, own)
        return found

    def own_parts(self) -> Iterable[Part]:
        return shared_out(self.parts())

    def restore(self, steps: int, fill: Callable[[list[Part]], None]) -> None:
        self.optimizer.state.clear()
        for parameter in self.parameters.values() if steps else ():
            moments = {moment: torch.zeros_like(parameter) for moment in MOMENTS}
            step = torch.tensor(float(steps), device=parameter.device)
            self.optimizer.state[parameter] = {"step": step, **moments}
        fill(self.parts())


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


_T = TypeVar("_T", bound=_Sized)


def buckets(tensors: Iterable[_T], limit_bytes: int) -> Iterator[list[_T]]:
    """Cuts tensors, or what else has a size, in order into groups of at most so many bytes; a larger one is a
    group of its own."""
    group: list[_T] = []
    size = 0
    for tensor in tensors:
        if group and size + tensor.nbytes > limit_bytes:
            yield group
            group, size = [], 0
        group.append(tensor)
        size += tensor.nbytes
    if group:
        yield group


def check_shapes(given: Mapping[str, torch.Size], shapes: Mapping[str, torch.Size]) -> None:
    """Makes sure that tensors of these names and shapes belong to a module with such ``shapes``; raises
    CheckpointError, which names the first that does not."""
    for name, shape in given.items():
        if shape != shapes.get(name):
            there = tuple(shapes[name]) if name in shapes else "missing"
            raise CheckpointError(
                f"{name} of the checkpoint is {tuple(shape)}, in the model it is {there}. The "
                "checkpoint is of another architecture: use the model of its run, or another --out."
            )
