"""What can be told to ``jobs/grpo_gres.py`` and ``jobs/grpo_gcg.py``; the presets are in ``presets``."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.constructors import PrimitiveConstructorSpec

from pipelines.chats.prompts import PromptsConfig
from pipelines.cli import FORBID_UNKNOWN, refuse_password
from pipelines.grpo.learn.algorithms import AlgorithmConfig
from pipelines.grpo.observe.alarms import WatchConfig
from pipelines.grpo.reward.components import parse_weights
from pipelines.training.config import (
    CheckpointsConfig,
    OptimizerConfig,
    TrainedConfig,
    check_at_least,
    check_share,
)
from samtok.errors import ConfigError

_WEIGHTS: PrimitiveConstructorSpec[dict[str, float]] = PrimitiveConstructorSpec(
    nargs=1,
    metavar="NAME=NUMBER,...",
    instance_from_str=lambda words: parse_weights(words[0]),
    is_instance=lambda value: isinstance(value, dict),
    str_from_instance=lambda weights: [",".join(f"{name}={value:g}" for name, value in weights.items())],
)
"""Lets one flag name components of plug-ins, which no flag of their own could be made for."""


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """What a reply is worth: the weighted sum of its components."""

    __pydantic_config__ = FORBID_UNKNOWN

    weights: Annotated[dict[str, float], _WEIGHTS] = field(default_factory=lambda: {"mask": 1.0})
    """Weight of each component, as mask=1,format=0.1; all components are logged, also those without."""
    true_positives: Literal["multiset", "distinct"] = "multiset"
    """Two instances of one word in the truth: both count (multiset), or one (distinct, the paper's Eq. 5)."""
    count_malformed: bool = True
    """Count broken words as wrong predictions; the paper leaves them out, so they cost nothing."""
    partial: float = 0.0
    """Credit for a word whose first code is right and whose second is not; the paper gives none."""
    plug_ins: tuple[str, ...] = ()
    """Further rewards, each as module:function (samtok.rewards.response.Reward)."""
    iou: bool = False
    """Also decode words and compare masks (component ``iou``); needs the mask tokenizer and its time."""
    workers: int = 1
    """Processes that compute rewards."""
    gpus_per_worker: float = 0.0
    """GPUs of each of them, for --reward.iou."""

    def __post_init__(self) -> None:
        check_at_least("reward.workers", self.workers, 1)
        check_at_least("reward.gpus-per-worker", self.gpus_per_worker, 0)
        check_share("reward.partial", self.partial)


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """Who samples replies, and how."""

    __pydantic_config__ = FORBID_UNKNOWN

    engine: Literal["hf", "vllm"] = "hf"
    """hf runs everywhere; vllm needs its own environment (--rollout.python)."""
    python: str | None = None
    """vllm: the Python of an environment with vLLM; the same path on every node."""
    group_size: int = 8
    """Replies to each prompt."""
    temperature: float = 1.0
    """Of the sampling. There is no top-k or top-p: both would make the learner's probabilities wrong."""
    max_new_tokens: int = 512
    """Longest reply."""
    grammar: bool = False
    """Allow whole mask words only. Off, a broken word is possible and punished, as in the paper."""
    prompts_per_task: int = 8
    """Prompts that are sampled in one batch. With 1 thread and one engine this decides the numbers, the
    number of actors does not."""
    actors: int = 1
    """Processes that sample."""
    gpus: float | None = None
    """GPUs of each of them; by default 1 if the driver's machine has one."""
    cpus: float = 1.0
    """CPUs of each of them that Ray reserves."""
    threads: int = 1
    """Threads of each of them."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the sampling model's weights."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention of transformers."""
    max_staleness: int = 0
    """Steps by which the weights behind a reply may be older than those that learn from it. 0 samples and
    learns in turn; above, both run at the same time."""
    max_failures: int = 8
    """Times that a dead sampling process is replaced."""
    timeout_s: float = 1800.0
    """Longest time that one batch of replies may take."""

    def __post_init__(self) -> None:
        for name, least in (
            *(
                ("group_size", 2),
                ("max_new_tokens", 1),
                ("prompts_per_task", 1),
                ("actors", 1),
                ("threads", 1),
            ),
            *(("cpus", 0), ("max_staleness", 0), ("max_failures", 0), ("timeout_s", 1)),
        ):
            check_at_least(f"rollout.{name.replace('_', '-')}", getattr(self, name), least)
        check_at_least("rollout.gpus", self.gpus or 0, 0)
        if self.temperature <= 0:
            raise ConfigError(f"--rollout.temperature must be above 0, got {self.temperature:g}")
        if (self.engine == "vllm") != (self.python is not None):
            raise ConfigError("--rollout.engine vllm and --rollout.python go together; give both or neither")


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """Who learns, and how."""

    __pydantic_config__ = FORBID_UNKNOWN

    count: int = 1
    """Processes that learn, joined by torch.distributed; each has a share of every step."""
    gpus: float | None = None
    """GPUs of each of them; by default 1 if the driver's machine has one."""
    cpus: float = 1.0
    """CPUs of each of them that Ray reserves."""
    threads: int = 1
    """Threads of each of them; with one, a run on CPUs repeats bit for bit."""
    deepspeed: str | None = None
    """DeepSpeed JSON (infra/deepspeed); by default plain AdamW on every learner."""
    replies_per_micro_batch: int = 64
    """Replies of a forward and backward pass; all replies of a prompt go together where they fit."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the networks' arithmetic (autocast); weights, logits and losses stay in float32."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention of transformers."""
    max_failures: int = 3
    """Times that the learners are started anew from the last checkpoint after one of them died."""
    timeout_s: float = 1800.0
    """Longest time of one step, after which the run ends and says where every process stood."""

    def __post_init__(self) -> None:
        for name, least in (
            *(("count", 1), ("cpus", 0), ("threads", 1), ("replies_per_micro_batch", 1)),
            *(("max_failures", 0), ("timeout_s", 1)),
        ):
            check_at_least(f"learner.{name.replace('_', '-')}", getattr(self, name), least)
        check_at_least("learner.gpus", self.gpus or 0, 0)


@dataclass(frozen=True, kw_only=True)
class SyncConfig:
    """How weights get from learners to samplers."""

    __pydantic_config__ = FORBID_UNKNOWN

    bucket_mb: int = 256
    """Size of the pieces in which weights go through Ray's object store."""
    checksum: bool = True
    """Check every piece where it arrives."""

    def __post_init__(self) -> None:
        check_at_least("sync.bucket-mb", self.bucket_mb, 1)


@dataclass(frozen=True, kw_only=True)
class GatesConfig:
    """Checks that stop a run that would learn from wrong numbers."""

    __pydantic_config__ = FORBID_UNKNOWN

    parity_every: int = 50
    """Steps between comparisons of the log-probabilities of samplers and learners on the same replies; the
    first one is before the first step. 0 leaves them out."""
    parity_limit: float = 0.01
    """Mean absolute difference from which on the run ends."""
    image: bool = True
    """Before the first step: another image has to change the learner's log-probabilities."""

    def __post_init__(self) -> None:
        check_at_least("gates.parity-every", self.parity_every, 0)
        if self.parity_limit <= 0:
            raise ConfigError(f"--gates.parity-limit must be above 0, got {self.parity_limit:g}")


@dataclass(frozen=True, kw_only=True)
class LooksConfig:
    """Looks at held-out prompts while learning."""

    __pydantic_config__ = FORBID_UNKNOWN

    corpora: tuple[str, ...] = ()
    """Held-out chat corpora; without any there are no looks."""
    every: int = 10
    """Steps between looks; there is one before the first step and one after the last."""
    prompts: int = 128
    """The first prompts of the corpora, each answered greedily."""
    samples: int = 1
    """Replies that are sampled to each of them as well, at the rollouts' temperature."""
    metric: str = "targets_sampled"
    """Metric by which the best model is kept."""
    keep: int = 1
    """Best models that are kept, as best-STEP/."""

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("prompts", 1), ("samples", 0), ("keep", 1)):
            check_at_least(f"looks.{name}", getattr(self, name), least)


