"""Architecture of a mask tokenizer: every number in one place, saved beside the weights.

``PRESETS`` holds the four SAM2.1 sizes (numbers of ``configs/sam2.1/*.yaml`` in the ``sam2`` package),
``tiny`` (the embedded default) and ``micro`` (unit tests).
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

from samtok.errors import CheckpointError

FORMAT, FORMAT_VERSION = "samtok.mask_tokenizer", 1
SYNTHETIC = "synthetic shapes"


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The image encoder: a trunk and the widths of its levels, from fine to coarse."""

    kind: Literal["hiera", "conv"]
    """``hiera`` is SAM2's trunk, ``conv`` a small residual net that trains from scratch."""
    embed_dim: int = 96
    """Width of the first Hiera stage; it doubles at each of the next three."""
    num_heads: int = 1
    """Attention heads of the first Hiera stage."""
    stages: tuple[int, ...] = (1, 2, 7, 2)
    """Hiera blocks per stage, or residual blocks per level of the ``conv`` trunk."""
    global_att_blocks: tuple[int, ...] = (5, 7, 9)
    """Hiera blocks that attend over the whole image."""
    window_pos_embed_bkg_spatial_size: tuple[int, int] = (7, 7)
    """Size of Hiera's learned background position grid."""
    window_spec: tuple[int, ...] = (8, 4, 14, 7)
    """Hiera's attention window per stage."""
    widths: tuple[int, ...] = (16, 32, 64)
    """Channels of the ``conv`` trunk's levels."""
    stem_stride: int = 4
    """Pixels per cell of the finest level of the ``conv`` trunk; it doubles at each next one."""
    fpn_top_down_levels: tuple[int, ...] = (2, 3)
    """Levels that receive features from the coarser ones."""
    scalp: int = 1
    """Coarsest levels that are dropped after the neck; three must remain."""


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """How an embedding becomes codes (paper, Eq. 2 and section D)."""

    kind: Literal["rq", "vq", "fsq"] = "rq"
    """``rq`` is residual quantization, ``vq`` one codebook and one word, ``fsq`` rounds a few scalars."""
    num_codes: int = 256
    """Entries of each codebook, so the different words of a level."""
    num_levels: int = 2
    """Residual steps: the number of words of a mask."""
    shared: bool = False
    """Whether all levels of ``rq`` look into one codebook instead of one each."""
    grid: tuple[int, ...] = ()
    """Steps of each scalar of an ``fsq`` word, such as (8, 8, 4); their product is ``num_codes``."""

    def __post_init__(self) -> None:
        if self.kind not in ("rq", "vq", "fsq"):
            raise ValueError(f"kind must be rq, vq or fsq, got {self.kind!r}.")
        if self.num_codes < 2 or self.num_levels < 1:
            raise ValueError(
                f"num_codes must be >= 2 and num_levels >= 1, got {self.num_codes} and {self.num_levels}."
            )
        if self.kind == "vq" and self.num_levels != 1:
            raise ValueError(
                f"vq has one codebook and one word: set num_levels to 1, got {self.num_levels}, or use rq."
            )
        if self.shared and self.kind != "rq":
            raise ValueError(f"shared gives all levels of rq one codebook; {self.kind} has no such option.")
        if self.kind == "fsq":
            self._check_grid()
        elif self.grid:
            raise ValueError(f"grid belongs to fsq, got {self.grid} with {self.kind}; leave it empty.")

    @property
    def num_words(self) -> int:
        """Different words that masks are written with."""
        return self.num_levels * self.num_codes

    @property
    def bits_per_mask(self) -> float:
        """Information that the codes of a mask can carry."""
        return self.num_levels * math.log2(self.num_codes)

    def _check_grid(self) -> None:
        if not self.grid or not all(2 <= size <= 256 for size in self.grid):
            raise ValueError(
                f"fsq needs a grid with 2 to 256 steps for each scalar, such as (8, 8, 4), got {self.grid}."
            )
        if math.prod(self.grid) != self.num_codes:
            raise ValueError(
                f"grid {self.grid} has {math.prod(self.grid)} points and num_codes is {self.num_codes}; "
                "they must be equal."
            )


