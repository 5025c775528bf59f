"""Training steps with DeepSpeed's ZeRO-1 and ZeRO-2: workers share the optimizer's state, and gradients, out.

What is asked of DeepSpeed, and why (checked with 0.19.8):

- Sums, not means: ``gradient_allreduce_op`` is "sum" and losses are not scaled, since ours come divided by
  what the whole step counts.
- The caller says when a step is over (``managed_gradient_accumulation`` is off), so any number of
  micro-batches makes a step. ZeRO-1 adds gradients of workers up in ``step``, ZeRO-2 in every ``backward``.
- Weights stay in float32 and the training loop calls the module itself, never ``engine(...)``: DeepSpeed
  then has no part in autocast. ZeRO keeps a second float32 copy of this worker's part of the weights, which
  must follow whenever weights are loaded.
- A norm that is not finite makes ZeRO drop the gradients and leave everything else alone.

DeepSpeed is imported late: it looks for its accelerator when it is imported, and takes seconds.
"""

import os
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn

from pipelines import env, storage
from pipelines.training.config import OptimizerConfig
from pipelines.training.engine import OptimizerState, check_moments
from samtok.errors import ConfigError, DataError

_ROOT = Path(__file__).resolve().parents[2]
_MOMENTS = ("exp_avg", "exp_avg_sq")

_SAID_ELSEWHERE: Mapping[str, str] = {
    "train_batch_size": "--sampling.images-per-step says it",
    "train_micro_batch_size_per_gpu": "--engine.images-per-micro-batch says it",
    "gradient_accumulation_steps": "--engine.images-per-micro-batch says it",
    "managed_gradient_accumulation": "training says itself when a step is over",
    "gradient_allreduce_op": "gradients of workers are always summed",
    "optimizer": "it is AdamW, and --optimizer.* says how",
    "scheduler": "--optimizer.lr, --optimizer.warmup-steps and --optimizer.final-lr-share say it",
    "gradient_clipping": "--optimizer.clip-norm says it",
    "fp16": "--engine.precision says it",
    "bf16": "--engine.precision says it",
    "torch_autocast": "--engine.precision says it",
}
_ZERO_COUNTS = ("reduce_bucket_size", "allgather_bucket_size")
_ZERO_SWITCHES = (
    "overlap_comm",
    "contiguous_gradients",
    "reduce_scatter",
    "use_multi_rank_bucket_allreduce",
    "allgather_partitions",
)


def read_deepspeed_config(path: str) -> dict[str, Any]:
    """Reads and checks a DeepSpeed JSON such as ``infra/deepspeed/zero2.json``; loads no DeepSpeed.

    Args:
        path: A URI; a relative path is looked for in the working directory, then in the project's folder, as
            workers of a cluster run elsewhere.

    Raises:
        ConfigError: If there is no such file, or it is no JSON, or as ``check_deepspeed_config``.
        StorageError: If it cannot be read.
    """
    uri = path
    if not storage.is_anchored(path) and not storage.exists(path):
        uri = str(_ROOT / path)
    try:
        body = storage.read_json(uri)
    except storage.NotFoundError as error:
        raise ConfigError(
            f"--engine.deepspeed {path}: there is no such file, here or in {_ROOT}. "
            "Give infra/deepspeed/zero1.json or zero2.json, or a file like them."
        ) from error
    except DataError as error:
        raise ConfigError(f"--engine.deepspeed {path}: {error}") from error
    check_deepspeed_config(body, path)
    return body


def check_deepspeed_config(body: Any, source: str) -> None:
    """Lets a DeepSpeed config through if it says nothing but how ZeRO-1 or ZeRO-2 goes about its work.

    Other settings either change what is learnt, or were never tried with this engine.

    Args:
        body: The parsed JSON.
        source: Where it comes from, for messages.

    Raises:
        ConfigError: Names the flag, the key and the remedy.
    """
    where = f"--engine.deepspeed {source}"
    if not isinstance(body, Mapping) or not isinstance(body.get("zero_optimization"), Mapping):
        raise ConfigError(
            f'{where}: must hold {{"zero_optimization": {{"stage": 1 or 2, ...}}}}, got {body!r}'
        )
    for key in sorted(set(body) - {"zero_optimization"}):
        reason = _SAID_ELSEWHERE.get(key, "it was not tried with this engine")
        raise ConfigError(f"{where}: remove {key}: {reason}. Only zero_optimization may be there.")
    _check_zero(body["zero_optimization"], where)


def _check_zero(zero: Mapping[str, Any], where: str) -> None:
    stage = zero.get("stage")
    if type(stage) is not int or stage not in (1, 2):
        raise ConfigError(
            f"{where}: zero_optimization.stage must be 1 or 2, got {stage!r}. Without ZeRO leave "
            "--engine.deepspeed out; stage 3 shares the weights out too, which this training does not need."
        )
    for key, value in zero.items():
        name = f"{where}: zero_optimization.{key}"
        if key in _ZERO_SWITCHES:
            if not isinstance(value, bool):
                raise ConfigError(f"{name} must be true or false, got {value!r}")
        elif key in _ZERO_COUNTS:
            if isinstance(value, bool) or not isinstance(value, int | float) or value < 2 or value % 2:
                raise ConfigError(f"{name} must be an even number of elements, got {value!r}")
        elif key != "stage":
            known = ", ".join(("stage", *_ZERO_COUNTS, *_ZERO_SWITCHES))
            raise ConfigError(f"{name} was not tried with this engine; remove it. Known: {known}.")
    if stage == 1 and zero.get("overlap_comm"):
        raise ConfigError(
            f"{where}: zero_optimization.overlap_comm must be false in stage 1, which adds gradients "
            "up after the last backward pass of a step; or take stage 2"
        )


