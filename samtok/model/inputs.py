"""What users give as image, masks and codes, brought into the one form that a tokenizer works on.

What has one meaning is converted; anything else is refused with what is expected and its image's number.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image
from torch import Tensor

from samtok import images, masks
from samtok.errors import DataError

ImageLike = np.ndarray | Tensor | Image.Image | Path | str
"""RGB uint8 of height x width x 3, a PIL image of any mode, or the path of an image file."""

MaskLike = np.ndarray | Tensor | Image.Image | Mapping
"""Bool of height x width (PIL's mode 1), or a COCO RLE, ``{"size": [height, width], "counts": ...}``."""

MasksLike = Sequence[Any] | MaskLike
"""Several ``MaskLike``, one after the other or as mask x height x width; or one alone."""

CodesLike = Sequence[Any] | np.ndarray | Tensor
"""Whole numbers of any type, mask x level."""


def rgb_image(image: ImageLike, *, where: str) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the pixels of an image; those of a file or PIL image are read as ``images.decode_image`` does.

    Raises:
        ValueError: For an array that is not RGB uint8, since nothing says what its values mean.
        DataError: As ``decode_image``.
    """
    if isinstance(image, str | Path):
        return images.decode_image(Path(image).read_bytes(), where=where)
    if isinstance(image, Image.Image):
        return images.rgb_of(image.copy(), where)
    array = _array(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ValueError(
            f"{where} must be RGB uint8 of height x width x 3, got {array.dtype} {array.shape}; a PIL image "
            "of another mode, or the path of a file, is converted."
        )
    return array


def bool_masks(given: MasksLike, size_hw: tuple[int, int], *, where: str) -> list[np.ndarray]:
    """Returns the masks of one image, each bool and of its size; none of them is empty.

    Raises:
        ValueError: For masks of other types or sizes, and empty ones.
    """
    one = isinstance(given, Mapping | Image.Image) or getattr(given, "ndim", 0) == 2
    parts: Sequence[Any] = [given] if one else given  # type: ignore[assignment]
    return [_bool_mask(mask, size_hw, f"mask {j} of {where}") for j, mask in enumerate(parts)]


def code_rows(codes: CodesLike, num_levels: int) -> Int[np.ndarray, "mask level"]:
    """Returns codes as int64; no codes have all levels.

    Raises:
        ValueError: For anything but rows of whole numbers, all of one length.
    """
    if not len(codes):
        return np.empty((0, num_levels), np.int64)
    try:
        array = _array(codes)
        array = np.array(array.tolist()) if array.dtype == object else array  # a column of lists
    except ValueError:  # rows of several lengths
        array = np.empty(len(codes), object)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise ValueError(
            f"codes must be whole numbers, a row of levels for each mask, got {array.dtype} {array.shape}; "
            "those of one mask stand in a list, [codes]."
        )
    return array.astype(np.int64)


def _bool_mask(mask: object, size_hw: tuple[int, int], where: str) -> Bool[np.ndarray, "height width"]:
    if isinstance(mask, Mapping):
        mask = _decoded(dict(mask), size_hw, where)
    array = _array(mask)
    if array.dtype != bool:
        raise ValueError(f"{where} is {array.dtype}, expected bool; use mask > 0 for 0/255 pictures.")
    if array.shape != size_hw:
        raise ValueError(f"{where} is {array.shape}, its image {size_hw}.")
    if not array.any():
        raise ValueError(f"{where} is empty; an empty mask has no words. Leave it out.")
    return array


def _decoded(rle: dict[str, Any], size_hw: tuple[int, int], where: str) -> np.ndarray:
    height, width = size_hw
    try:
        counts = masks.to_counts(rle, height=height, width=width)
        return masks.decode(counts or masks.encode(np.zeros(size_hw, bool)), height=height, width=width)
    except DataError as error:
        raise ValueError(f"{where}: {error}") from error


def _array(value: Any) -> np.ndarray:
    if not isinstance(value, Tensor):
        return np.asarray(value)
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).numpy()  # NumPy has no bfloat16
