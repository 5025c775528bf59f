"""Options of ``jobs/extend_mllm.py``, and its presets."""

from typing import Literal

import tyro

from pipelines.config import AtLeast1, Place, RunConfig, ShippedPlace, config
from samtok.errors import ConfigError
from samtok.mllm.tiny.config import TinyConfig


@config
class ExtendMllmConfig(RunConfig):
    """A checkpoint learns the names of the mask words; their meaning comes with jobs/train_mllm.py.

    --out must be empty. --seed draws the new rows, and all weights of a --tiny model; --limit is of --chats.
    """

    tracking: str | None = "off"
    """MLflow tracking URI, or off."""
    model: ShippedPlace | None = None
    """Checkpoint of Hugging Face's (Qwen2.5-VL, Qwen3-VL, PerceptionLM): a folder, local or s3://, or its hub
    id, owner/name."""
    tiny: Literal["qwen2_5_vl", "qwen3_vl", "perception_lm"] | None = None
    """Instead of --model: build a tiny random one of this family."""
    numbers: TinyConfig = TinyConfig()
    """Sizes of a --tiny model."""
    chats: Place | None = None
    """Chat corpus of jobs/compose_dialogues.py whose text the text tokenizer of a --tiny model is trained on,
    so that chats have few tokens; by default sentences about shapes."""
    rows: Literal["noise", "codebooks"] = "noise"
    """First rows of the words: noise draws all of them independently (appendix B); codebooks gives near rows
    to codes that are near in the mask tokenizer, with the same mean and variance. A --tiny model, which sees
    few chats, learns places only with codebooks; what it does for released models is not measured."""
    vision: Literal["random", "tiny"] = "random"
    """First weights of a --tiny Qwen2.5-VL's vision encoder: tiny is the one that ships, which knows shapes
    (pipelines.extension.pretrain_vision)."""
    tokenizer: ShippedPlace
    """Mask tokenizer that makes the words: a shipped name, a folder (local or s3://) or a hub id."""
    pad_to_multiple_of: AtLeast1 | None = None
    """Round the rows of the embeddings up to a multiple of this, if there are too few for the words."""

    def check(self) -> None:
        """Checks what several fields decide together."""
        super().check()
        if (self.model is None) == (self.tiny is None):
            raise ConfigError(
                "give exactly one of --.model FOLDER and --.tiny FAMILY, got "
                f"--.model {self.model} and --.tiny {self.tiny}."
            )
        if self.chats is not None and self.tiny is None:
            raise ConfigError(
                "--.chats trains the text tokenizer of a --.tiny model; a --.model has its own."
            )
        if self.vision == "tiny" and self.tiny != "qwen2_5_vl":
            raise ConfigError(
                "--.vision tiny is for --.tiny qwen2_5_vl; a --.model has its own vision encoder."
            )


PRESETS: dict[str, ExtendMllmConfig] = {
    # The tiny model that learns shapes with the shipped tokenizer; seconds, 1.4 MB.
    "smoke": ExtendMllmConfig(
        tiny="qwen2_5_vl", vision="tiny", rows="codebooks", tokenizer="tiny", out="runs/mllm"
    ),
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
