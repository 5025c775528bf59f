"""What one forward pass reads: images, and masks that each belong to one of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from samtok import mask_resize
from samtok.config import MaskTokenizerConfig
from samtok.images import resize_square
from samtok.masks import RunMask
from samtok.model.prompts import MaskPrompts


@dataclass(frozen=True)
class Batch:
    """Images, and masks that each belong to one of them.

    Attributes:
        prompts: What the mask encoder reads, in [0, 1], at the model's mask size.
        targets: What logits are compared with, in [0, 1], at the model's mask size; see ``build_batch``.
        keys: A number per mask, at least 0, from which the points of its losses follow. It depends on the
            run's seed, the draw and the place of the mask among those drawn of its image, and nothing else.
    """

    pixels: UInt8[Tensor, "image height width 3"]  # RGB squares at the model's image size
    image_index: Int[Tensor, " mask"]  # the image of each mask
    prompts: Float[Tensor, "mask 1 size size"]
    boxes: Float[Tensor, "mask 4"]  # x0, y0, x1, y1 over width and height, in [0, 1]
    targets: Float[Tensor, "mask size size"]
    keys: Int[Tensor, " mask"]

    def __len__(self) -> int:
        return len(self.image_index)

    def to(self, device: torch.device | str) -> "Batch":
        """Returns the batch on a device; from pinned memory the copies overlap with arithmetic."""
        return Batch(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})

    def pin_memory(self) -> "Batch":
        """Returns the batch in memory from which a GPU copies by itself; DataLoader asks for it."""
        return Batch(**{name: value.pin_memory() for name, value in vars(self).items()})


@dataclass
class MicroBatch:
    """What one forward pass of one worker sees; ``counts`` has images and masks that were drawn, rejected and
    filtered."""

    batch: Batch
    names: list[str]  # ``dataset/image id`` of the images
    rejects: list[dict[str, Any]]  # entries of the reject table for images that were drawn and replaced
    counts: dict[str, int] = field(default_factory=dict)

    def pin_memory(self) -> "MicroBatch":
        """See ``Batch.pin_memory``."""
        return replace(self, batch=self.batch.pin_memory())


def build_batch(
    images: Sequence[np.ndarray],
    masks: Sequence[RunMask],
    image_index: Sequence[int],
    model: MaskTokenizerConfig,
    *,
    keys: Int[np.ndarray, " mask"],
    targets: Literal["area", "nearest"] = "area",
) -> Batch:
    """Prepares RGB uint8 images of any sizes and their masks; raises ValueError if a mask is empty."""
    squares = [
        image if image.shape[:2] == (model.image_size,) * 2 else resize_square(image, model.image_size)
        for image in images
    ]
    soft, boxes = MaskPrompts.of(masks, model.mask_size).on("cpu")
    resize = {"area": mask_resize.area, "nearest": mask_resize.nearest}[targets]
    return Batch(
        pixels=torch.from_numpy(np.stack(squares)),
        image_index=torch.as_tensor(image_index, dtype=torch.int64),
        prompts=soft,
        boxes=boxes,
        targets=torch.from_numpy(resize(masks, model.mask_size).dense()),
        keys=torch.from_numpy(keys),
    )


def joined(batches: Sequence[Batch]) -> Batch:
    """Returns one batch with the images and masks of all, in their order."""
    parts = {f.name: torch.cat([getattr(batch, f.name) for batch in batches]) for f in fields(Batch)}
    before = np.cumsum([0, *(len(batch.pixels) for batch in batches[:-1])]).tolist()
    owners = [batch.image_index + first for batch, first in zip(batches, before, strict=True)]
    return Batch(**(parts | {"image_index": torch.cat(owners)}))
