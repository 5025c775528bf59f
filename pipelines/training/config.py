"""Options that training jobs have in common: optimizer, engine, workers, validation, checkpoints, shares."""

import math
from abc import ABC, abstractmethod
from typing import Annotated, Literal

from annotated_types import Interval

from pipelines.config import (
    AtLeast0,
    AtLeast1,
    ImageLimit,
    NotNegative,
    Positive,
    Precision,
    RunConfig,
    Share,
    WorkerConfig,
    config,
)
from samtok.errors import ConfigError

ExportPrecision = Literal["model", "float32"]
"""Type of exported weights: what the ``config.json`` of --model states, or what they are trained in."""


@config
class OptimizerConfig:
    """AdamW and its schedule: linear warm-up, then a cosine."""

    lr: NotNegative = 2e-3
    """Highest learning rate."""
    warmup_steps: AtLeast0 = 100
    """Steps over which the rate rises from 0."""
    warmup_share: Share | None = None
    """Share of the steps over which it does, instead of --optimizer.warmup-steps."""
    final_lr_share: Share = 0.02
    """Share of the highest rate that is left at the last step."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's decay rates."""
    weight_decay: NotNegative = 0.01
    """AdamW's decoupled weight decay."""
    clip_norm: Positive = 1.0
    """Largest norm of the gradient; longer ones are scaled down to it."""

    def warmup(self, steps: int) -> int:
        """Returns over how many of so many steps the rate rises."""
        return self.warmup_steps if self.warmup_share is None else round(self.warmup_share * steps)

    def check(self) -> None:
        """Checks both decay rates."""
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"--.betas must be in [0, 1), got {self.betas}.")


@config
class EngineConfig:
    """How gradients become steps. None of it changes what is learnt, but for rounding."""

    deepspeed: str | None = None
    """DeepSpeed JSON (infra/deepspeed/zero1.json and so on), local or s3://; by default plain AdamW on every
    worker. A relative path is looked for in the working directory, then in the project's folder."""


@config
class MllmEngineConfig(EngineConfig):
    """How gradients of an MLLM become steps."""

    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention of transformers; flash_attention_2 needs the gpu extra."""
    packing: bool = False
    """Put the texts of a micro-batch one after the other in one row, without padding and without sight of
    each other, where the family allows it."""

    def check(self) -> None:
        """Refuses an attention that would see across packed texts."""
        if self.packing and self.attention == "flash_attention_2":
            raise ConfigError("--.packing works with --.attention sdpa and eager, got flash_attention_2.")


@config
class TrainedConfig:
    """Which parts of an MLLM are trained (paper, section 3.2: projector and language model)."""

    vision: bool = False
    """Train the vision encoder."""
    projector: bool = True
    """Train what brings image features to the language model."""
    llm: bool = True
    """Train the language model, its embeddings and its head."""
    new_rows_only: bool = False
    """Of the language model train the rows of mask words alone, in embeddings and head."""

    def check(self) -> None:
        """Refuses a run that trains nothing."""
        if not (self.vision or self.projector or self.llm):
            raise ConfigError("nothing is trained; set one of --.vision, --.projector, --.llm.")
        if self.new_rows_only and not self.llm:
            raise ConfigError("--.new-rows-only needs --.llm, which the rows are part of.")


@config
class LoraConfig:
    """Adapters that are trained in the place of the language model's own weights (LoRA, arXiv 2106.09685),
    beside the rows of mask words."""

    rank: AtLeast0 = 0
    """Rank of the adapters; 0 has none."""
    alpha: Positive = 32.0
    """What they add is scaled by alpha / rank."""
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Share of an adapter's input that is dropped in training."""
    targets: tuple[str, ...] = ()
    """Layers that get adapters, by the last part of their names, such as q_proj v_proj; by default all linear
    layers of the language model."""

    def check(self) -> None:
        """Refuses settings of adapters that there are not."""
        if not self.rank and (self.alpha, self.dropout, self.targets) != (32.0, 0.0, ()):
            raise ConfigError("--.alpha, --.dropout and --.targets need --.rank, such as 16.")


