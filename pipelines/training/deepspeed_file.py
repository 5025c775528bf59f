"""DeepSpeed files: which settings may be there. Loads neither torch nor DeepSpeed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines import storage
from pipelines.training.config import EngineConfig
from samtok.errors import ConfigError, DataError

_ROOT = Path(__file__).resolve().parents[2]

_SET_ELSEWHERE: Mapping[str, str] = {
    "train_batch_size": "the job's flags set the batch of a step",
    "train_micro_batch_size_per_gpu": "the job's flag for the micro-batch sets it",
    "gradient_accumulation_steps": "it follows from the job's flag for the micro-batch",
    "managed_gradient_accumulation": "the training loop decides when a step is over",
    "gradient_allreduce_op": "gradients of workers are always summed",
    "optimizer": "it is AdamW, set by the job's flags for the optimizer",
    "scheduler": "the job's flags for the optimizer set learning rate, warm-up and decay",
    "gradient_clipping": "the job's flags for the optimizer set it",
    "fp16": "the job's flag for the precision sets it",
    "bf16": "the job's flag for the precision sets it",
    "torch_autocast": "the job's flag for the precision sets it",
}
_ZERO_COUNTS = ("reduce_bucket_size", "allgather_bucket_size")
_ZERO_SWITCHES = (
    "overlap_comm",
    "contiguous_gradients",
    "reduce_scatter",
    "use_multi_rank_bucket_allreduce",
    "allgather_partitions",
)
_ZERO3_COUNTS = (
    "sub_group_size",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
)


def deepspeed_of(engine: EngineConfig, stages: Sequence[int]) -> Mapping[str, Any] | None:
    """Reads and checks the DeepSpeed file of a run, such as ``infra/deepspeed/zero2.json``, if it has one;
    raises ConfigError if there is none of that name, it is no JSON, or as ``check_deepspeed_config``.

    Args:
        engine: Names it; a relative path is looked for in the working directory, then in the project's
            folder, as workers of a cluster run elsewhere.
        stages: ZeRO stages with which this kind of training works.
    """
    path = engine.deepspeed
    if path is None:
        return None
    uri = path if storage.is_anchored(path) or storage.exists(path) else str(_ROOT / path)
    try:
        body = storage.read_json(uri)
        check_deepspeed_config(body, path, stages=stages)
    except storage.NotFoundError as error:
        shipped = " or ".join(f"zero{stage}.json" for stage in stages)
        raise ConfigError(
            f"--.deepspeed {path}: there is no such file, here or in {_ROOT}. "
            f"Give infra/deepspeed/{shipped}, or a file like them.",
            owner=engine,
        ) from error
    except DataError as error:
        raise ConfigError(f"--.deepspeed {path}: {error}", owner=engine) from error
    except ConfigError as error:
        error.owner = engine
        raise
    return body


def check_deepspeed_config(body: Any, source: str, *, stages: Sequence[int]) -> None:
    """Lets a DeepSpeed config through if it says nothing but how ZeRO goes about its work.

    Other settings either change what is learnt, or were never tried with this engine. Raises ConfigError,
    which names ``source``, the key and the remedy.
    """
    where = f"--.deepspeed {source}"
    if not isinstance(body, Mapping) or not isinstance(body.get("zero_optimization"), Mapping):
        raise ConfigError(
            f'{where}: must hold {{"zero_optimization": {{"stage": {_one_of(stages)}, ...}}}}, got {body!r}.'
        )
    for key in sorted(set(body) - {"zero_optimization"}):
        reason = _SET_ELSEWHERE.get(key, "it was not tried with this engine")
        raise ConfigError(f"{where}: remove {key}: {reason}. Only zero_optimization may be there.")
    _check_zero(body["zero_optimization"], where, stages)


def _one_of(stages: Sequence[int]) -> str:
    return " or ".join(str(stage) for stage in stages)


def _check_zero(zero: Mapping[str, Any], where: str, stages: Sequence[int]) -> None:
    stage = zero.get("stage")
    if type(stage) is not int or stage not in stages:
        why = "; stage 3 shares the weights out too, which this training does not need" * (3 not in stages)
        raise ConfigError(
            f"{where}: zero_optimization.stage must be {_one_of(stages)}, got {stage!r}. Without ZeRO leave "
            f"--.deepspeed out{why}."
        )
    _check_details(zero, where)
    if stage == 1 and zero.get("overlap_comm"):
        raise ConfigError(
            f"{where}: zero_optimization.overlap_comm must be false in stage 1, which adds gradients "
            "up after the last backward pass of a step; or take stage 2."
        )


def _check_details(zero: Mapping[str, Any], where: str) -> None:
    least = dict.fromkeys(_ZERO_COUNTS, 2) | (dict.fromkeys(_ZERO3_COUNTS, 0) if zero["stage"] == 3 else {})
    for key, value in zero.items():
        name = f"{where}: zero_optimization.{key}"
        if key in _ZERO_SWITCHES:
            if not isinstance(value, bool):
                raise ConfigError(f"{name} must be true or false, got {value!r}.")
        elif key in least:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or value < least[key] or value % 2:
                raise ConfigError(f"{name} must be an even number of elements, got {value!r}.")
        elif key != "stage":
            known = ", ".join(("stage", *least, *_ZERO_SWITCHES))
            raise ConfigError(f"{name} was not tried with this engine; remove it. Known: {known}.")
