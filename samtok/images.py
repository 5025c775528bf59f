"""Untrusted image bytes to RGB arrays, the reference's resize, and safe joining of file names to a root.

Only five formats are opened, the size is checked from the header before a pixel is decoded, and every way
in which an image can be broken becomes a ``DataError`` with a reason. Label maps need their raw values and
are read by ``samtok.labelmaps``.
"""

import contextlib
import re
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile, ImageOps

from samtok.errors import ConfigError, DataError
from samtok.masks import MAX_PIXELS
from samtok.mending import mended

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")

DECODE_BYTES_PER_PIXEL = 20
"""Memory that decoding and shrinking an image takes at most; measured for every mode of ``FORMATS``."""

_ORIENTATION = 0x0112  # EXIF tag; 5 to 8 swap height and width
_STORED_HW = "samtok_stored_hw"
"""Entry of ``Image.info``: height and width of the file of an image that was decoded at a reduced size."""
_DRIVE = re.compile(r"[A-Za-z]:")


def decode_image(
    data: bytes, *, where: str, expected_hw: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes an image file to RGB, values 0 to 255, in a new writable array.

    Gray, CMYK and palette images are converted, 16-bit gray is scaled to 8 bits by its own range, alpha is
    dropped (as the reference does), of several frames the first is taken.

    The EXIF orientation is ignored where the stored size is the expected one or none is expected, because
    masks were drawn on the stored pixels; it is applied only if that makes the sizes agree. (The
    orientation tag of TIFF belongs to that format, so Pillow always applies it.)

    Args:
        where: Names the image in errors.
        expected_hw: Height and width that the annotation states.
        max_pixels: Largest accepted height x width; ``2 * PIL.Image.MAX_IMAGE_PIXELS`` holds as well.

    Raises:
        DataError: ``image_empty``, ``image_format`` (not one of ``FORMATS``, or pixels that have no meaning
            as RGB), ``image_bomb`` (too many pixels), ``image_truncated`` (cut off or damaged),
            ``image_size``.
    """
    image = open_image(data, where=where, max_pixels=max_pixels)
    return rgb_of(framed(image, where, expected_hw), where)


def open_image(
    data: bytes,
    *,
    where: str,
    formats: Sequence[str] = FORMATS,
    max_pixels: int = MAX_PIXELS,
    least_side: int | None = None,
) -> Image.Image:
    """Opens and decodes an image without changing its pixels; the errors are those of ``decode_image``.

    A file that is damaged only besides its pixels is mended (``samtok.mending``). With ``least_side`` a JPEG
    is decoded at a half, a quarter or an eighth of its size, the smallest whose sides are not below it.
    """
    if not data:
        raise DataError(f"{where}: the image file is empty.", reason="image_empty")
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ConfigError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on in this process, so cut-off images would be filled "
            "with gray and go unnoticed; switch it off."
        )
    # Pillow warns of what is decided here (too many pixels) or changes no pixel (odd tags); not thread by
    # thread, since a block that restores the filters would restore them for other threads too.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        return _loaded(data, where, formats, max_pixels, least_side)
    except DataError as error:
        whole = None
        if error.reason in ("image_format", "image_truncated"):
            with contextlib.suppress(Exception):  # whatever Pillow says of this attempt, that one counts
                whole = mended(data, max_pixels=max_pixels)
        if whole is None:
            raise
    return _loaded(whole, where, formats, max_pixels, least_side)


def _loaded(
    data: bytes, where: str, formats: Sequence[str], max_pixels: int, least_side: int | None
) -> Image.Image:
    image = _opened(data, where, formats, max_pixels)
    if least_side is not None and image.format == "JPEG" and min(image.size) >= 2 * least_side:
        image.info[_STORED_HW] = image.height, image.width
        image.draft(None, (least_side, least_side))
    try:
        image.load()
    except Exception as error:
        raise DataError(
            f"{where}: the {image.format} image of {len(data)} bytes is cut off or damaged: {error}.",
            reason="image_truncated",
        ) from error
    return image


def _opened(data: bytes, where: str, formats: Sequence[str], max_pixels: int) -> Image.Image:
    try:
        image = Image.open(BytesIO(data), formats=list(formats))
    except Image.DecompressionBombError as error:
        raise DataError(f"{where}: {error}", reason="image_bomb") from error
    except Exception as error:  # Pillow's readers raise errors of all kinds on damaged bytes
        raise DataError(
            f"{where}: {len(data)} bytes that start with {data[:8]!r} are not a readable image, expected one "
            f"of {', '.join(formats)}.",  # Pillow's own words hold a memory address, which would differ
            reason="image_format",
        ) from error
    if image.width * image.height > max_pixels:
        raise DataError(
            f"{where}: the image has {image.height}x{image.width} pixels, expected at most {max_pixels}.",
            reason="image_bomb",
        )
    return image


def read_header(data: bytes, *, where: str) -> tuple[tuple[int, int], int]:
    """Returns height and width of an image as it is stored, and its EXIF orientation, without decoding it: a
    PNG may have one behind its pixels too, which counts as none. The errors are those of ``open_image``."""
    image = _opened(data, where, FORMATS, MAX_PIXELS)
    known = image.format != "PNG" or "exif" in image.info
    return (image.height, image.width), orientation_of(image) if known else 1


def orientation_of(image: Image.Image) -> int:
    """Returns the EXIF orientation of an open image, 1 to 8; 1, as stored, where none can be read, and for
    TIFF."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 EXIF data is anybody's, and no part of the pixels
        return 1
    return orientation if orientation in range(1, 9) and image.format != "TIFF" else 1


def framed(
    image: Image.Image, where: str, expected_hw: tuple[int, int] | None = None, *, upright: bool = False
) -> Image.Image:
    """Returns an open image as its masks were drawn: as it is stored, or turned as its EXIF orientation says
    if ``upright`` asks for that, or else if only that gives the expected size. The size is that of the file,
    also of an image that was decoded at a reduced one.

    Raises:
        DataError: ``image_size`` for another size than ``expected_hw``.
    """
    orientation = orientation_of(image)
    size_hw = image.info.get(_STORED_HW, (image.height, image.width))
    only_upright = orientation >= 5 and size_hw != expected_hw == size_hw[::-1]
    if orientation > 1 and (upright or only_upright):
        try:
            image = ImageOps.exif_transpose(image)
        except Exception as error:
            fault = f"{where}: the EXIF data cannot be read: {error}."
            raise DataError(fault, reason="image_size") from error
        size_hw = size_hw[::-1] if orientation >= 5 else size_hw
    if expected_hw is not None and size_hw != expected_hw:
        raise DataError(
            f"{where}: the image has {size_hw[0]}x{size_hw[1]} pixels (EXIF orientation {orientation}), "
            f"the annotation states {expected_hw[0]}x{expected_hw[1]}; is it another version of the image?",
            reason="image_size",
        )
    return image


def resize_square(
    image: UInt8[np.ndarray, "height width 3"], size: int
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Resizes to size x size pixels, bicubic as the reference does; the aspect ratio is not kept."""
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def safe_join(root: str, name: str, *, link_roots: Sequence[str] = ()) -> str:
    """Joins a file name from a dataset to its root, so that the result cannot lie outside.

    Args:
        root: A local folder or an ``s3://`` URI.
        name: A name with forward slashes, as annotation files state it: relative, or absolute and below the
            root. Parts that are empty or ``.`` are left out.
        link_roots: Local folders besides the root that links below it may lead into.

    Raises:
        DataError: ``unsafe_path`` for a name that is empty or names no file, is absolute elsewhere or a URI,
            has ``..``, a drive letter, a backslash or NUL, and for a local name that leads outside through a
            link.
        ValueError: For a root of another kind.
    """
    given, name = name, _below(root, name)
    fault = _fault_of_name(name)
    if fault:
        raise _unsafe(root, given, fault)
    name = "/".join(part for part in name.split("/") if part not in ("", "."))
    if root.startswith("s3://"):
        return f"{root.rstrip('/')}/{name}"
    if "://" in root:
        raise ValueError(f"the root of a dataset must be a local folder or an s3:// URI, got {root!r}")
    path = Path(root) / name
    try:
        end = path.resolve()
        inside = any(end.is_relative_to(Path(one).resolve()) for one in (root, *link_roots))
    except (OSError, RuntimeError, ValueError) as error:  # a link that leads to itself, half a character
        raise _unsafe(root, given, f"it cannot be resolved: {error}") from error
    if not inside:
        allow = "--corpus.link-root, or link_root= in --corpora"  # the jobs' names for ``link_roots``
        fault = f"a link leads outside, to {end}; {end.parent} as {allow} allows that"
        raise _unsafe(root, given, fault)
    return str(path)


def _below(root: str, name: str) -> str:
    """Returns a name relative to the root, where it is absolute and below it."""
    starts = [root] if "://" in root or not name.startswith("/") else [root, str(Path(root).resolve())]
    for start in starts:
        if name.startswith(start.rstrip("/") + "/"):
            return name[len(start.rstrip("/")) :].lstrip("/")
    return name


def rgb_of(image: Image.Image, where: str) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the pixels of an open image, whose ``info`` may change; converted as ``decode_image`` says."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _scale_16_bit(np.asarray(image), where)
    image.info.pop("transparency", None)  # dropped with alpha; Pillow warns of it otherwise
    try:
        if image.mode == "F":  # Pillow would clip at 255, but the range of such pixels is not known
            raise ValueError("floating-point pixels")
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except ValueError as error:
        raise DataError(
            f"{where}: pixels of mode {image.mode} have no meaning as RGB: {error}; convert it to 8 bits.",
            reason="image_format",
        ) from error


def _scale_16_bit(values: np.ndarray, where: str) -> np.ndarray:
    """Scales by the range of the fewest bits, of 8, 10, 12, 14 and 16, that hold all values: cameras and
    scanners put 12 bits into 16. Pillow would clip at 255, which turns such an image white."""
    if values.min() < 0 or values.max() > 65535:
        raise DataError(
            f"{where}: gray values from {values.min()} to {values.max()} do not fit 16 bits.",
            reason="image_format",
        )
    top = next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if values.max() < 2**bits)
    gray = ((values.astype(np.int32) * 255 + top // 2) // top).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)


def _fault_of_name(name: str) -> str | None:
    if not name:
        return "it is empty"
    if "\0" in name or "\\" in name:
        return "it has a NUL character or a backslash"
    if name.startswith("/") or _DRIVE.match(name):
        return "it is absolute"
    if "://" in name or name.startswith("data:"):
        return "it is a URI"
    if ".." in name.split("/"):
        return "it has a part '..'"
    if all(part in ("", ".") for part in name.split("/")):
        return "it names a folder"
    return None


def _unsafe(root: str, name: str, fault: str) -> DataError:
    return DataError(
        f"the file name {name!r:.200} may lead outside {root}: {fault}; expected a name below it.",
        reason="unsafe_path",
    )
