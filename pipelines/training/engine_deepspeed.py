"""Training steps with DeepSpeed's ZeRO: workers share the optimizer's state, gradients and weights out.

What is asked of DeepSpeed, and why (checked with 0.19.8):

- Sums, not means: ``gradient_allreduce_op`` is "sum" and losses are not scaled, since ours come divided by
  what the whole step counts. ZeRO-3 knows means only, so there losses are multiplied by the workers.
- The caller says when a step is over (``managed_gradient_accumulation`` is off), so any number of
  micro-batches makes a step. ZeRO-1 adds gradients of workers up in ``step``, the others in ``backward``.
- Weights stay in float32 and the training loop calls the module itself, never ``engine(...)``: DeepSpeed
  then has no part in autocast. ZeRO keeps a second float32 copy of this worker's part of the weights, which
  a checkpoint has; the weights themselves must follow when it is restored.
- A norm that is not finite makes ZeRO drop the gradients and leave everything else alone.
- ZeRO-3 fetches weights when a submodule is called, on all workers at once: they must call the same ones, in
  training and without gradients. It counts micro-batches in ``engine(...)``, which is not called, so it is
  informed before each ``backward``; and it keeps a gradient until the next one of that parameter comes, so a
  parameter that a step does not use would move by an old one, and gradients are cleared after every step.

DeepSpeed is imported late: it looks for its accelerator when it is imported, and takes seconds.
"""

import os
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn

from pipelines import env
from pipelines.training.config import OptimizerConfig
from pipelines.training.engine import Engine
from pipelines.training.parts import MOMENTS, WEIGHTS, Part
from pipelines.training.row_rates import RowPace, RowRate
from pipelines.training.zero_parts import CutParts, SharedParts
from samtok.errors import ConfigError


