"""Where the bytes of an image are: a file or object of its own, a member of an uncompressed tar, or a value
in a Parquet file (``parquet_cells``).

A member is written ``archive.tar#offset:size:name``: where its bytes start in the archive, how many there
are, and its name there, as in ``s3://bucket/sa_000020.tar#1536:204800:sa_223750.jpg``. So reading one image
of an archive is one ranged read, and no index is needed. Decoding the bytes is ``samtok.images``.

An image that is read upright although its size does not say so (``pipelines.ingestion.orientation``) has the
end ``#upright``, which travels with it to whatever reads its pixels.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from pipelines import storage
from pipelines.ingestion import apart, parquet_cells
from samtok.errors import DataError
from samtok.images import framed, open_image, orientation_of, read_header, rgb_of, safe_join
from samtok.masks import MAX_PIXELS

MAX_IMAGE_BYTES = 256 * 2**20
"""Largest encoded image that is read, a bound against giant files. SA-1B has about 0.5 MB per image."""

UPRIGHT = "#upright"
"""End of the URI of an image that is turned as its EXIF orientation says."""

_MEMBER = re.compile(r"(?P<archive>.+?\.tar)#(?P<offset>\d{1,18}):(?P<size>\d{1,18}):(?P<name>.+)", re.DOTALL)


@dataclass(frozen=True)
class ImageLocation:
    """A file or object, and for a member of an archive the part of it."""

    uri: str
    """The file, or the archive."""
    offset: int = 0
    """First byte of the member."""
    size_bytes: int | None = None
    """Length of the member; None for a file of its own."""
    member: str | None = None
    """Name of the member in the archive; None for a file of its own."""
    upright: bool = False
    """Whether its pixels are turned as its EXIF orientation says."""


class Picture(NamedTuple):
    """An image as it was read."""

    pixels: UInt8[np.ndarray, "height width 3"]
    orientation: int
    """EXIF orientation of the file, 1 to 8."""
    turned: bool
    """Whether the pixels were turned as it says."""


def member_uri(archive_uri: str, offset: int, size_bytes: int, name: str) -> str:
    """Returns the URI of a member of an uncompressed tar; ``parse_image_uri`` is its inverse."""
    return f"{archive_uri}#{offset}:{size_bytes}:{name}"


def parse_image_uri(image_uri: str) -> ImageLocation:
    """Splits an ``image_uri``; whatever is not ``archive.tar#offset:size:name`` is a file of its own."""
    place, upright = image_uri.removesuffix(UPRIGHT), image_uri.endswith(UPRIGHT)
    match = _MEMBER.fullmatch(place)
    if match is None:
        return ImageLocation(place, upright=upright)
    return ImageLocation(match["archive"], int(match["offset"]), int(match["size"]), match["name"], upright)


def read_image_bytes(image_uri: str, *, max_bytes: int = MAX_IMAGE_BYTES) -> bytes:
    """Returns the encoded image.

    Raises:
        DataError: ``image_too_large`` beyond ``max_bytes``, ``image_cut`` if an archive ends inside the
            member, ``image_empty`` if there are no bytes, ``image_cell`` and ``parquet_layout`` as
            ``parquet_cells.read``; ``image_missing``, ``image_refused``,
            ``image_kind`` or ``image_bucket`` for what ``storage.faults`` lists as faults of one file.
        StorageError: If the storage fails.
    """
    location = parse_image_uri(image_uri)
    cell = parquet_cells.parse(location.uri)
    if (location.size_bytes or 0) > max_bytes:
        raise _too_large(image_uri, f"{location.size_bytes} bytes", max_bytes)
    size = max_bytes + 1 if location.size_bytes is None else location.size_bytes
    try:
        content = (
            storage.read_bytes(location.uri, offset=location.offset, size=size)
            if cell is None
            else parquet_cells.read(cell)
        )
    except storage.ObjectError as error:
        raise DataError(str(error), reason=f"image_{error.reason}") from error
    if len(content) > max_bytes:
        raise _too_large(image_uri, f"over {max_bytes} bytes", max_bytes)
    if cell is not None:
        return content
    if location.size_bytes is not None and len(content) != location.size_bytes:
        raise DataError(
            f"{image_uri} ends after {len(content)} of {location.size_bytes} bytes; the archive was cut off "
            "or replaced after the corpus was planned",
            reason="image_cut",
        )
    if not content:
        raise DataError(f"{image_uri} is empty, expected an encoded image", reason="image_empty")
    return content


