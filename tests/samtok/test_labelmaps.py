"""Label maps give the stored ids whatever the PNG mode, and split into the masks of their ids."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from samtok import masks
from samtok.errors import DataError
from samtok.labelmaps import read_label_map, split_labels

label_maps = hnp.arrays(
    st.sampled_from([np.int32, np.int64, np.uint8]),
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12),
    elements=st.integers(0, 5),
)


def _png(image: Image.Image, format: str = "PNG") -> bytes:
    buffer = BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


def _raw_png(depth: int, colour_type: int, rows: list[bytes], width: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_rgb_is_a_number_of_three_digits_to_the_base_256():
    pixels = np.array(
        [[[5, 0, 0], [0, 1, 0], [0, 0, 1]], [[255, 255, 0], [200, 2, 3], [255, 255, 255]]], np.uint8
    )
    labels = read_label_map(_png(Image.fromarray(pixels)), where="x")
    assert labels.dtype == np.int32
    assert labels.tolist() == [[5, 256, 65536], [65535, 197320, 16777215]]


def test_palette_images_give_indices_and_not_colours():
    indices = np.array([[0, 1, 2], [2, 7, 255]], np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    assert read_label_map(_png(image), where="x").tolist() == indices.tolist()


@pytest.mark.parametrize(("dtype", "largest"), [(np.uint8, 255), (np.uint16, 65535)])
def test_gray_of_8_and_16_bits_is_taken_as_stored(dtype, largest):
    ids = np.array([[0, 1, 300 % largest], [2, 254, largest]], dtype)
    assert read_label_map(_png(Image.fromarray(ids)), where="x").tolist() == ids.tolist()


@pytest.mark.parametrize(
    ("depth", "row", "expected"),
    [
        (1, bytes([0b01100000]), [0, 1, 1, 0]),
        (2, bytes([0b00_01_10_11]), [0, 1, 2, 3]),
        (4, bytes([0x0F, 0x71]), [0, 15, 7, 1]),
    ],
)
def test_gray_of_few_bits_is_not_spread_over_the_range(depth, row, expected):
    assert read_label_map(_raw_png(depth, 0, [row], 4), where="x").tolist() == [expected]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_png(Image.new("RGBA", (2, 2))), "got mode RGBA with 8 bits"),
        (_png(Image.new("LA", (2, 2))), "got mode LA with 8 bits"),
        (_raw_png(16, 2, [bytes(12), bytes(12)], 2), "got mode RGB with 16 bits"),
    ],
)
def test_pixels_that_are_no_ids_are_refused(data, message):
    with pytest.raises(DataError, match=f"ann/1.png: a label map must be .*{message}") as caught:
        read_label_map(data, where="ann/1.png")
    assert caught.value.reason == "label_mode"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "image_empty"),
        (_png(Image.new("L", (2, 2)), "JPEG"), "image_format"),  # lossy: ids would be wrong
        (_raw_png(8, 0, [bytes(4)], 9), "image_truncated"),
    ],
)
def test_files_that_are_no_png_are_refused(data, reason):
    with pytest.raises(DataError) as caught:
        read_label_map(data, where="x")
    assert caught.value.reason == reason


@given(label_maps)
def test_splitting_gives_the_mask_of_each_id_but_zero_in_ascending_order(labels):
    found = list(split_labels(labels))
    assert [label for label, _ in found] == sorted(set(labels.ravel().tolist()) - {0})
    for label, counts in found:
        assert counts == masks.encode(labels == label)


def test_negative_and_large_ids_are_ids_and_an_empty_map_has_none():
    labels = np.array([[-1, 16777215, 0], [-1, 16777215, 16777215]], np.int32)
    assert [label for label, _ in split_labels(labels)] == [-1, 16777215]
    assert list(split_labels(np.zeros((0, 4), np.int32))) == []


@pytest.mark.slow
@pytest.mark.numerics
def test_as_many_ids_as_pixels_are_split():
    labels = np.arange(1, 10_001, dtype=np.int32).reshape(100, 100)
    found = dict(split_labels(labels))
    assert len(found) == 10_000
    assert masks.box_xyxy(found[10_000], height=100, width=100) == (99, 99, 99, 99)