class DeepSpeedEngine(Engine):
    """AdamW under ZeRO, on the process group of ``torch.distributed`` that is there already.

    DeepSpeed copies the weights of worker 0 to all, and moves parameters into flat pieces of memory: load
    weights by ``restore``, and do not put other parameters in their place. Under ZeRO-3 call the
    module itself for the loss, not one of its methods or parts. Raises ConfigError if DeepSpeed was made to
    use another kind of device than the module's.
    """

    def __init__(
        self,
        module: nn.Module,
        config: OptimizerConfig,
        body: Mapping[str, Any],
        *,
        row_rates: Mapping[str, RowRate] | None = None,
    ) -> None:
        assert distributed.is_initialized(), "DeepSpeed would look for MPI where there is no process group"
        super().__init__(module, config, row_rates)
        weights = list(self.parameters.values())
        settings = {**_filled_in(body), "gradient_clipping": config.clip_norm}
        self._engine, self._zero = _started(module, settings, self.optimizer)
        self._stage: int = body["zero_optimization"]["stage"]
        self._order = _ArrivalOrder(weights) if self._stage > 1 else None
        kind = SharedParts if self._stage == 3 else CutParts
        self._parts = kind(module, self.parameters, self.shapes, self.optimizer, self._zero)
        RowPace(self.optimizer, self._parts.rows(self.row_rates))

    def backward(self, loss: Float[Tensor, ""]) -> None:
        if self._stage == 3:
            self._zero.clear_backward_seen_flag()
            loss = loss * distributed.get_world_size()
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, rate: float) -> float:
        """As ``Engine.step``; the norm is infinite when it is not finite. Raises ConfigError if gradients of
        different parameters were mixed up, see ``_ArrivalOrder``."""
        if self._order is not None:
            self._order.compare()
        else:
            for parameter in self.parameters.values():
                if parameter.grad is None:  # ZeRO-1 would skip it, on this worker alone
                    parameter.grad = torch.zeros_like(parameter)
        self._zero.set_lr(rate)
        self._engine.step()
        if self._stage == 3:
            self._zero.grad_partitions_flat_buffer.zero_()
        return float(self._engine.get_global_grad_norm())

    def weights(self, names: Collection[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """As ``Engine.weights``; under ZeRO-3 each is gathered in turn."""
        parts = self._parts
        return parts.weights(names) if isinstance(parts, SharedParts) else super().weights(names)

    def model_state(self) -> dict[str, Tensor]:
        """As ``Engine.model_state``; a copy, on the CPU, only under ZeRO-3."""
        return self._parts.model_state() if isinstance(self._parts, SharedParts) else super().model_state()

    @property
    def roots(self) -> tuple[Any, ...]:
        """As ``Engine.roots``."""
        return *super().roots, self._engine, self._zero

    @property
    def steps_taken(self) -> int:
        return int(self.optimizer.state[self._parts.flats[0]]["step"])

    def parts(self) -> list[Part]:
        return list(self._parts.parts(WEIGHTS, *(MOMENTS if self.steps_taken else ())))

    def restore(self, steps: int, fill: Callable[[list[Part]], None]) -> None:
        for flat in self._parts.flats:
            state = self.optimizer.state[flat]
            state["step"].fill_(float(steps))
            for moment in MOMENTS:
                state[moment].zero_()
        fill(self.parts())
        self._parts.follow()


class _ArrivalOrder:
    """Notices that gradients of a step came in another order on another worker.

    ZeRO-2 and ZeRO-3 lay gradients into a buffer as they come and add the buffers of the workers up. If a
    loss uses other parameters on one worker, the sum would mix gradients of different ones without a word.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.seen = 0
        self.device = parameters[0].device
        for index, parameter in enumerate(parameters):
            parameter.register_post_accumulate_grad_hook(partial(self._note, index))

    def _note(self, index: int, parameter: Tensor) -> None:
        self.seen = zlib.crc32(index.to_bytes(4, "little"), self.seen)

    def compare(self) -> None:
        """Compares the gradients since the last call with the other workers'; collective."""
        ends = torch.tensor([self.seen, -self.seen], device=self.device)
        distributed.all_reduce(ends, op=distributed.ReduceOp.MAX)
        self.seen = 0
        highest, lowest = ends.tolist()
        if highest != -lowest:
            raise ConfigError(
                "from ZeRO-2 on the losses of all workers must use the same parameters "
                "in the same order, and in this step they did not, so its gradients are worthless. Use "
                "ZeRO-1 (infra/deepspeed/zero1.json), which does not mind."
            )


def share_out(module: nn.Module, body: Mapping[str, Any]) -> None:
    """Spreads the weights of a module that is not trained over workers, as ZeRO-3 does with one that is.

    As there, call the module itself, on all workers at once. It may share no parameter with another module:
    the other one would find it empty.
    """
    _started(module, _filled_in(body), None)


def _started(module: nn.Module, settings: Mapping[str, Any], optimizer: Any) -> tuple[Any, Any]:
    """Gives a module to DeepSpeed; returns its engine, and its optimizer around the given one."""
    device = next(module.parameters()).device
    engine, zero, *_ = _import_deepspeed(device).initialize(
        args=SimpleNamespace(device_rank=device.index or 0),
        model=module,
        optimizer=optimizer,
        config=settings,
    )
    return engine, zero


def _filled_in(body: Mapping[str, Any]) -> dict[str, Any]:
    zero = {"overlap_comm": False, **body["zero_optimization"]}  # else DeepSpeed turns it on in stage 3
    sums = {} if zero["stage"] == 3 else {"gradient_allreduce_op": "sum"}
    return {
        **sums,
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": 1,  # DeepSpeed wants one; it only counts with it
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
    }


def _import_deepspeed(device: torch.device) -> Any:
    """Imports DeepSpeed for a kind of device, after what it reads at import is set."""
    os.environ.setdefault(env.DS_ACCELERATOR, device.type)
    os.environ.setdefault(env.LOCAL_RANK, str(device.index or 0))  # wanted; the device is given by its index
    import deepspeed

    accelerator: Any = deepspeed.get_accelerator()
    if accelerator.device_name() != device.type:
        raise ConfigError(
            f"DeepSpeed uses {accelerator.device_name()} in this process and the weights "
            f"are on {device.type}. Unset {env.DS_ACCELERATOR}, or set it to {device.type}."
        )
    if device.type == "cpu":
        # Else the first start compiles a shared-memory all-reduce for over a minute, or fails where there is
        # no compiler; training does not call it. There is no switch, but this table is meant to be edited.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