class DeepSpeedEngine:
    """AdamW under ZeRO, on the process group of ``torch.distributed`` that is there already.

    DeepSpeed copies the weights of worker 0 to all, and moves each parameter into one flat piece of memory:
    load weights into the module as it is, and do not put other parameters in their place.

    Args:
        module: What is trained, on its device; parameters that need no gradient are left alone.
        config: Of AdamW; the rate comes with every step.
        body: What ``read_deepspeed_config`` gave.

    Raises:
        ConfigError: As ``check_deepspeed_config``, or if DeepSpeed was made to use another kind of device
            than the module's.
    """

    def __init__(self, module: nn.Module, config: OptimizerConfig, body: Mapping[str, Any]) -> None:
        check_deepspeed_config(body, "(given in code)")
        assert distributed.is_initialized(), "DeepSpeed would look for MPI where there is no process group"
        self.module = module
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        weights = list(self.parameters.values())
        deepspeed = _import_deepspeed(weights[0].device)
        self._adam = torch.optim.AdamW(
            weights, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        self._engine, self._zero, *_ = deepspeed.initialize(
            args=SimpleNamespace(device_rank=weights[0].device.index or 0),
            model=module,
            optimizer=self._adam,
            config=_filled_in(body, config),
        )
        self._order = _ArrivalOrder(weights) if self._engine.zero_optimization_stage() == 2 else None
        self._flat = self._adam.param_groups[0]["params"][0]  # ZeRO has put its part of the weights here
        self._make_state()

    def _make_state(self) -> None:
        """Makes AdamW's state as its first step would, so that it can be read and loaded from the start."""
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        self._adam.state[self._flat] = {
            "step": torch.zeros((), dtype=torch.float32, device=self._flat.device),
            **{name: torch.zeros_like(self._flat) for name in _MOMENTS},
        }
        lazy_init_hp_params_optimizer_state(list(self.parameters.values()), self._flat, self._adam.state)

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Adds the gradients of one micro-batch."""
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, rate: float) -> float:
        """Clips, moves the weights and forgets the gradients; returns their norm before clipping.

        The norm is infinite when it is not finite.

        Raises:
            ConfigError: If ZeRO-2 mixed gradients of different parameters up, see ``_ArrivalOrder``.
        """
        if self._order is not None:
            self._order.compare()
        else:
            for parameter in self.parameters.values():
                if parameter.grad is None:  # ZeRO-1 would skip it, on this worker alone
                    parameter.grad = torch.zeros_like(parameter)
        self._zero.set_lr(rate)
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def model_state(self) -> dict[str, Tensor]:
        """Returns the state of the module, which every worker has whole."""
        return self.module.state_dict()

    def optimizer_state(self) -> OptimizerState:
        """Gathers the whole state on every worker; before the first step there is none."""
        steps = int(self._adam.state[self._flat]["step"])
        if steps == 0:
            return OptimizerState()
        found = {}
        for name, parameter in self.parameters.items():
            first, second = (_gathered(parameter, key) for key in _MOMENTS)
            found[name] = (first, second)
        return OptimizerState(steps, found)

    def load_optimizer_state(self, state: OptimizerState) -> None:
        """Takes in a whole state, and the weights that the module has now.

        Raises:
            CheckpointError: If names or shapes are not those of the trained parameters.
        """
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        check_moments(state, {name: parameter.shape for name, parameter in self.parameters.items()})
        for name, parameter in self.parameters.items():
            safe_set_full_fp32_param(parameter, parameter.detach())
            moments = state.moments.get(name) or (torch.zeros_like(parameter),) * 2
            for key, moment in zip(_MOMENTS, moments, strict=True):
                safe_set_full_optimizer_state(parameter, moment.to(parameter.device), key)
        self._adam.state[self._flat]["step"].fill_(float(state.steps))


def _gathered(parameter: nn.Parameter, key: str) -> Tensor:
    from deepspeed.utils import safe_get_full_optimizer_state

    whole = safe_get_full_optimizer_state(parameter, key)
    assert whole is not None, "ZeRO knows every trained parameter"
    return whole.cpu()


class _ArrivalOrder:
    """Notices that gradients of a step came in another order on another worker.

    ZeRO-2 lays gradients into a buffer as they come and adds the buffers of the workers up. If a loss uses
    other parameters on one worker, the sum would mix gradients of different parameters without a word.
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
                "--engine.deepspeed: under ZeRO-2 the losses of all workers must use the same parameters "
                "in the same order, and in this step they did not, so its gradients are worthless. Use "
                "ZeRO-1 (infra/deepspeed/zero1.json), which does not mind."
            )


def _filled_in(body: Mapping[str, Any], config: OptimizerConfig) -> dict[str, Any]:
    return {
        **body,
        "train_micro_batch_size_per_gpu": 1,  # DeepSpeed wants one; it only counts with it
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_allreduce_op": "sum",
        "gradient_clipping": config.clip_norm,
    }


def _import_deepspeed(device: torch.device) -> Any:
    """Imports DeepSpeed for a kind of device, after what it reads at import is set."""
    os.environ.setdefault(env.DS_ACCELERATOR, device.type)
    os.environ.setdefault(env.LOCAL_RANK, str(device.index or 0))  # wanted; the device is told by its index
    import deepspeed

    accelerator: Any = deepspeed.get_accelerator()
    if accelerator.device_name() != device.type:
        raise ConfigError(
            f"--engine.deepspeed: DeepSpeed uses {accelerator.device_name()} in this process and the weights "
            f"are on {device.type}. Unset {env.DS_ACCELERATOR}, or set it to {device.type}."
        )
    if device.type == "cpu":
        # Else the first start compiles a shared-memory all-reduce for over a minute, or fails where there is
        # no compiler; training does not call it. There is no switch, but this table is meant to be edited.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
