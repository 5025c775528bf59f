"""Files that are damaged only besides their pixels are kept; where a pixel is missing they are refused."""

import struct
import warnings
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from samtok.errors import DataError
from samtok.images import decode_image

RGB = np.random.default_rng(1).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def file_of(format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    Image.fromarray(RGB).save(buffer, format, **options)
    return buffer.getvalue()


def with_text() -> bytes:
    """A PNG with a text behind its pixels, where most of its bytes are."""
    plain, text = file_of("PNG"), b"Comment\0" + b"x" * 500
    chunk = struct.pack(">I", len(text)) + b"tEXt" + text + struct.pack(">I", zlib.crc32(b"tEXt" + text))
    return plain[:-12] + chunk + plain[-12:]


PNG, JPEG = with_text(), file_of("JPEG", quality=90)
PIXELS = {data: decode_image(data, where="x") for data in (PNG, JPEG)}


@pytest.mark.parametrize("cut", [1, 4, 8, 12, 13, 200, 515])
def test_a_png_that_ends_behind_its_pixels_is_kept(cut: int):
    np.testing.assert_array_equal(decode_image(PNG[:-cut], where="x"), RGB)


def test_a_png_with_a_damaged_text_is_kept_and_with_a_damaged_palette_is_not():
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "abcdef")
    data = file_of("PNG", pnginfo=info)
    np.testing.assert_array_equal(decode_image(data.replace(b"abcdef", b"abcdeg"), where="x"), RGB)
    buffer = BytesIO()
    Image.fromarray(RGB).convert("P").save(buffer, "PNG")
    place = buffer.getvalue().index(b"PLTE") + 4
    damaged = buffer.getvalue()[:place] + b"?" + buffer.getvalue()[place + 1 :]
    with pytest.raises(DataError):
        decode_image(damaged, where="x")


def test_a_jpeg_without_its_end_mark_is_kept():
    assert JPEG.endswith(b"\xff\xd9")
    for data in (JPEG[:-1], JPEG[:-2]):
        np.testing.assert_array_equal(decode_image(data, where="x"), PIXELS[JPEG])


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_blocks": 1}])
def test_a_jpeg_of_several_parts_needs_its_end_mark(options: dict[str, Any]):
    """A part of it could be missing and its bytes would still look whole."""
    data = file_of("JPEG", quality=90, **options)
    for cut in (2, 3, len(data) // 3):
        with pytest.raises(DataError, match="cut off or damaged"):
            decode_image(data[:-cut], where="x")


@pytest.mark.parametrize("subsampling", [0, 2])
def test_no_jpeg_that_is_cut_within_its_last_blocks_is_kept(subsampling: int):
    data = file_of("JPEG", quality=90, subsampling=subsampling)
    pixels = decode_image(data, where="x")
    kept = []
    for end in range(len(data) - 160, len(data)):
        try:
            found = decode_image(data[:end], where="x")
        except DataError:
            continue
        np.testing.assert_array_equal(found, pixels)
        kept.append(end)
    assert kept == [len(data) - 2, len(data) - 1]


@given(original=st.sampled_from([PNG, JPEG]), kept=st.floats(0, 1))
def test_a_file_cut_anywhere_has_all_its_pixels_or_is_refused(original: bytes, kept: float):
    try:
        pixels = decode_image(original[: round(kept * len(original))], where="x")
    except DataError as error:
        assert error.reason in ("image_empty", "image_format", "image_truncated")
    else:
        np.testing.assert_array_equal(pixels, PIXELS[original])


def test_a_png_that_says_more_pixels_than_are_allowed_is_not_inflated():
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"tEXt", b"bad"), (b"IDAT", zlib.compress(bytes(10**7)))]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body))
        + kind
        + body
        + struct.pack(">I", zlib.crc32(kind + body) * (kind != b"tEXt"))
        for kind, body in parts
    )
    with pytest.raises(DataError):
        decode_image(data, where="x")


def test_pillow_warns_of_nothing_while_an_image_is_read():
    """Of a bitmap whose damaged header says many pixels, and of an odd TIFF."""
    bitmap = bytearray(file_of("BMP"))
    bitmap[18:26] = struct.pack("<ii", 9469, 9468)
    tiff = file_of("TIFF").replace(struct.pack("<HHI", 256, 4, 1), struct.pack("<HHI", 256, 4, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in (bytes(bitmap), tiff, file_of("TIFF")[:-30]):
            try:
                decode_image(data, where="x")
            except DataError as error:
                assert error.reason in ("image_format", "image_truncated", "image_bomb")
