"""What is wrong with polygons that come out as no mask, or of which a part does not count.

Drawing them is ``samtok.masks``, which has refused by then what are no polygons at all.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from samtok.errors import DataError

Corners = Float[np.ndarray, "corner 2"]


def is_polygons(segmentation: Any) -> bool:
    """Tells whether a mask that could be read is written as polygons."""
    return isinstance(segmentation, list) and bool(segmentation) and isinstance(segmentation[0], list)


def lost_parts(polygons: Sequence[Sequence[float]]) -> Iterator[str]:
    """Yields a sentence for each polygon of a mask that adds nothing to it."""
    for number, polygon in enumerate(polygons, start=1):
        which = f"polygon {number} of {len(polygons)} adds nothing"
        if len(polygon) < 6 or len(polygon) % 2:
            yield f"{which}: it has {len(polygon)} numbers, expected an even number of at least 6"
        elif _area(_corners([polygon])) == 0:
            yield f"{which}: its {len(polygon) // 2} corners lie on one line"


def check_visible(polygons: Sequence[Sequence[float]], *, area_px: int, height: int, width: int) -> None:
    """Refuses polygons that cannot have meant the ``area_px`` pixels that they give.

    Raises:
        DataError: ``polygon_normalised`` for shares of the image's sides, ``polygon_outside`` if no part is
            in the image, ``polygon_collinear`` if there is no area to begin with.
    """
    drawn = _drawn(polygons)
    corners = _corners(drawn)
    (x0, y0), (x1, y1) = corners.min(axis=0), corners.max(axis=0)
    if x0 >= 0 and y0 >= 0 and x1 <= 1 and y1 <= 1 and area_px <= 1 and (corners % 1).any():
        raise DataError(
            f"all {len(corners)} corners of the polygons lie in 0..1, as shares of the image's sides do; "
            f"expected pixels of an image of {height}x{width}, so x times {width} and y times {height}",
            reason="polygon_normalised",
        )
    if area_px:
        return
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise DataError(
            f"the polygons lie outside the image of {height}x{width}: x from {x0:g} to {x1:g}, y from "
            f"{y0:g} to {y1:g}; they may be of another size of the image",
            reason="polygon_outside",
        )
    if all(_area(_corners([polygon])) == 0 for polygon in drawn):
        raise DataError("the corners of the polygons lie on one line", reason="polygon_collinear")


def corners_of(segmentation: Any) -> Corners:
    """Returns the corners of polygons that are drawn; none of a mask of another form, or one that is none."""
    if is_polygons(segmentation):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            corners = _corners(_drawn(segmentation))
            return corners[np.isfinite(corners).all(axis=1)]
    return np.empty((0, 2))


def _drawn(polygons: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    return [polygon for polygon in polygons if len(polygon) >= 6 and len(polygon) % 2 == 0]


def _corners(polygons: Sequence[Sequence[float]]) -> Corners:
    return np.concatenate([np.asarray(polygon, np.float64) for polygon in polygons]).reshape(-1, 2)


def _area(corners: Corners) -> float:
    x, y = (corners - corners[0]).T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