@dataclass(frozen=True, kw_only=True)
class MaskTokenizerConfig:
    """All that is needed to build a ``MaskTokenizer`` before its weights are loaded."""

    image_size: int
    """Side of the square image that the backbone sees, in pixels."""
    dim: int = 256
    """Width of features, prompts and mask embeddings."""
    num_heads: int = 8
    """Heads of the two-way transformers."""
    mlp_dim: int = 2048
    """Hidden width of the two-way transformers."""
    depth: int = 2
    """Layers of each two-way transformer."""
    multimask: bool = True
    """Decode three masks and keep the one with the highest predicted IoU, as SAM2 does; False decodes one."""
    object_score: bool = True
    """Whether the decoder has SAM2.1's object score head (it never suppresses a mask here)."""
    backbone: BackboneConfig
    quantizer: QuantizerConfig = QuantizerConfig()
    trained_on: str = ""
    """What it has seen, where that is no corpus of images: ``SYNTHETIC``. No part of the architecture."""

    def __post_init__(self) -> None:
        if self.image_size % self.stride:
            raise ValueError(f"image_size must be a multiple of {self.stride}, got {self.image_size}.")
        scalars = self.quantizer.num_levels * len(self.quantizer.grid)
        if scalars > self.dim:
            raise ValueError(
                f"{self.quantizer.num_levels} words on grid {self.quantizer.grid} need {scalars} scalars, "
                f"but an embedding has dim {self.dim}; take fewer scalars per word or fewer words."
            )

    @property
    def stride(self) -> int:
        """Image pixels per cell of the coarsest feature level that is kept."""
        return 16 if self.backbone.kind == "hiera" else 4 * self.backbone.stem_stride

    @property
    def feature_size(self) -> int:
        """Side of the feature map that masks attend to, in cells."""
        return self.image_size // self.stride

    @property
    def mask_size(self) -> int:
        """Side of mask prompts and of decoded logits, in pixels (256 at 1024 px, as in SAM)."""
        return 4 * self.feature_size

    @property
    def architecture(self) -> "MaskTokenizerConfig":
        """The same without what it has seen; its text decides fingerprints."""
        return dataclasses.replace(self, trained_on="")

    def to_json(self) -> str:
        """Returns the text of ``config.json``."""
        body = {"format": FORMAT, "format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        for later in ("shared", "grid"):  # left out where unset: the text of older configs stays as it was
            if not body["quantizer"][later]:
                del body["quantizer"][later]
        if not self.trained_on:
            del body["trained_on"]
        return json.dumps(body, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str = "config.json") -> "MaskTokenizerConfig":
        """Reads ``config.json``; unknown or missing fields are named in a ``CheckpointError``."""
        try:
            body = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{where} is not JSON: {error}.") from error
        if not isinstance(body, dict) or body.pop("format", None) != FORMAT:
            raise CheckpointError(f'{where} is not a mask tokenizer: "format" must be "{FORMAT}".')
        version = body.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{where} has format version {version!r}; this release reads {FORMAT_VERSION}. Update samtok."
            )
        body["backbone"] = _build(BackboneConfig, body.get("backbone", {}), f"{where}: backbone")
        body["quantizer"] = _build(QuantizerConfig, body.get("quantizer", {}), f"{where}: quantizer")
        return _build(cls, body, where)


def _build(kind: type, fields: dict[str, Any], where: str) -> Any:
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise CheckpointError(f"{where} has unknown fields {unknown}; known ones are {sorted(known)}.")
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: {error}") from error


def _sam2(**backbone: Any) -> MaskTokenizerConfig:
    return MaskTokenizerConfig(image_size=1024, backbone=BackboneConfig(kind="hiera", **backbone))


def _from_scratch(image_size: int, widths: tuple[int, ...], num_codes: int) -> MaskTokenizerConfig:
    return MaskTokenizerConfig(
        image_size=image_size,
        dim=64,
        num_heads=4,
        mlp_dim=256,
        multimask=False,
        object_score=False,
        backbone=BackboneConfig(
            kind="conv", widths=widths, stages=(1, 1, 1), fpn_top_down_levels=(0, 1, 2), scalp=0
        ),
        quantizer=QuantizerConfig(num_codes=num_codes),
    )


PRESETS: dict[str, MaskTokenizerConfig] = {
    "sam2.1-tiny": _sam2(),
    "sam2.1-small": _sam2(stages=(1, 2, 11, 2), global_att_blocks=(7, 10, 13)),
    "sam2.1-base-plus": _sam2(
        embed_dim=112,
        num_heads=2,
        stages=(2, 3, 16, 3),
        global_att_blocks=(12, 16, 20),
        window_pos_embed_bkg_spatial_size=(14, 14),
    ),
    "sam2.1-large": _sam2(
        embed_dim=144,
        num_heads=2,
        stages=(2, 6, 36, 4),
        global_att_blocks=(23, 33, 43),
        window_spec=(8, 4, 16, 8),
    ),
    "tiny": _from_scratch(128, (16, 32, 64), 256),
    "micro": _from_scratch(64, (16, 32, 64), 64),
}
