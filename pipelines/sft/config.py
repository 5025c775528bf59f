"""What can be told to ``jobs/train_mllm.py``; the presets are in ``presets``."""

import math
from dataclasses import dataclass, field
from typing import Literal

from pipelines.cli import FORBID_UNKNOWN, refuse_password
from pipelines.training.config import CheckpointsConfig, OptimizerConfig, WorkersConfig, check_at_least
from samtok.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainedConfig:
    """Which parts of the model are trained (paper, section 3.2: projector and language model)."""

    __pydantic_config__ = FORBID_UNKNOWN

    vision: bool = False
    """Train the vision encoder."""
    projector: bool = True
    """Train what brings image features to the language model."""
    llm: bool = True
    """Train the language model, its embeddings and its head."""

    def __post_init__(self) -> None:
        if not (self.vision or self.projector or self.llm):
            raise ConfigError("--train.* leave nothing to be trained; set one of vision, projector, llm")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Which chats make a step."""

    __pydantic_config__ = FORBID_UNKNOWN

    samples_per_step: int = 16
    """Chats of a step over all workers: the global batch."""
    max_tokens: int = 4096
    """Chats with more tokens, image tokens included, are left out and counted; nothing is ever cut."""

    def __post_init__(self) -> None:
        for name in ("samples_per_step", "max_tokens"):
            check_at_least(f"sampling.{name.replace('_', '-')}", getattr(self, name), 1)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How gradients become steps. None of it changes what is learnt, but for rounding."""

    __pydantic_config__ = FORBID_UNKNOWN

    deepspeed: str | None = None
    """DeepSpeed JSON with ZeRO stage 1, 2 or 3 (infra/deepspeed); by default plain AdamW on every worker."""
    samples_per_micro_batch: int | None = None
    """Chats per forward and backward pass of a worker; by default all of its share of a step. The share is
    ordered by length first, so that chats of a micro-batch are about as long as each other."""
    packing: bool = False
    """Put the chats of a micro-batch one after the other in one row, without padding and without sight of
    each other, where the family allows it."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention of transformers. flash_attention_2 needs the gpu extra, and does not pack here."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the networks' arithmetic (autocast); weights and losses stay in float32."""

    def __post_init__(self) -> None:
        if self.samples_per_micro_batch is not None:
            check_at_least("engine.samples-per-micro-batch", self.samples_per_micro_batch, 1)
        if self.packing and self.attention == "flash_attention_2":
            raise ConfigError("--engine.packing was tried with --engine.attention sdpa and eager only")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """The look at held-out chats while training and at its end."""

    __pydantic_config__ = FORBID_UNKNOWN

    every: int = 200
    """Steps between looks; the best one is exported."""
    samples: int = 64
    """Held-out chats whose loss is taken, the first of the validation corpora."""
    generations: int = 8
    """Of these, so many last questions are answered by the model and drawn beside the truth; 0 draws none."""
    max_new_tokens: int = 128
    """Longest answer there."""

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("samples", 1), ("generations", 0), ("max_new_tokens", 1)):
            check_at_least(f"validation.{name.replace('_', '-')}", getattr(self, name), least)


@dataclass(frozen=True, kw_only=True)
class TrainMllmConfig:
    """One fine-tuning run. The same --out resumes it."""

    __pydantic_config__ = FORBID_UNKNOWN

    out: str
    """URI of the run's folder, a local path or s3://: checkpoints, best/ and final/ model, report."""
    model: str
    """Folder of a model that knows the mask words (jobs/extend_mllm.py), local or s3://."""
    corpora: tuple[str, ...]
    """Chat corpora to train on (jobs/compose_dialogues.py): FOLDER, or uri=FOLDER,weight=2,limit=1000."""
    validation_corpora: tuple[str, ...] = ()
    """Held-out chat corpora, written likewise; without any there is no look at held-out chats."""
    tokenizer: str = "tiny"
    """Mask tokenizer of the corpora's words, which draws the model's answers: a shipped name or a folder."""
    train: TrainedConfig = TrainedConfig()
    """Trained parts."""
    sampling: SamplingConfig = SamplingConfig()
    """Chats of a step."""
    steps: int = 1000
    """Optimizer steps."""
    epochs: float | None = None
    """Times that training goes through the corpora, instead of --steps."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer and schedule."""
    new_rows_lr: float | None = None
    """Highest learning rate of the embedding rows of mask words; by default that of all other weights."""
    engine: EngineConfig = EngineConfig()
    """Plain or DeepSpeed, micro-batches, packing, precision."""
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    """Workers and their resources."""
    validation: ValidationConfig = ValidationConfig()
    """Looks at held-out chats."""
    checkpoints: CheckpointsConfig = field(default_factory=CheckpointsConfig)
    """Checkpoints."""
    max_bad_steps: int = 5
    """Steps in a row with a loss or gradient that is no number before the run fails; each is skipped."""
    max_reject_rate: float = 0.1
    """The run fails (exit code 3) if a larger share of the chats it drew cannot be used."""
    log_every_s: float = 5.0
    """Seconds between progress lines, each with means over the steps since the last one."""
    tracking: str = "sqlite:///mlflow.db"
    """MLflow tracking URI, or off."""
    seed: int = 101
    """Seed of order and draws."""
    dry_run: bool = False
    """Print the resolved config, the checks and the size of the run, and write nothing."""

    def __post_init__(self) -> None:
        for name in ("steps", "max_bad_steps"):
            check_at_least(name.replace("_", "-"), getattr(self, name), 1)
        for name in ("log_every_s", "seed"):
            check_at_least(name.replace("_", "-"), getattr(self, name), 0)
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise ConfigError(f"--epochs must be above 0, got {self.epochs:g}")
        if not 0 <= self.max_reject_rate <= 1:
            raise ConfigError(f"--max-reject-rate must be in [0, 1], got {self.max_reject_rate:g}")
        if self.new_rows_lr is not None and self.new_rows_lr <= 0:
            raise ConfigError(f"--new-rows-lr must be above 0, got {self.new_rows_lr:g}")
        if self.new_rows_lr is not None and not self.train.llm:
            raise ConfigError("--new-rows-lr needs --train.llm, which the rows are part of")
        if not self.corpora:
            raise ConfigError("--corpora needs at least one chat corpus")
        refuse_password(self.tracking)
        self._check_shares()

    def _check_shares(self) -> None:
        samples, workers = self.sampling.samples_per_step, self.workers.count
        if samples % workers:
            raise ConfigError(
                f"--sampling.samples-per-step {samples} does not divide among --workers.count {workers}; "
                f"take {samples // workers * workers or workers} or {-(-samples // workers) * workers}"
            )
        micro, share = self.micro_samples, self.samples_per_worker
        if share % micro:
            sizes = [size for size in range(1, share + 1) if share % size == 0]
            raise ConfigError(
                f"a worker has {share} chats of each step ({samples} over {workers} workers), which "
                f"--engine.samples-per-micro-batch {micro} does not divide; take one of {sizes}"
            )

    @property
    def samples_per_worker(self) -> int:
        """Chats of a step that each worker has."""
        return self.sampling.samples_per_step // self.workers.count

    @property
    def micro_samples(self) -> int:
        """Chats of a forward and backward pass."""
        return self.engine.samples_per_micro_batch or self.samples_per_worker

    @property
    def new_rows_factor(self) -> float:
        """Learning rate of the rows of mask words as a multiple of the others'."""
        return 1.0 if self.new_rows_lr is None else self.new_rows_lr / self.optimizer.lr
