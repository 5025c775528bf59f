"""Which true and which predicted masks of an image belong together: their IoUs, and pairs by IoU."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Float
from pycocotools import mask as coco

from samtok import masks


def iou_matrix(
    first: Sequence[str], second: Sequence[str], *, height: int, width: int, empty: float = 0.0
) -> Float[np.ndarray, "first second"]:
    """Returns the IoU in [0, 1] of each mask with each other one, from compressed COCO counts of one image.

    The masks never become dense. ``empty`` is the value for two masks without pixels.

    Raises:
        DataError: As ``masks.parse_counts``.
    """
    of_first, of_second = (
        np.array([masks.area(rle, height=height, width=width) for rle in rles], np.int64)
        for rles in (first, second)
    )
    if not first or not second:
        return np.zeros((len(first), len(second)))
    rows, columns = ([{"size": [height, width], "counts": rle} for rle in rles] for rles in (first, second))
    iou = np.array(coco.iou(cast(Any, rows), cast(Any, columns), [0] * len(second)), np.float64)
    iou[(of_first[:, None] == 0) & (of_second == 0)] = empty
    return iou


def greedy_pairs(iou: Float[np.ndarray, "first second"]) -> list[float]:
    """Returns the IoUs of pairs that are taken one by one, the largest above 0 first, each mask once.

    Ties go to the pair that comes first, by row and then by column. A NaN ends it.
    """
    left, taken = iou.copy(), []
    while left.size and left.max() > 0:
        row, column = np.unravel_index(left.argmax(), left.shape)
        taken.append(float(left[row, column]))
        left[row, :] = left[:, column] = 0
    return taken
