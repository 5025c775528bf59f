"""What can be told to every training job: optimizer, workers, checkpoints."""

from dataclasses import dataclass

from pipelines.cli import FORBID_UNKNOWN
from samtok.errors import ConfigError


def check_at_least(flag: str, value: float, least: float) -> None:
    """Raises ConfigError for a value below the least one that makes sense."""
    if value < least:
        raise ConfigError(f"--{flag} must be at least {least:g}, got {value:g}")


def check_share(flag: str, value: float) -> None:
    """Raises ConfigError for a value outside [0, 1]."""
    if not 0 <= value <= 1:
        raise ConfigError(f"--{flag} must be in [0, 1], got {value:g}")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule: linear warm-up, then a cosine."""

    __pydantic_config__ = FORBID_UNKNOWN

    lr: float = 2e-3
    """Highest learning rate."""
    warmup_steps: int = 100
    """Steps over which the rate rises from 0."""
    final_lr_share: float = 0.02
    """Share of the highest rate that is left at the last step."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's decay rates."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; longer ones are scaled down to it."""

    def __post_init__(self) -> None:
        check_at_least("optimizer.lr", self.lr, 0)
        check_at_least("optimizer.warmup-steps", self.warmup_steps, 0)
        check_at_least("optimizer.weight-decay", self.weight_decay, 0)
        check_share("optimizer.final-lr-share", self.final_lr_share)
        if self.clip_norm <= 0:
            raise ConfigError(f"--optimizer.clip-norm must be above 0, got {self.clip_norm:g}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"--optimizer.betas must be in [0, 1), got {self.betas}")


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """Where training runs."""

    __pydantic_config__ = FORBID_UNKNOWN

    count: int = 1
    """Workers of Ray Train; each has a share of every step."""
    gpus: float | None = None
    """GPUs per worker; 0 is the CPU. By default 1 if the driver's machine has one."""
    cpus: float = 1.0
    """CPUs per worker that Ray reserves."""
    threads: int = 1
    """Threads of each worker's arithmetic; with one, a run on CPUs repeats bit for bit."""
    loaders: int = 0
    """Processes per worker that read and prepare images; 0 does it in the worker."""
    max_failures: int = 3
    """Times that dead workers are replaced; each time training goes on from the last checkpoint."""
    num_cpus: int | None = None
    """Logical CPUs of a Ray that the job starts; by default the machine's, and at least enough."""

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("threads", 1), ("loaders", 0), ("max_failures", 0), ("cpus", 0)):
            check_at_least(f"workers.{name.replace('_', '-')}", getattr(self, name), least)
        if self.gpus not in (None, 0, 1):
            raise ConfigError(f"--workers.gpus must be 0 or 1, got {self.gpus:g}: a worker drives one GPU")


@dataclass(frozen=True, kw_only=True)
class CheckpointsConfig:
    """What survives a kill."""

    __pydantic_config__ = FORBID_UNKNOWN

    every: int = 500
    """Steps between checkpoints."""
    keep: int = 2
    """Newest checkpoints that are kept."""

    def __post_init__(self) -> None:
        check_at_least("checkpoints.every", self.every, 1)
        check_at_least("checkpoints.keep", self.keep, 1)
