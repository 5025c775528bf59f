"""Polygons as pixels, painted one over the other, as the makers of Cityscapes and of ReasonSeg do.

A polygon is filled together with the pixels that its sides pass through, by Pillow, as in cityscapesScripts
(json2instanceImg.py); ReasonSeg's own loader does so with OpenCV. Corners are pixels, and fractions are cut
off, as both do. COCO's polygons (``samtok.masks``) end between pixels instead, so the same corners give them
about half a pixel less on each side.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

from pipelines.ingestion import records
from pipelines.ingestion.records import Record
from samtok import masks
from samtok.errors import DataError
from samtok.labelmaps import split_labels

MAX_CORNERS = 2**18
"""Most corners of an image's polygons. Filling one takes a step per corner and row; an image of Cityscapes
has some thousand."""

_ROOM_PX = 64

Points = Sequence[tuple[float, float]]
"""Corners (x, y) in pixels."""


class Filled(NamedTuple):
    """The part of a polygon that is in the image."""

    pixels: Bool[np.ndarray, "part_height part_width"]
    x0: int
    """First column of the part in the image."""
    y0: int
    """First row."""


class Canvas:
    """An image on which polygons are filled.

    Args:
        height, width: Of the image in pixels.
    """

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self._labels = np.zeros((height, width), np.int32)
        self._corners = 0

    def filled(self, points: Points) -> Filled:
        """Returns a polygon of at least three corners, which may lie outside.

        Raises:
            DataError: ``polygon_invalid`` for fewer corners, ``too_large`` if all polygons that were filled
                here have more than ``MAX_CORNERS``.
        """
        if len(points) < 3:
            raise DataError(
                f"a polygon has {len(points)} corners, expected at least 3", reason="polygon_invalid"
            )
        self._corners += len(points)
        if self._corners > MAX_CORNERS:
            fault = f"the polygons of the image have over {MAX_CORNERS} corners, more than they can have"
            raise DataError(fault, reason="too_large")
        corners = [(int(x), int(y)) for x, y in points]
        across, down = [x for x, _ in corners], [y for _, y in corners]
        x0, x1 = _span(across, self.width)
        y0, y1 = _span(down, self.height)
        left, top = max(x0, 0), max(y0, 0)
        if min(x1, self.width) <= left or min(y1, self.height) <= top:
            return Filled(np.zeros((0, 0), bool), 0, 0)
        image = Image.new("1", (x1 - x0, y1 - y0))
        ImageDraw.Draw(image).polygon([(x - x0, y - y0) for x, y in corners], fill=1)
        pixels = np.asarray(image)[top - y0 : self.height - y0, left - x0 : self.width - x0]
        return Filled(pixels, left, top)

    def paint(self, number: int, filled: Filled) -> None:
        """Gives the pixels of a polygon a number above 0, in place of what they had."""
        height, width = filled.pixels.shape
        self._labels[filled.y0 : filled.y0 + height, filled.x0 : filled.x0 + width][filled.pixels] = number

    def painted(self) -> dict[int, Record]:
        """Returns the mask of each number that is still to be seen, as RLE."""
        size = [self.height, self.width]
        return {number: {"size": size, "counts": counts} for number, counts in split_labels(self._labels)}


def _span(places: Sequence[int], size: int) -> tuple[int, int]:
    """Returns first place and end of what is drawn. Of a line that leaves its canvas Pillow draws other
    pixels at the border, so there is room beyond the image."""
    return max(min(places), -_ROOM_PX), min(max(places) + 1, size + _ROOM_PX)


def placed(
    part: Bool[np.ndarray, "part_height part_width"], x0: int, y0: int, height: int, width: int
) -> Record:
    """Returns a part of a mask in the frame of its image, as RLE; raises ``mask_box`` if it leaves that."""
    if x0 < 0 or y0 < 0 or y0 + part.shape[0] > height or x0 + part.shape[1] > width:
        fault = f"its mask of {part.shape} pixels at x {x0}, y {y0} leaves the image of {height}x{width}"
        raise DataError(fault, reason="mask_box")
    edges = np.zeros(0, np.int64)
    if part.any():
        columns, tops, bottoms = masks.RunMask.of_dense(part).segments()
        firsts = (columns + x0) * height + y0
        edges = np.stack((firsts + tops, firsts + bottoms), axis=1).ravel()
    joined = np.flatnonzero(edges[1:] == edges[:-1])  # a column that is full goes on in the next
    edges = np.delete(edges, np.concatenate((joined, joined + 1)))
    return {"size": [height, width], "counts": masks.from_edges(edges, height=height, width=width)}


def points_of(value: object) -> list[tuple[float, float]]:
    """Returns the corners ``[[x, y], ...]`` of a record.

    Raises:
        DataError: ``points`` if there are none, or one is no pair of finite numbers of pixels.
    """
    points = value if isinstance(value, list) else []
    usable = all(
        isinstance(one, list) and len(one) == 2 and all(map(records.is_coordinate, one)) for one in points
    )
    if not points or not usable:
        raise DataError(f"points are {value!r:.80}, expected pairs of finite pixels", reason="points")
    return [(float(x), float(y)) for x, y in points]
