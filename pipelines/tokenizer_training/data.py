"""Batches for tokenizer training: what the model reads of some images and their masks.

``scene_batch`` makes a batch out of synthetic scenes as a pure function of (config, step), so a run that is
resumed at a step sees what an uninterrupted one saw.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from pipelines.tokenizer_training.config import HELD_OUT_START, TrainTokenizerConfig
from samtok.config import PRESETS as ARCHITECTURES
from samtok.config import MaskTokenizerConfig
from samtok.images import resize_square
from samtok.model.prompts import mask_prompts, normalized_boxes
from samtok.shapes import Scene, WorldConfig, make_scene


@dataclass(frozen=True)
class Batch:
    """Images, and masks that each belong to one of them.

    Attributes:
        pixels: RGB squares at the model's image size.
        image_index: The image of each mask.
        prompts: What the mask encoder reads, in [0, 1], at the model's mask size.
        boxes: x0, y0, x1, y1 over width and height, in [0, 1].
        targets: Share of each pixel that is inside, in [0, 1], at the model's mask size.
    """

    pixels: UInt8[Tensor, "image height width 3"]
    image_index: Int[Tensor, " mask"]
    prompts: Float[Tensor, "mask 1 size size"]
    boxes: Float[Tensor, "mask 4"]
    targets: Float[Tensor, "mask size size"]

    def __len__(self) -> int:
        return len(self.image_index)

    def to(self, device: torch.device | str) -> "Batch":
        """Returns the batch on a device."""
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})


def build_batch(
    images: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    image_index: Sequence[int],
    model: MaskTokenizerConfig,
) -> Batch:
    """Prepares RGB uint8 images of any sizes and the bool masks that belong to them.

    Raises:
        ValueError: If a mask is empty.
    """
    squares = [
        image if image.shape[:2] == (model.image_size,) * 2 else resize_square(image, model.image_size)
        for image in images
    ]
    return Batch(
        pixels=torch.from_numpy(np.stack(squares)),
        image_index=torch.as_tensor(image_index, dtype=torch.int64),
        prompts=mask_prompts(masks, model.mask_size, "cpu"),
        boxes=torch.from_numpy(normalized_boxes(masks)),
        targets=area_targets(masks, model.mask_size),
    )


def area_targets(masks: Sequence[np.ndarray], size: int) -> Float[Tensor, "mask size size"]:
    """Returns the share of every cell of a ``size`` x ``size`` grid that lies inside each mask."""
    targets = torch.empty(len(masks), size, size)
    for i, mask in enumerate(masks):
        full = torch.from_numpy(mask).float()[None, None]
        targets[i] = torch.nn.functional.adaptive_avg_pool2d(full, size)[0, 0]
    return targets


def scene_batch(config: TrainTokenizerConfig, step: int) -> Batch:
    """Makes the batch of a training step: new scenes, and of their masks at most ``max_masks_per_step``."""
    first = step * config.images_per_step
    scenes = [make_scene(config.seed, first + i, config.world) for i in range(config.images_per_step)]
    owned = [(i, shape.mask) for i, scene in enumerate(scenes) for shape in scene.objects]
    if len(owned) > config.max_masks_per_step:
        rng = np.random.default_rng([config.seed, step, 1])
        kept = np.sort(rng.permutation(len(owned))[: config.max_masks_per_step])
        owned = [owned[i] for i in kept]
    owners, masks = zip(*owned, strict=True)
    return build_batch([scene.image for scene in scenes], masks, owners, ARCHITECTURES[config.model])


def held_out_scenes(world: WorldConfig, *, seed: int, count: int) -> list[Scene]:
    """Returns scenes that no training step makes, whatever its seed."""
    return [make_scene(seed, HELD_OUT_START + i, world) for i in range(count)]
