"""What can be told to ``jobs/extend_mllm.py``, and its presets."""

from dataclasses import dataclass, field
from typing import Literal

import tyro

from pipelines.cli import FORBID_UNKNOWN
from samtok.errors import ConfigError
from samtok.mllm.tiny.config import TinyConfig


@dataclass(frozen=True, kw_only=True)
class ExtendMllmConfig:
    """A checkpoint learns the names of the mask words; their meaning comes with jobs/train_mllm.py."""

    __pydantic_config__ = FORBID_UNKNOWN

    out: str
    """URI of the folder that receives the checkpoint, which must be empty: a path or s3://bucket/prefix."""
    model: str | None = None
    """Checkpoint folder of Hugging Face's (Qwen2.5-VL, Qwen3-VL, PerceptionLM), local or s3://."""
    tiny: Literal["qwen2_5_vl", "qwen3_vl", "perception_lm"] | None = None
    """Instead of --model: build a tiny random one of this family."""
    numbers: TinyConfig = field(default_factory=TinyConfig)
    """Sizes of a --tiny model."""
    chats: str | None = None
    """Chat corpus of jobs/compose_dialogues.py whose text the text tokenizer of a --tiny model is trained on,
    so that chats have few tokens; by default sentences about shapes."""
    rows: Literal["noise", "codebooks"] = "noise"
    """First rows of the words: noise draws all of them independently (appendix B); codebooks gives near rows
    to codes that are near in the mask tokenizer, with the same mean and variance. A --tiny model, which sees
    few chats, learns places only with codebooks; what it does for released models is not measured."""
    vision: Literal["random", "tiny"] = "random"
    """First weights of a --tiny Qwen2.5-VL's vision encoder: tiny is the one that ships, which knows shapes
    (pipelines.extension.pretrain_vision)."""
    tokenizer: str = "tiny"
    """Mask tokenizer that makes the words: a shipped name, or a folder, local or s3://."""
    seed: int = 0
    """Draws the new rows, and all weights of a --tiny model."""
    pad_to_multiple_of: int | None = None
    """Round the rows of the embeddings up to a multiple of this, if there are too few for the words."""
    dry_run: bool = False
    """Print the resolved config and what would be made, and write nothing."""

    def __post_init__(self) -> None:
        if (self.model is None) == (self.tiny is None):
            raise ConfigError(
                "give exactly one of --model FOLDER and --tiny FAMILY, got "
                f"--model {self.model} and --tiny {self.tiny}"
            )
        if self.chats is not None and self.tiny is None:
            raise ConfigError("--chats trains the text tokenizer of a --tiny model; a --model has its own")
        if self.vision == "tiny" and self.tiny != "qwen2_5_vl":
            raise ConfigError("--vision tiny is for --tiny qwen2_5_vl; a --model has its own vision encoder")
        if self.pad_to_multiple_of is not None and self.pad_to_multiple_of < 1:
            raise ConfigError(f"--pad-to-multiple-of must be at least 1, got {self.pad_to_multiple_of}")
        if self.seed < 0:
            raise ConfigError(f"--seed must not be negative, got {self.seed}")


PRESETS: dict[str, ExtendMllmConfig] = {
    # The tiny model that learns shapes with the shipped tokenizer; seconds, 1.4 MB.
    "smoke": ExtendMllmConfig(tiny="qwen2_5_vl", vision="tiny", rows="codebooks", out="runs/mllm"),
    # The same, whose text tokenizer knows the sentences of `make tour`.
    "tour": ExtendMllmConfig(
        tiny="qwen2_5_vl",
        vision="tiny",
        rows="codebooks",
        chats="runs/tour/chats-train",
        numbers=TinyConfig(num_layers=3),
        tokenizer="tour",
        out="runs/tour/untrained",
    ),
    # Appendix B of the paper: 256 x 2 words, rows drawn from mean and variance of the old ones. Not run yet.
    "paper": ExtendMllmConfig(model=tyro.MISSING, tokenizer=tyro.MISSING, out=tyro.MISSING),
}
