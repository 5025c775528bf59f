"""PNG label maps: one object id per pixel, in any of the ways in which datasets store them.

Panoptic maps write an id over three channels, ADE20K and instance maps over 16 bits, video sets as palette
indices. Pillow's conversions turn all of these into colours or clip them, so raw values are read here.
The ids become masks in ``split_labels``, without a dense mask per id.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int, Integer

from samtok import masks
from samtok.errors import DataError
from samtok.images import open_image


def read_label_map(data: bytes, *, where: str, rgb: bool | None = None) -> Int[np.ndarray, "height width"]:
    """Reads the object id of each pixel of a PNG file as int32.

    Args:
        where: Names the file in errors.
        rgb: Whether the format has its ids in colours; by default both kinds are read. Read as the other
            kind, ids would be wrong without any fault.

    RGB is ``R + 256 * G + 65536 * B`` (panoptic format, cocodataset/panopticapi); palette images give the
    index, not the colour; gray of 1, 2, 4, 8 or 16 bits gives the stored number.

    Raises:
        DataError: ``label_mode`` for pixels that are no ids (alpha, 16-bit colour) or of the other kind,
            otherwise the reasons of ``samtok.images.open_image``.
    """
    image = open_image(data, where=where, formats=("PNG",))
    depth = data[24] if data[12:16] == b"IHDR" else 0  # IHDR comes first, then width, height, bit depth
    pixels = np.asarray(image)
    if rgb is not None and rgb != (image.mode == "RGB"):
        expected = "three channels of colour" if rgb else "one number per pixel (gray or palette)"
        raise DataError(
            f"{where}: the label map has pixels of mode {image.mode}, its format has {expected}; is it a map "
            "of another kind?",
            reason="label_mode",
        )
    if image.mode == "RGB" and depth == 8:
        ids = pixels.astype(np.int32)  # before the arithmetic: uint8 would wrap
        return ids[:, :, 0] + 256 * ids[:, :, 1] + 65536 * ids[:, :, 2]
    if image.mode == "L" and depth in (2, 4):
        return pixels.astype(np.int32) // (255 // (2**depth - 1))  # Pillow spreads few bits over 0..255
    if depth and (image.mode in ("1", "L", "P", "I") or image.mode.startswith("I;16")):
        return pixels.astype(np.int32)
    raise DataError(
        f"{where}: a label map must be a PNG of 8-bit RGB, palette or gray, got mode {image.mode} with "
        f"{depth} bits.",
        reason="label_mode",
    )


def split_labels(labels: Integer[np.ndarray, "height width"]) -> Iterator[tuple[int, str]]:
    """Yields each id but 0, ascending, with the counts of its mask; a pixel costs a few numbers of memory."""
    height, width = labels.shape
    if labels.size == 0:
        return
    flat = labels.ravel(order="F")
    starts = np.flatnonzero(np.append(True, flat[1:] != flat[:-1]))
    ends = np.append(starts[1:], flat.size)
    order = np.argsort(flat[starts], kind="stable")  # keeps the runs of one id in the order of the pixels
    starts, ends, ids = starts[order], ends[order], flat[starts[order]]
    firsts = np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))
    for first, last in zip(firsts, np.append(firsts[1:], ids.size), strict=True):
        if ids[first] != 0:
            edges = np.stack((starts[first:last], ends[first:last]), axis=1).ravel()
            yield int(ids[first]), masks.from_edges(edges, height=height, width=width)
