"""Cut-outs of small regions, which the authors' models are shown behind the whole image.

A question about a region whose box covers little of the image goes on with the region, cut out and enlarged,
and with the word that its mask has there. The numbers are those of the authors' scripts for region captions:
a share of 0.2 in training, MDVP-Bench and VideoRefer-Bench-D, of 0.3 in DLC-Bench.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from samtok import masks

MIN_SIDE_PX = 140
"""Shorter sides of a box are widened to about this, as far as the image goes."""

ENLARGED_PX = 280
"""Shorter side of a cut-out whose longer side would be below this."""

BEFORE, BEHIND = " Zoom in with the perspective as ", ", {words}."
"""What stands around the cut-out, in the authors' words."""


class CutOut(NamedTuple):
    """A region with what is around it."""

    image: UInt8[np.ndarray, "height width 3"]
    mask: Bool[np.ndarray, "height width"]


def cut_out(
    image: UInt8[np.ndarray, "height width 3"], mask: Bool[np.ndarray, "height width"], *, below: float
) -> CutOut | None:
    """Returns a region cut out of its image; None if its box covers at least ``below`` of the image, or if
    nothing of the mask is left.

    As in the authors' scripts a box ends before its last row and column, and the mask is enlarged bilinearly
    and cut at one half.

    Args:
        image: RGB, values 0 to 255.
        mask: Of the region, at the image's size.
        below: Share of the image's pixels, in (0, 1].
    """
    box = masks.box_of(mask)
    height, width = mask.shape
    if box is None or (box[2] - box[0]) * (box[3] - box[1]) >= below * width * height:
        return None
    (left, right), (top, bottom) = _widened(box[0], box[2], width), _widened(box[1], box[3], height)
    part = image[top:bottom, left:right], mask[top:bottom, left:right]
    if not part[1].any():
        return None
    sides = (right - left, bottom - top)
    if max(sides) >= ENLARGED_PX:
        return CutOut(*part)
    size = (round(sides[0] * ENLARGED_PX / min(sides)), round(sides[1] * ENLARGED_PX / min(sides)))
    pixels = Image.fromarray(part[0]).resize(size, Image.Resampling.LANCZOS)
    shape = Image.fromarray(part[1].astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    return CutOut(np.asarray(pixels), np.asarray(shape) > 0)


def _widened(start: int, stop: int, side: int) -> tuple[int, int]:
    margin = max((MIN_SIDE_PX - (stop - start)) // 2, 0)
    return max(start - margin, 0), min(stop + margin, side)
