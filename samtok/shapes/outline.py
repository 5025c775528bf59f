"""A mask as one polygon along its pixel borders, where one polygon is exact.

COCO's polygons have neither holes nor, per polygon, several parts. So only a mask that is one 4-connected
part without holes has an outline here; the others stay run lengths.
"""

import numpy as np
from jaxtyping import Bool

Corner = tuple[int, int]


def trace_outline(mask: Bool[np.ndarray, "height width"]) -> list[int] | None:
    """Returns the corners ``x1, y1, x2, y2, ...`` of a simple mask's border, clockwise as seen.

    Corners lie between pixels: x in [0, width], y in [0, height]. Drawn by COCO's rules (``samtok.masks``)
    the polygon gives the very same mask. None for a mask that is empty, has a hole, or has several parts;
    parts that touch only at a corner are several.
    """
    following = _border_steps(mask)
    if not following:
        return None
    start = corner = next(iter(following))
    outline: list[int] = []
    before = None
    for _ in range(len(following)):
        after = following.pop(corner)
        step = (after[0] - corner[0], after[1] - corner[1])
        if step != before:  # a corner in the middle of a straight side is left out
            outline += corner
        corner, before = after, step
        if corner == start:
            break
    return outline if not following else None  # what is left over is another part, or a hole


def _border_steps(mask: Bool[np.ndarray, "height width"]) -> dict[Corner, Corner] | None:
    """Returns for each corner on the border the next one, a pixel further, with the inside on the right.

    None if a corner is passed twice, where two pixels touch at it alone. The first corner is where the
    topmost row of the mask begins, so a turn.
    """
    padded = np.pad(mask, 1).astype(np.int8)
    across = np.diff(padded, axis=0)[:, 1:-1]  # 1 enters the mask from above, -1 leaves it below
    along = np.diff(padded, axis=1)[1:-1]  # 1 enters from the left, -1 leaves on the right
    sides = (
        (np.argwhere(across == 1), (0, 0), (1, 0)),  # top sides run to the right
        (np.argwhere(along == -1), (0, 0), (0, 1)),  # right sides run down
        (np.argwhere(across == -1), (1, 0), (-1, 0)),  # bottom sides run to the left
        (np.argwhere(along == 1), (0, 1), (0, -1)),  # left sides run up
    )
    following: dict[Corner, Corner] = {}
    for found, (shift_x, shift_y), (step_x, step_y) in sides:
        for y, x in found.tolist():
            corner = (x + shift_x, y + shift_y)
            if corner in following:
                return None
            following[corner] = (corner[0] + step_x, corner[1] + step_y)
    return following
