"""From masks at image size to what the mask encoder reads: a small soft mask and a box."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from samtok.masks import box_of

BOX_LABELS = (2, 3)
"""SAM's point labels of a box: top-left and bottom-right corner."""


def mask_prompts(
    masks: Sequence[np.ndarray], size: int, device: torch.device | str
) -> Float[Tensor, "mask 1 size size"]:
    """Shrinks bool masks to ``size`` by antialiased bilinear interpolation; values are in [0, 1].

    Masks may differ in size (they may come from different images), so they are resized one by one, which also
    bounds the memory by one mask at full resolution.
    """
    prompts = torch.empty(len(masks), 1, size, size, device=device)
    for i, mask in enumerate(masks):
        plain = np.require(mask, requirements=["C", "W"])  # torch takes no flipped and no read-only view
        full = torch.as_tensor(plain, device=device).float()[None, None]
        prompts[i] = torch.nn.functional.interpolate(
            full, size=(size, size), mode="bilinear", align_corners=False, antialias=True
        )[0]
    return prompts


def normalized_boxes(masks: Sequence[np.ndarray]) -> Float[np.ndarray, "mask 4"]:
    """Returns x0, y0, x1, y1 of each mask: smallest and largest pixel index over width and height, in [0, 1).

    No pixel is added to the far side, as in the authors' code.

    Raises:
        ValueError: If a mask is empty, because an empty mask has no box.
    """
    boxes = np.empty((len(masks), 4), dtype=np.float32)
    for i, mask in enumerate(masks):
        box = box_of(mask)
        if box is None:
            raise ValueError(f"mask {i} of {len(masks)} is empty; an empty mask has no words. Leave it out.")
        height, width = mask.shape
        boxes[i] = box[0] / width, box[1] / height, box[2] / width, box[3] / height
    return boxes
