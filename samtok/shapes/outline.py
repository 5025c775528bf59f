"""A mask as one polygon along its pixel borders, where one polygon is exact, and as several in any case.

COCO's polygons have neither holes nor, per polygon, several parts. So only a mask that is one 4-connected
part without holes has an outline here; the others stay run lengths, or are cut into such parts.
"""

from collections.abc import Iterator

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


def trace_contours(mask: Bool[np.ndarray, "height width"]) -> list[list[Corner]]:
    """Returns polygons through the pixels of any mask's border, which together are exactly the mask.

    Each is ``[(x, y), ...]`` in pixels, of at least three corners, to be filled together with its sides
    (Cityscapes, ReasonSeg, OpenCV); COCO would lose half a pixel of it. A mask with holes or of several parts
    is cut into pieces without, a polygon each; an empty mask has none.
    """
    return [_through_pixels(outline) for outline in _outlines(mask)]


def _outlines(mask: Bool[np.ndarray, "height width"]) -> Iterator[list[int]]:
    outline = trace_outline(mask)
    if outline or not mask.any():
        yield from [outline] if outline else []
        return
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    halves = np.zeros_like(mask), np.zeros_like(mask)
    if rows[-1] - rows[0] > columns[-1] - columns[0]:
        middle = (rows[0] + rows[-1] + 1) // 2
        halves[0][:middle], halves[1][middle:] = mask[:middle], mask[middle:]
    else:
        middle = (columns[0] + columns[-1] + 1) // 2
        halves[0][:, :middle], halves[1][:, middle:] = mask[:, :middle], mask[:, middle:]
    for half in halves:
        yield from _outlines(half)


def _through_pixels(outline: list[int]) -> list[Corner]:
    """Returns the pixels inside of each straight side's ends in turn; the inside is on the right."""
    corners = list(zip(outline[::2], outline[1::2], strict=True))
    found: list[Corner] = []
    for (x, y), (to_x, to_y) in zip(corners, corners[1:] + corners[:1], strict=True):
        step_x, step_y = np.sign(to_x - x), np.sign(to_y - y)
        left, up = int(step_y > 0 or step_x < 0), int(step_x < 0 or step_y < 0)
        for end in ((x - left, y - up), (to_x - int(step_x) - left, to_y - int(step_y) - up)):
            if not found or found[-1] != end:
                found.append(end)
    if len(found) > 1 and found[0] == found[-1]:
        found.pop()
    return found + found[-1:] * (3 - len(found))


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
