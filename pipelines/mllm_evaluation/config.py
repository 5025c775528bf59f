"""What can be told to ``jobs/evaluate_mllm.py``, and its presets."""

from dataclasses import dataclass, field
from typing import Literal

import tyro

from pipelines.cli import FORBID_UNKNOWN, refuse_password
from samtok.errors import ConfigError

TASKS: dict[str, tuple[str, ...]] = {
    "gres": ("gres",),
    "res": ("res",),
    "rec": ("grounding", "res"),
}
"""Tasks of chat rows that a benchmark is asked of."""


THIS_RUN, BASELINE = TAKEN = ("this run", "always No target.")
"""Columns that every table of numbers has."""


@dataclass(frozen=True, kw_only=True)
class ActorsConfig:
    """Where the work runs."""

    __pydantic_config__ = FORBID_UNKNOWN

    actors: int = 1
    """Actors, each with the model and the mask tokenizer."""
    gpus_per_actor: float | None = None
    """GPUs each actor holds, fractions allowed; 0 is the CPU. By default 1 if this machine has one."""
    cpus_per_actor: float = 1.0
    """CPUs each actor holds."""
    threads_per_actor: int = 1
    """Threads of each actor's arithmetic; part of the plan, since low bits may depend on it."""
    num_cpus: int | None = None
    """Logical CPUs of a Ray that the job starts; by default the machine's, and at least enough."""

    def __post_init__(self) -> None:
        for name in ("actors", "threads_per_actor"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"--pool.{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}"
                )
        for name in ("gpus_per_actor", "cpus_per_actor"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(
                    f"--pool.{name.replace('_', '-')} cannot be negative, got {getattr(self, name)}"
                )


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How answers are generated. Always greedy."""

    __pydantic_config__ = FORBID_UNKNOWN

    max_new_tokens: int = 128
    """Longest answer in tokens."""
    batch_size: int = 16
    """Questions per pass, of similar length; part of the plan, since low bits may depend on it."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the model's weights and arithmetic."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Implementation of attention."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ConfigError(f"--generation.{flag} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class EvaluateMllmConfig:
    """An MLLM answers the questions of a chat corpus in mask words and is scored."""

    __pydantic_config__ = FORBID_UNKNOWN

    benchmark: Literal["gres", "res", "rec"]
    """What is scored: generalised referring segmentation, referring segmentation, or boxes."""
    model: str
    """Checkpoint folder of the MLLM, local or s3://, whose vocabulary has the mask words."""
    chat: str
    """Corpus of chats, as written by jobs/compose_dialogues.py with masks kept."""
    out: str
    """URI of the folder that receives answers, numbers and report: a local path or s3://bucket/prefix."""
    tokenizer: str = "tiny"
    """Mask tokenizer that decodes the words: a shipped name (tiny), or a folder, local or s3://."""
    tasks: tuple[str, ...] = ()
    """Tasks of chat rows to ask; by default gres for gres, res for res, and grounding and res for rec."""
    turns: Literal["last", "first", "all"] = "last"
    """Which questions of a chat are asked. What comes before is that of the corpus, true answers included."""
    grammar: bool = True
    """Let mask words be well-formed only; without it a model may write broken ones, which are counted."""
    broken_words: Literal["drop", "depth1"] = "drop"
    """In strict mode: leave a broken word out, or decode its first code alone. Official mode repairs it."""
    scored_part: Literal["whole", "answer"] = "whole"
    """Score all of the text, or only its answer where it has <think> and <answer> tags."""
    min_pixels: int = 0
    """GRES: a predicted mask with fewer pixels counts as no target; 0 for the paper's numbers."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    pool: ActorsConfig = field(default_factory=ActorsConfig)
    beside: tuple[str, ...] = ()
    """Finished runs to show beside this one, each as NAME=RUN_FOLDER, with the same questions."""
    shard_rows: int = 32
    """Images per shard: what a killed run repeats at most, per actor."""
    max_reject_rate: float = 1.0
    """The job fails (exit code 3) if a larger share of the questions cannot be asked."""
    limit: int | None = None
    """Take only the first images of the corpus."""
    seed: int = 0
    """Draws the pictures of the report."""
    tracking: str = "sqlite:///mlflow.db"
    """MLflow tracking URI, or off."""
    report_pictures: int = 12
    """Questions drawn at random, and as many of the best and of the worst; 0 writes no report."""
    dry_run: bool = False
    """Print the resolved config, the checks and the size of the plan, and write nothing."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit must be at least 1, got {self.limit}")
        if self.shard_rows < 1:
            raise ConfigError(f"--shard-rows must be at least 1, got {self.shard_rows}")
        for name in ("min_pixels", "report_pictures"):
            if getattr(self, name) < 0:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} cannot be negative, got {getattr(self, name)}")
        if not 0 <= self.max_reject_rate <= 1:
            raise ConfigError(
                f"--max-reject-rate is a share and must lie in [0, 1], got {self.max_reject_rate}"
            )
        for text in self.beside:
            name, _, folder = text.partition("=")
            if not name or not folder:
                raise ConfigError(f"--beside wants NAME=RUN_FOLDER, got {text!r}")
            if name in TAKEN:
                raise ConfigError(f"--beside: the name {name!r} is taken by a column of the tables")
        names = [text.partition("=")[0] for text in self.beside]
        if len(set(names)) < len(names):
            raise ConfigError(f"--beside names a run twice: {', '.join(names)}")
        refuse_password(self.tracking)

    @property
    def asked_tasks(self) -> tuple[str, ...]:
        """Tasks of the chat rows that are asked."""
        return self.tasks or TASKS[self.benchmark]


_REQUIRED = tyro.MISSING

PRESETS: dict[str, EvaluateMllmConfig] = {
    # A tiny model on a small corpus of chats, on two CPU cores.
    "smoke": EvaluateMllmConfig(
        benchmark="gres",
        model=_REQUIRED,
        chat=_REQUIRED,
        out=_REQUIRED,
        generation=GenerationConfig(max_new_tokens=16, batch_size=32),
        shard_rows=8,
        limit=32,
        report_pictures=4,
    ),
    # The trained tiny model of the tour on held-out images, beside the untrained one.
    "tour": EvaluateMllmConfig(
        benchmark="gres",
        model="runs/tour/mllm/final",
        chat="runs/tour/chats-val",
        out="runs/tour/evaluation",
        tokenizer="tour",
        generation=GenerationConfig(max_new_tokens=40, batch_size=64),
        beside=("untrained=runs/tour/evaluation-untrained",),
    ),
    "tour-untrained": EvaluateMllmConfig(
        benchmark="gres",
        model="runs/tour/untrained",
        chat="runs/tour/chats-val",
        out="runs/tour/evaluation-untrained",
        tokenizer="tour",
        generation=GenerationConfig(max_new_tokens=40, batch_size=64),
        report_pictures=0,
    ),
    # gRefCOCO as in Table 3 of the paper: greedy, 128 new tokens, no least number of pixels. The published
    # numbers are those of the section "official" in metrics.json. Not run yet.
    "paper-gres": EvaluateMllmConfig(
        benchmark="gres",
        model=_REQUIRED,
        chat=_REQUIRED,
        out=_REQUIRED,
        tokenizer=_REQUIRED,
        generation=GenerationConfig(batch_size=32, dtype="bfloat16", attention="sdpa"),
        pool=ActorsConfig(actors=1, gpus_per_actor=1.0),
        shard_rows=64,
    ),
}
