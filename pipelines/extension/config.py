"""Options of ``jobs/extend_mllm.py``, and its presets."""

import dataclasses
from typing import Literal

import tyro

from pipelines.config import AtLeast1, Place, RunConfig, ShippedPlace, config
from samtok.errors import ConfigError
from samtok.mllm.tiny.config import TinyConfig


@config
class ImageConfig:
    """How large the model sees images; written into its processor, and obeyed wherever the model is loaded.

    For Qwen-VLs. Qwen2.5-VL makes a token of 28 x 28 pixels, Qwen3-VL and Qwen3.5 of 32 x 32. By default the
    limits stay that --model has, of which Qwen2.5-VL's let 12 Mpx become 16,000 tokens.
    """

    min_pixels: AtLeast1 | None = None
    """Images of fewer pixels are enlarged to about that many."""
    max_pixels: AtLeast1 | None = None
    """Images of more pixels are reduced to about that many."""

    def check(self) -> None:
        """Checks what both limits decide together."""
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ConfigError(
                f"--.min-pixels {self.min_pixels} is above --.max-pixels {self.max_pixels}; swap them."
            )


@config
class ExtendMllmConfig(RunConfig):
    """A checkpoint learns the names of the mask words; their meaning comes with jobs/train_mllm.py.

    --out must be empty. --seed draws the new rows, and all weights of a --tiny model; --limit is of --chats.
    """

    tracking: str | None = "off"
    """MLflow tracking URI, or off."""
    model: ShippedPlace | None = None
    """Checkpoint of Hugging Face's (Qwen2.5-VL, Qwen3-VL, Qwen3.5, PerceptionLM): a folder, local or s3://,
    or its hub id, owner/name."""
    tiny: str | None = None
    """Instead of --model: build a tiny random one of this family (qwen2_5_vl, qwen3_vl, qwen3_5,
    perception_lm, or one of yours: docs/families.md)."""
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
    image: ImageConfig = ImageConfig()
    """How large it sees images."""
    carry_tokenizer: bool = False
    """Write the mask tokenizer beside the model as well, as the authors' checkpoints have it
    (mask_tokenizer_256x2.pth): --out is then a --model and a --tokenizer in one."""
    sam2: Place | None = None
    """With --carry-tokenizer: file sam2.1_hiera_*.pt of the tokenizer's size, which the authors' own code
    needs beside; samtok does not."""
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
        if self.sam2 is not None and not self.carry_tokenizer:
            raise ConfigError("--.sam2 lies beside the tokenizer of --.carry-tokenizer; give both or none.")
        if self.chats is not None and self.tiny is None:
            raise ConfigError(
                "--.chats trains the text tokenizer of a --.tiny model; a --.model has its own."
            )
        if self.vision == "tiny" and self.tiny != "qwen2_5_vl":
            raise ConfigError(
                "--.vision tiny is for --.tiny qwen2_5_vl; a --.model has its own vision encoder."
            )


_TOUR = ExtendMllmConfig(
    tiny="qwen2_5_vl",
    vision="tiny",
    rows="codebooks",
    chats="runs/tour/chats-train",
    numbers=TinyConfig(num_layers=3),
    tokenizer="tour",
    out="runs/tour/untrained",
)

PRESETS: dict[str, ExtendMllmConfig] = {
    # The tiny model that learns shapes with the shipped tokenizer; seconds, 1.4 MB.
    "smoke": ExtendMllmConfig(
        tiny="qwen2_5_vl", vision="tiny", rows="codebooks", tokenizer="tiny", out="runs/mllm"
    ),
    # The same, whose text tokenizer knows the sentences of `make tour`.
    "tour": _TOUR,
    # The same for the sentences of `make tour-tasks`.
    "tour-tasks": dataclasses.replace(
        _TOUR, chats="runs/tour-tasks/chats-train", out="runs/tour-tasks/untrained"
    ),
    # Appendix B of the paper: 256 x 2 words, rows drawn from mean and variance of the old ones. Image sizes
    # are EasyR1's (min_pixels and max_pixels of its config), on which the authors' rewards run: at most 5,350
    # tokens in Qwen2.5-VL. PerceptionLM: --image.min-pixels None --image.max-pixels None. Not run yet.
    "paper": ExtendMllmConfig(
        model=tyro.MISSING,
        tokenizer=tyro.MISSING,
        image=ImageConfig(min_pixels=262_144, max_pixels=4_194_304),
        out=tyro.MISSING,
    ),
}