@dataclass(frozen=True, kw_only=True)
class GrpoConfig:
    """One run of reinforcement learning. The same --out resumes it."""

    __pydantic_config__ = FORBID_UNKNOWN

    out: str
    """URI of the run's folder, a local path or s3://: checkpoints, final/ model, trajectories, report. Or
    ``temporary``: a fresh folder of this machine."""
    model: str
    """Fine-tuned model (jobs/train_mllm.py): a folder, local or s3://, or ``tour-mllm``, which ships."""
    tokenizer: str = "tiny"
    """Mask tokenizer of the words, for pictures, looks and --reward.iou: a shipped name or a folder."""
    prompts: PromptsConfig
    """What is asked."""
    prompts_per_step: int = 16
    """Prompts of a step; each gets --rollout.group-size replies."""
    steps: int = 100
    """Steps."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """What a reply is worth."""
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    """How rewards become steps."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Sampling."""
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    """Learning."""
    placement: Literal["separate", "colocated"] = "separate"
    """Samplers and learners on GPUs of their own, or on the same ones in turn."""
    train: TrainedConfig = field(default_factory=TrainedConfig)
    """Trained parts."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer and schedule."""
    sync: SyncConfig = SyncConfig()
    """Weights from learners to samplers."""
    gates: GatesConfig = GatesConfig()
    """Checks."""
    watch: WatchConfig = field(default_factory=WatchConfig)
    """Alarms."""
    looks: LooksConfig = field(default_factory=LooksConfig)
    """Looks at held-out prompts."""
    checkpoints: CheckpointsConfig = field(default_factory=CheckpointsConfig)
    """Checkpoints."""
    trajectories_every: int = 10
    """Steps between those whose replies are written as a table and shown in the report; 0 writes none."""
    max_reject_rate: float = 0.1
    """The run fails (exit code 3) if a larger share of the prompts it drew cannot be used."""
    max_bad_steps: int = 5
    """Steps in a row with a gradient that is no number before the run fails; each is skipped."""
    num_cpus: int | None = None
    """Logical CPUs of a Ray that the job starts; by default the machine's, and at least enough."""
    debug: Literal["off", "rollout-only", "train-only", "replay"] = "off"
    """rollout-only samples and scores, and learns nothing; train-only learns from the replies of --replay in
    place of sampling; replay computes losses of --replay and changes nothing."""
    replay: str | None = None
    """Trajectories of an earlier run: its folder, or one of its Parquet files."""
    tracking: str = "sqlite:///mlflow.db"
    """MLflow tracking URI, or off."""
    seed: int = 101
    """Seed of order and sampling."""
    dry_run: bool = False
    """Print the resolved config, the checks and the size of the run, and write nothing."""

    def __post_init__(self) -> None:
        for name, least in (("prompts_per_step", 1), ("steps", 1), ("trajectories_every", 0), ("seed", 0)):
            check_at_least(name.replace("_", "-"), getattr(self, name), least)
        check_at_least("max-bad-steps", self.max_bad_steps, 1)
        check_share("max-reject-rate", self.max_reject_rate)
        refuse_password(self.tracking)
        self._check_shares()
        if (self.debug in ("train-only", "replay")) != (self.replay is not None):
            raise ConfigError("--debug train-only and --debug replay need --replay, and nothing else does")
        if self.placement == "colocated" and self.rollout.max_staleness:
            raise ConfigError(
                "--placement colocated lets samplers and learners take turns on a GPU, so "
                f"--rollout.max-staleness must be 0, got {self.rollout.max_staleness}"
            )

        if self.slots < self.rollout.actors:
            raise ConfigError(
                f"--rollout.actors {self.rollout.actors} cannot all work: {self.slots} batches of prompts "
                f"are under way at most ({self.tasks_per_step} per step, --rollout.max-staleness "
                f"{self.rollout.max_staleness}); lower --rollout.prompts-per-task, or take fewer actors"
            )

    def _check_shares(self) -> None:
        prompts, task = self.prompts_per_step, self.rollout.prompts_per_task
        if prompts % task:
            raise ConfigError(
                f"--prompts-per-step {prompts} is not a multiple of --rollout.prompts-per-task {task}; take "
                f"{prompts // task * task or task} prompts, or tasks of {_largest_share(prompts, task)}"
            )
        if prompts < self.learner.count * self.algorithm.inner_steps:
            raise ConfigError(
                f"--prompts-per-step {prompts} are too few for --learner.count {self.learner.count} x "
                f"--algorithm.inner-steps {self.algorithm.inner_steps}"
            )

    @property
    def tasks_per_step(self) -> int:
        """Batches of prompts that a step samples."""
        return self.prompts_per_step // self.rollout.prompts_per_task

    @property
    def slots(self) -> int:
        """Batches of prompts that may be under way at once; this is what bounds staleness."""
        return (self.rollout.max_staleness + 1) * self.tasks_per_step


def _largest_share(whole: int, most: int) -> int:
    return max(size for size in range(1, most + 1) if whole % size == 0)