@config
class TrainsMllm(RunConfig):
    """What of an MLLM a run trains."""

    train: TrainedConfig = TrainedConfig()
    lora: LoraConfig = LoraConfig()

    def check(self) -> None:
        """Checks that adapters have a part of the model to stand in for."""
        super().check()
        if self.lora.rank and (not self.train.llm or self.train.new_rows_only):
            raise ConfigError(
                "--.lora.rank adapts the language model; leave out --.train.no-llm and "
                "--.train.new-rows-only."
            )

    @property
    def trains_whole_llm(self) -> bool:
        """Whether all weights of the language model are trained."""
        return self.train.llm and not self.train.new_rows_only and not self.lora.rank

    @property
    def trained(self) -> list[str]:
        """Returns what is trained, for people."""
        found = [name for name in ("vision", "projector") if getattr(self.train, name)]
        found += ["llm"] * self.trains_whole_llm
        found += [f"adapters of rank {self.lora.rank}"] * (self.lora.rank > 0)
        return found + ["rows of mask words"] * (self.train.llm and not self.trains_whole_llm)


@config
class TrainWorkerConfig(WorkerConfig):
    """What each training worker holds."""

    loaders: AtLeast0 = 0
    """Processes of each that read and prepare data; 0 does it in a thread."""
    max_failures: AtLeast0 = 3
    """Times that dead workers are replaced; each time training goes on from the last checkpoint."""

    def check(self) -> None:
        """A worker drives one GPU or none."""
        if self.gpus not in (None, 0, 1):
            raise ConfigError(f"--.gpus must be 0 or 1, since a worker drives one GPU, got {self.gpus:g}.")


@config
class ValidationConfig:
    """Validation on held-out data during training."""

    every: AtLeast1 = 500
    """Steps between validations."""


@config
class CheckpointsConfig:
    """What survives a kill."""

    every: AtLeast1 = 500
    """Steps between checkpoints."""
    keep: AtLeast1 = 2
    """Newest checkpoints that are kept."""


@config
class TrainingConfig(ImageLimit, RunConfig, ABC):
    """What a training run on Ray Train has, whatever it trains. The same --out resumes it."""

    seed: AtLeast0 = 101
    """Seed of weights, order and draws."""
    steps: AtLeast1 = 1000
    """Optimizer steps."""
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: Precision = "float32"
    """Type of the networks' arithmetic (autocast); weights and losses stay in float32."""
    micro_batch: AtLeast1 | None = None
    """Items per forward and backward pass of a worker; by default all of its share of a step. Decides the
    memory, not what is learnt."""
    workers: AtLeast1 = 1
    """Processes that train; each has a share of every step."""
    worker: TrainWorkerConfig = TrainWorkerConfig()
    num_cpus: AtLeast1 | None = None
    """Logical CPUs of a Ray that the job starts; by default the machine's, and at least enough."""
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    max_bad_steps: AtLeast1 = 5
    """Steps in a row with a loss or gradient that is NaN or infinite before the run fails; each is
    skipped."""
    log_every_s: NotNegative = 5.0
    """Seconds between progress lines, each with means over the steps since the last one."""

    @property
    @abstractmethod
    def per_step(self) -> int:
        """Items (images, chats) of a step over all workers."""

    @property
    def per_worker(self) -> int:
        """Items of a step that each worker has."""
        return self.per_step // self.workers

    @property
    def micro(self) -> int:
        """Items of a forward and backward pass."""
        return self.micro_batch or self.per_worker

    def check_shares(self, flag: str) -> None:
        """Makes sure that a step divides among workers, and a worker's share into micro-batches; raises
        ConfigError, which names sizes that would.

        Args:
            flag: The one that sets ``per_step``, such as ``--.sampling.images-per-step``.
        """
        items, workers = self.per_step, self.workers
        if items % workers:
            raise ConfigError(
                f"{flag} {items} does not divide among --.workers {workers}; take "
                f"{items // workers * workers or workers} or {math.ceil(items / workers) * workers}."
            )
        share = self.per_worker
        if share % self.micro:
            sizes = [size for size in range(1, share + 1) if share % size == 0]
            raise ConfigError(
                f"a worker has {share} items of each step ({items} over {workers} workers), which "
                f"--.micro-batch {self.micro} does not divide; take one of {sizes}."
            )
