"""How well one mask matches another: boundary IoU, and the area buckets that masks are counted in.

Boundary IoU is that of Cheng et al. 2021 (arXiv 2103.16562), equal to its official implementation. Mask IoU
is ``samtok.masks.iou``.
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

from samtok import masks

BOUNDARY_RATIO = 0.02
"""Width of the boundary over the image's diagonal (Cheng et al. 2021, and its official implementation)."""

AREA_BUCKETS = (("small", 32**2), ("medium", 96**2), ("large", math.inf))
"""Names and upper ends in pixels, exclusive; COCO's division of objects."""

_Mask = Bool[np.ndarray, "_height _width"]


def small_iou(a: Bool[Tensor, "mask size size"], b: Bool[Tensor, "mask size size"]) -> Float[Tensor, " mask"]:
    """Returns the IoU in [0, 1] of each pair of small masks, on their device; two empty masks give 1."""
    both, either = (a & b).sum((1, 2)), (a | b).sum((1, 2))
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def boundary_width_px(height: int, width: int, ratio: float = BOUNDARY_RATIO) -> int:
    """Returns how far from its contour a pixel still belongs to a mask's boundary; at least 1."""
    return max(1, round(ratio * math.hypot(height, width)))


def boundary(mask: _Mask, width_px: int) -> _Mask:
    """Returns the pixels of a mask that have background within ``width_px`` steps, diagonal ones included.

    Outside of the image is background, so a mask that the image cuts off has a boundary there too.
    """
    size = 2 * width_px + 1
    if min(mask.shape) < size:
        return mask.copy()  # no pixel is that far from both sides
    # The minimum over a square is taken by rows, then by columns: the cost does not grow with the width.
    inner = ndimage.minimum_filter(mask.view(np.uint8), size=size, mode="constant", cval=0)
    return mask & ~inner.view(bool)


def boundary_iou(a: _Mask, b: _Mask, *, ratio: float = BOUNDARY_RATIO) -> float:
    """Returns the IoU of the boundaries of two masks of one image, in [0, 1]; two empty masks give 1.

    Only the part of the image that holds either mask is worked on. The ratio is the boundary's width over the
    image's diagonal, rounded to pixels, at least 1.

    Raises:
        ValueError: If the sizes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"masks must have the same size, got {a.shape} and {b.shape}.")
    box = masks.box_of(a | b)
    if box is None:
        return 1.0
    x0, y0, x1, y1 = box
    view = slice(y0, y1 + 1), slice(x0, x1 + 1)  # what is outside of it is background for both
    height, width = a.shape
    width_px = boundary_width_px(height, width, ratio)
    first, second = (boundary(np.ascontiguousarray(mask[view]), width_px) for mask in (a, b))
    return masks.iou(first, second)