def read_image(
    image_uri: str, *, expected_hw: tuple[int, int], max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "height width 3"]:
    """Reads and decodes an image; raises as ``read_picture``."""
    return read_picture(image_uri, expected_hw=expected_hw, max_pixels=max_pixels).pixels


def read_picture(
    image_uri: str,
    *,
    expected_hw: tuple[int, int],
    max_pixels: int = MAX_PIXELS,
    least_side: int | None = None,
) -> Picture:
    """Reads and decodes an image; a JPEG at a reduced size if ``least_side`` says so, as in ``open_image``.

    Raises:
        DataError: As ``read_image_bytes``, ``samtok.images.decode_image`` and ``apart.isolated``.
        StorageError: If the storage fails.
    """
    data = read_image_bytes(image_uri)
    decode = partial(_decoded, data, image_uri, expected_hw, max_pixels, least_side)
    return apart.isolated(decode, image_uri)


def _decoded(
    data: bytes, image_uri: str, expected_hw: tuple[int, int], max_pixels: int, least_side: int | None
) -> Picture:
    stored = open_image(data, where=image_uri, max_pixels=max_pixels, least_side=least_side)
    image = framed(stored, image_uri, expected_hw, upright=parse_image_uri(image_uri).upright)
    return Picture(rgb_of(image, image_uri), orientation_of(stored), image is not stored)


def below_root(root: str, name: str, *, link_roots: Sequence[str] = ()) -> str:
    """Returns the URI of an image that a dataset names; DataError ``unsafe_path`` if it may lie elsewhere."""
    uri = safe_join(root, name, link_roots=link_roots)
    inside = parquet_cells.parse(uri) or parse_image_uri(uri) != ImageLocation(uri)
    if inside:  # would be read from inside another file, past safe_join
        fault = (
            f"image name {name!r:.200} has the form of a tar member or a Parquet value, or ends in {UPRIGHT}"
        )
        raise DataError(fault, reason="unsafe_path")
    return uri


def find_image(root: str, name: str, others: Sequence[str], *, link_roots: Sequence[str] = ()) -> str:
    """Returns the URI of the image of that name if there is one, else of the one under the other names.

    Raises:
        DataError: ``missing_image`` or ``ambiguous_image`` with what was tried, ``unsafe_path``, and as
            ``read_image_bytes`` for one that may not be looked up.
        StorageError: If the storage fails.
    """
    exact, *tried = [below_root(root, one, link_roots=link_roots) for one in (name, *others)]
    if _exists(exact):
        return exact
    found = [uri for uri in tried if _exists(uri)]
    if len(found) != 1:
        raise DataError(
            f"{len(found)} images for the name {name!r:.200}, expected one; tried {[exact, *tried]}",
            reason="ambiguous_image" if found else "missing_image",
        )
    return found[0]


def _exists(uri: str) -> bool:
    try:
        return storage.exists(uri)
    except storage.ObjectError as error:
        raise DataError(str(error), reason=f"image_{error.reason}") from error


def read_size_hw(image_uri: str) -> tuple[int, int]:
    """Returns height and width of an image in pixels, by opening it: for records that do not say; raises as
    ``read_image``."""
    return apart.isolated(partial(_size_hw, read_image_bytes(image_uri), image_uri), image_uri)


def _size_hw(data: bytes, image_uri: str) -> tuple[int, int]:
    image = open_image(data, where=image_uri)
    image = framed(image, image_uri, upright=parse_image_uri(image_uri).upright)
    return image.height, image.width


def stored_frame(image_uri: str) -> tuple[tuple[int, int], int]:
    """Returns height and width of an image as it is stored, and its EXIF orientation, from its header; raises
    as ``read_image``."""
    return apart.isolated(partial(read_header, read_image_bytes(image_uri), where=image_uri), image_uri)


def _too_large(image_uri: str, got: str, max_bytes: int) -> DataError:
    return DataError(
        f"{image_uri} has {got}, expected an image of at most {max_bytes}", reason="image_too_large"
    )
