"""What can be told to ``jobs/evaluate_tokenizer.py``, and its presets."""

from dataclasses import dataclass, field

import tyro

from pipelines.cli import FORBID_UNKNOWN, refuse_password
from pipelines.tokenization.config import PoolConfig, TokenizerConfig
from samtok.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EvaluateTokenizerConfig:
    """A tokenizer is measured on whole corpora."""

    __pydantic_config__ = FORBID_UNKNOWN

    corpora: tuple[str, ...]
    """Corpora to measure on, each as reader=coco,source=FILE,images=FOLDER,dataset=NAME,split=val,limit=N or
    reader=sa1b,source=FOLDER,dataset=NAME. Their names must differ."""
    out: str
    """URI of the folder that receives numbers, words and report: a local path or s3://bucket/prefix."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    limit: int | None = None
    """Take only the first images of each corpus that states no limit of its own."""
    shard_rows: int = 256
    """Images per shard: what a killed run repeats at most, per shard in flight."""
    chunk_rows: int | None = None
    """Images per unit of work. By default as many as fill 48 MB (16 at 1024 px), at most 64."""
    max_reject_rate: float = 1.0
    """The job fails (exit code 3) if a larger share of a corpus's images or masks is unusable."""
    seed: int = 0
    """Draws the images of the report."""
    tracking: str = "sqlite:///mlflow.db"
    """MLflow tracking URI, or off."""
    report_images: int = 24
    """Images drawn at random, and about as many worst masks, in report/index.html; 0 writes no report."""
    dry_run: bool = False
    """Print the resolved config, the checks and the size of the plan, and write nothing."""

    def __post_init__(self) -> None:
        for name in ("limit", "shard_rows", "chunk_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        if not 0 <= self.max_reject_rate <= 1:
            raise ConfigError(
                f"--max-reject-rate is a share and must lie in [0, 1], got {self.max_reject_rate}"
            )
        if self.report_images < 0:
            raise ConfigError(f"--report-images cannot be negative, got {self.report_images}")
        refuse_password(self.tracking)


_REQUIRED = tyro.MISSING

PRESETS: dict[str, EvaluateTokenizerConfig] = {
    # The synthetic corpus of `make quickstart` with the shipped tokenizer, on two CPU cores.
    "smoke": EvaluateTokenizerConfig(
        corpora=(
            "reader=coco,source=runs/shapes/annotations/instances_val.json,images=runs/shapes/val,"
            "dataset=shapes,split=val",
        ),
        out="runs/evaluation",
        shard_rows=64,
    ),
    # r-Acc as in section D of the paper: the masks of EntitySeg val (low resolution), cut at the value of the
    # authors' evaluator, which prompts with masks and boxes. The corpus to name is
    # reader=coco,source=FILE,images=FOLDER,dataset=entityseg,split=val. Table 12 has 0.70 for 256x2. Not run
    # yet.
    "paper": EvaluateTokenizerConfig(
        corpora=_REQUIRED,
        out=_REQUIRED,
        tokenizer=TokenizerConfig(uri=_REQUIRED, threshold=0.5),
        pool=PoolConfig(gpus_per_actor=1.0, decoders=8),
    ),
}
