"""Which way up an image is read whose EXIF orientation is not 1.

Cameras store pixels as the sensor has them, and in EXIF how to turn them. Some tools draw masks on the stored
picture, others on the upright one, and either may state the stored size. If an option turns an image upright,
the end of its ``image_uri`` says so, and its row has that size: masks and pixels agree wherever it is read.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from pipelines import schema
from pipelines.ingestion import polygons
from pipelines.ingestion.image_source import UPRIGHT, Picture, stored_frame
from samtok.errors import DataError

Orientation = Literal["stored", "upright", "auto"]

TURNED = "masks_turned"
"""Reason of a note on masks that were drawn on the image the other way up than it is read."""

_SLACK_PX = 1.0  # by which careful annotations leave their image too


class Frame(NamedTuple):
    """How an image is read."""

    image_uri: str
    image_hw: tuple[int, int]
    told: str = ""
    """What speaks against it."""


def frame_of(
    how: Orientation, image_uri: str, stated_hw: tuple[int, int], segmentations: Sequence[Any]
) -> Frame:
    """Returns how an image is read, of which a record states size and masks in any form; opens its header
    only where that matters.

    The size of RLEs decides, but for ``stored``. Without them ``auto`` takes an image upright of which the
    stored size is stated, where the polygons leave that and fit the upright one; ``stored`` tells of both.
    """
    stated, other_hw = Frame(image_uri, stated_hw), (stated_hw[1], stated_hw[0])
    sizes = {size for segmentation in segmentations for size in _sizes(segmentation)}
    exchanged = sizes == {other_hw} if sizes else _fit_other(segmentations, stated_hw)
    if how != "upright" and (other_hw == stated_hw or not exchanged):
        return stated
    try:
        stored_hw, orientation = stored_frame(image_uri)
    except DataError:
        return stated  # whoever reads the pixels says so
    upright_hw = (stored_hw[1], stored_hw[0]) if orientation >= 5 else stored_hw
    if orientation == 1 or stated_hw not in (stored_hw, upright_hw):
        return stated
    if how == "upright":
        as_stored = stored_hw != upright_hw and sizes == {stored_hw}
        return Frame(image_uri, stored_hw) if as_stored else Frame(image_uri + UPRIGHT, upright_hw)
    if orientation < 5 or not (sizes or stated_hw == stored_hw):
        return stated
    if how == "auto":
        return Frame(image_uri + UPRIGHT * (other_hw == upright_hw), other_hw)
    height, width = stated_hw
    told = f"the masks do not fit {height}x{width} pixels but {width}x{height}, as its EXIF orientation "
    remedy = "--corpus.orientation auto, or orientation=auto in --corpora, reads it so"
    return stated._replace(told=f"{told}{orientation} turns it; {remedy}")


def note(stage: str, row: Mapping[str, Any], picture: Picture) -> list[dict[str, Any]]:
    """Returns a reject of no mask for an image whose EXIF orientation is not 1, so that it is counted."""
    if picture.orientation == 1:
        return []
    how = "turned upright" if picture.turned else "read as stored"
    message = f"image {row['image_id']} has the EXIF orientation {picture.orientation} and is {how}"
    message += " (--corpus.orientation, or orientation= in --corpora)"
    name = (stage, row["dataset"], row["image_id"], "image_orientation", message)
    return [schema.reject(*name, mask_id="image")]


def _sizes(segmentation: Any) -> Iterator[tuple[int, int]]:
    """Yields the sizes that RLEs state."""
    for part in segmentation if isinstance(segmentation, list) else [segmentation]:
        if (size := stated_size(part)) is not None:
            yield size


def stated_size(rle: Any) -> tuple[int, int] | None:
    """Returns the ``size`` that an RLE states, unchecked; None if it states none or is no RLE."""
    size = rle.get("size") if isinstance(rle, dict) else None
    if isinstance(size, list) and len(size) == 2 and all(type(side) is int for side in size):
        return size[0], size[1]
    return None


def _fit_other(segmentations: Sequence[Any], size_hw: tuple[int, int]) -> bool:
    """Tells whether polygons fit an image of that height as width, and width as height, but not this one."""
    corners = np.concatenate([np.empty((0, 2)), *map(polygons.corners_of, segmentations)])
    if not len(corners) or corners.min() < -_SLACK_PX:
        return False
    most_hw = corners.max(axis=0)[::-1] - _SLACK_PX
    return bool((most_hw <= size_hw[::-1]).all() and (most_hw > size_hw).any())
