"""What can be told to ``jobs/cold_start.py``, and its presets."""

from dataclasses import dataclass, field
from typing import Literal

import tyro

from pipelines.cli import FORBID_UNKNOWN, refuse_password
from pipelines.mllm_evaluation.config import ActorsConfig
from pipelines.schema import CHAT_TASKS
from pipelines.shards import ROW_GROUP_ROWS
from pipelines.training.config import check_at_least
from samtok.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Who writes the thoughts: a model, or whoever wrote a file of replies."""

    __pydantic_config__ = FORBID_UNKNOWN

    model: str | None = None
    """Checkpoint folder, local or s3://, of an MLLM that knows the mask words."""
    replies: str | None = None
    """JSONL, local or s3://, with {"sample_id": ..., "reply": ...} per line, of any model."""
    sees_answer: bool = True
    """The teacher is told the right answer and explains it, and that answer is kept. Otherwise it answers by
    itself after its thought, and that answer is kept if its reward is high enough."""
    max_new_tokens: int = 512
    """Longest reply in tokens."""
    temperature: float = 0.0
    """Of the sampling; 0 takes the likeliest token."""
    batch_size: int = 8
    """Samples per pass, of similar length; part of the plan, since low bits may depend on it."""
    shard_rows: int = 64
    """Samples per shard of replies: what a killed run repeats at most, per actor."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the model's weights and arithmetic."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Implementation of attention."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size", "shard_rows"):
            check_at_least(f"teacher.{name.replace('_', '-')}", getattr(self, name), 1)
        check_at_least("teacher.temperature", self.temperature, 0)


@dataclass(frozen=True, kw_only=True)
class ColdStartConfig:
    """A corpus of chats becomes one whose answers are thought about first."""

    __pydantic_config__ = FORBID_UNKNOWN

    chats: str
    """Corpus of chats (jobs/compose_dialogues.py); the last answer of a chat is thought about."""
    out: str
    """URI of the folder that receives the new corpus of chats: a local path or s3://bucket/prefix."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """Who writes the thoughts."""
    tasks: tuple[str, ...] = ()
    """Tasks of chat rows that are taken; by default all."""
    min_reward: float = 1.0
    """Least mask-word reward of a sample that is kept; 1 for exactly the true words."""
    pool: ActorsConfig = field(default_factory=ActorsConfig)
    """Where a teacher model runs."""
    shard_rows: int = 256
    """Most samples per shard of the new corpus, a multiple of 64."""
    max_reject_rate: float = 1.0
    """The job fails (exit code 3) if a larger share of the replies is unusable."""
    limit: int | None = None
    """Take only the first samples of the corpus."""
    seed: int = 0
    """Of the teacher's sampling, and of what the report draws."""
    tracking: str = "sqlite:///mlflow.db"
    """MLflow tracking URI, or off."""
    report_samples: int = 24
    """Samples that are drawn in report/index.html; 0 writes no report."""
    dry_run: bool = False
    """Print the resolved config, the checks and the size of the plan, and write nothing."""

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task not in CHAT_TASKS:
                raise ConfigError(f"--tasks: expected some of {', '.join(CHAT_TASKS)}, got {task!r}")
        for name in ("min_reward", "max_reject_rate"):
            if not 0 <= getattr(self, name) <= 1:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} must lie in [0, 1], got {getattr(self, name)}")
        check_at_least("report-samples", self.report_samples, 0)
        check_at_least("seed", self.seed, 0)
        if self.limit is not None:
            check_at_least("limit", self.limit, 1)
        if self.shard_rows < 1 or self.shard_rows % ROW_GROUP_ROWS:
            raise ConfigError(
                f"--shard-rows must be a multiple of {ROW_GROUP_ROWS}, the rows that are read at a time, got "
                f"{self.shard_rows}"
            )
        refuse_password(self.tracking)


_REQUIRED = tyro.MISSING

PRESETS: dict[str, ColdStartConfig] = {
    # A few samples with a tiny teacher or a small file of replies, on two CPU cores.
    "smoke": ColdStartConfig(
        chats=_REQUIRED,
        out="runs/smoke/thoughts",
        teacher=TeacherConfig(max_new_tokens=32, batch_size=16, shard_rows=16),
        limit=64,
        report_samples=4,
    ),
    # Section 3.2: 26k samples, thoughts by Qwen3-VL-235B, which has no mask words of its own, so they come as
    # a file of replies; GRES with its chats without a target, and GCG. The teacher is told the answer, and
    # lengths and sampling are ours. Not run yet.
    "authors": ColdStartConfig(
        chats=_REQUIRED,
        out=_REQUIRED,
        teacher=TeacherConfig(max_new_tokens=1024, dtype="bfloat16", batch_size=16),
        tasks=("gres", "gcg"),
    ),
}
