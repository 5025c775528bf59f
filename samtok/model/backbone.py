"""The image encoder and the features that masks attend to.

``Hiera``, ``FpnNeck`` and ``ImageEncoder`` are SAM2's own modules, built here from numbers: no configuration
search path and no working directory is involved. ``ConvTrunk`` is a small trunk of ours for models that are
trained from scratch on a CPU. An image is encoded once, whatever the number of its masks.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
from torch import Tensor, nn

from samtok.config import BackboneConfig


@dataclass(frozen=True)
class ImageFeatures:
    """Features of a batch of images; ``s`` is the side of the coarse map (64 at 1024 px).

    Attributes:
        fine, middle: Decoder skips of 4s x 4s and 2s x 2s cells, already projected by the mask decoder.
        coarse: What masks attend to, s x s cells, with the learned no-memory embedding added.
    """

    fine: Float[Tensor, "image c0 h0 w0"]
    middle: Float[Tensor, "image c1 h1 w1"]
    coarse: Float[Tensor, "image dim s s"]

    def __len__(self) -> int:
        return self.coarse.shape[0]

    def of_masks(self, image_index: Int[Tensor, " mask"]) -> "ImageFeatures":
        """Repeats each image's features for its masks."""
        levels = (self.fine, self.middle, self.coarse)
        return ImageFeatures(*(level.index_select(0, image_index) for level in levels))


class NoPositions(nn.Module):
    """Stands in for the neck's sine positions, which only SAM2's video memory uses."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:0]


class ResidualBlock(nn.Module):
    """Two dense 3x3 convolutions with group norm and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width),
        )

    def forward(self, x: Float[Tensor, "image c h w"]) -> Float[Tensor, "image c h w"]:
        return nn.functional.gelu(x + self.body(x))


class ConvTrunk(nn.Module):
    """A residual net with one output per level, finest first, in the place of Hiera.

    The first level has ``stem_stride`` pixels per cell; each further one halves the resolution.
    """

    def __init__(self, widths: tuple[int, ...], blocks: tuple[int, ...], stem_stride: int) -> None:
        super().__init__()
        self.channel_list = list(widths[::-1])  # the neck wants the coarsest first
        self.levels = nn.ModuleList()
        previous, stride = 3, stem_stride
        for width, depth in zip(widths, blocks, strict=True):
            kernel = 2 * stride - 1
            down = nn.Conv2d(previous, width, kernel, stride=stride, padding=kernel // 2)
            self.levels.append(nn.Sequential(down, *[ResidualBlock(width) for _ in range(depth)]))
            previous, stride = width, 2

    def forward(self, x: Float[Tensor, "image 3 height width"]) -> list[Tensor]:
        features = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features


def build_image_encoder(config: BackboneConfig, dim: int) -> ImageEncoder:
    """Builds trunk, neck and encoder; the three levels that it returns go from fine to coarse."""
    if config.kind == "hiera":
        trunk: nn.Module = Hiera(
            embed_dim=config.embed_dim,
            num_heads=config.num_heads,
            stages=config.stages,
            global_att_blocks=config.global_att_blocks,
            window_pos_embed_bkg_spatial_size=config.window_pos_embed_bkg_spatial_size,
            window_spec=config.window_spec,
        )
    else:
        trunk = ConvTrunk(config.widths, config.stages, config.stem_stride)
    neck = FpnNeck(
        position_encoding=NoPositions(),
        d_model=dim,
        backbone_channel_list=trunk.channel_list,  # type: ignore[arg-type]
        fpn_top_down_levels=list(config.fpn_top_down_levels),
        fpn_interp_model="nearest",
    )
    return ImageEncoder(trunk=trunk, neck=neck, scalp=config.scalp)


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize(pixels: UInt8[Tensor, "image height width 3"]) -> Float[Tensor, "image 3 height width"]:
    """Turns uint8 RGB into what the backbone was trained on: ImageNet mean and deviation, channels first."""
    mean = torch.tensor(IMAGENET_MEAN, device=pixels.device)
    std = torch.tensor(IMAGENET_STD, device=pixels.device)
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
