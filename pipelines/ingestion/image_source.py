"""Where the bytes of an image are: a file or object of its own, or a member of an uncompressed tar.

A member is written ``archive.tar#offset:size:name``: where its bytes start in the archive, how many there
are, and its name there, as in ``s3://bucket/sa_000020.tar#1536:204800:sa_223750.jpg``. So reading one image
of an archive is one ranged read, and no index is needed. Decoding the bytes is ``samtok.images``.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines import storage
from pipelines.ingestion.records import is_utf8
from samtok.errors import DataError
from samtok.images import decode_image, open_image, safe_join

MAX_IMAGE_BYTES = 256 * 2**20
"""Largest encoded image that is read, a bound against giant files. SA-1B has about 0.5 MB per image."""

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


def member_uri(archive_uri: str, offset: int, size_bytes: int, name: str) -> str:
    """Returns the URI of a member of an uncompressed tar; ``parse_image_uri`` is its inverse."""
    return f"{archive_uri}#{offset}:{size_bytes}:{name}"


def parse_image_uri(image_uri: str) -> ImageLocation:
    """Splits an ``image_uri``; whatever is not ``archive.tar#offset:size:name`` is a file of its own."""
    match = _MEMBER.fullmatch(image_uri)
    if match is None:
        return ImageLocation(image_uri)
    return ImageLocation(match["archive"], int(match["offset"]), int(match["size"]), match["name"])


def read_image_bytes(image_uri: str, *, max_bytes: int = MAX_IMAGE_BYTES) -> bytes:
    """Returns the encoded image.

    Raises:
        DataError: ``image_too_large`` beyond ``max_bytes``, ``image_cut`` if an archive ends inside the
            member, ``image_empty`` if there are no bytes.
        StorageError: If it cannot be read; ``storage.NotFoundError`` if there is no such file.
    """
    location = parse_image_uri(image_uri)
    if (location.size_bytes or 0) > max_bytes:
        raise _too_large(image_uri, f"{location.size_bytes} bytes", max_bytes)
    size = max_bytes + 1 if location.size_bytes is None else location.size_bytes
    content = storage.read_bytes(location.uri, offset=location.offset, size=size)
    if len(content) > max_bytes:
        raise _too_large(image_uri, f"over {max_bytes} bytes", max_bytes)
    if location.size_bytes is not None and len(content) != location.size_bytes:
        raise DataError(
            f"{image_uri} ends after {len(content)} of {location.size_bytes} bytes; the archive was cut off "
            "or replaced after the corpus was planned",
            reason="image_cut",
        )
    if not content:
        raise DataError(f"{image_uri} is empty, expected an encoded image", reason="image_empty")
    return content


def read_image(image_uri: str, *, expected_hw: tuple[int, int]) -> np.ndarray:
    """Reads and decodes an image; raises as ``samtok.images.decode_image`` and ``read_image_bytes``.

    Raises:
        DataError: ``image_missing`` if there is no such file.
        StorageError: If it cannot be read.
    """
    return decode_image(_bytes_of(image_uri), where=image_uri, expected_hw=expected_hw)


def image_name(value: object, what: str) -> str:
    """Returns the name of an image as a record has it.

    Raises:
        DataError: ``image_path`` if it is no text, empty or not UTF-8.
    """
    if not isinstance(value, str) or not value or not is_utf8(value):
        raise DataError(f"{what} is {value!r:.200}, expected the image's place", reason="image_path")
    return value


def below_root(root: str, name: str) -> str:
    """Returns the URI of an image that a dataset names; DataError ``unsafe_path`` if it may lie elsewhere."""
    uri = str(safe_join(root, name))
    if parse_image_uri(uri).member is not None:  # would be read from inside an archive, past safe_join
        raise DataError(f"image name {name!r:.200} has the form of a tar member", reason="unsafe_path")
    return uri


def find_image(root: str, name: str, others: Sequence[str]) -> str:
    """Returns the URI of the image of that name if there is one, else of the one under the other names.

    Raises:
        DataError: ``missing_image`` or ``ambiguous_image`` with what was tried, ``unsafe_path``.
        StorageError: If it cannot be looked up.
    """
    exact, *tried = [below_root(root, one) for one in (name, *others)]
    if storage.exists(exact):
        return exact
    found = [uri for uri in tried if storage.exists(uri)]
    if len(found) != 1:
        raise DataError(
            f"{len(found)} images for the name {name!r:.200}, expected one; tried {[exact, *tried]}",
            reason="ambiguous_image" if found else "missing_image",
        )
    return found[0]


def read_size_hw(image_uri: str) -> tuple[int, int]:
    """Returns height and width of an image in pixels, by opening it: for records that do not say.

    Raises:
        DataError: ``image_missing``, or the reasons of ``read_image_bytes`` and ``samtok.images.open_image``.
        StorageError: If it cannot be read.
    """
    image = open_image(_bytes_of(image_uri), where=image_uri)
    return image.height, image.width


def _bytes_of(image_uri: str) -> bytes:
    try:
        return read_image_bytes(image_uri)
    except storage.NotFoundError as error:
        raise DataError(str(error), reason="image_missing") from error


def _too_large(image_uri: str, got: str, max_bytes: int) -> DataError:
    return DataError(
        f"{image_uri} has {got}, expected an image of at most {max_bytes}", reason="image_too_large"
    )
