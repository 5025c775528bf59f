"""Images of every accepted kind become RGB, broken and hostile ones are refused with a reason."""

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from samtok.errors import ConfigError, DataError
from samtok.images import decode_image, framed, open_image, resize_square, safe_join

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def _file(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _with_orientation(orientation: int, format: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _file(Image.fromarray(RGB), format, exif=exif)


def _smooth(width: int, height: int) -> Image.Image:
    """A picture that a reduced JPEG shows as well as a whole one."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, (x + y) / 2], axis=2).astype(np.uint8))


def _png_header(height: int, width: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize(
    ("format", "size", "decoded"),
    [
        ("JPEG", (512, 256), (256, 128)),  # both sides are at least 2 * 128
        ("JPEG", (512, 255), (512, 255)),
        ("JPEG", (1040, 600), (260, 150)),  # a quarter
        ("JPEG", (129, 2000), (129, 2000)),
        ("JPEG", (4096, 4096), (512, 512)),  # an eighth is the least
        ("PNG", (512, 512), (512, 512)),
    ],
)
def test_large_jpegs_are_decoded_at_a_reduced_size_where_that_is_asked_for(format, size, decoded):
    data = _file(_smooth(*size), format)
    image = open_image(data, where="x", least_side=128)
    assert image.size == decoded
    assert framed(image, "x", size[::-1]) is image  # of the size that the annotation states
    with pytest.raises(DataError, match=f"has {size[1]}x{size[0]} pixels"):
        framed(open_image(data, where="x", least_side=128), "x", (7, 7))
    whole, reduced = (resize_square(np.array(one), 128) for one in (open_image(data, where="x"), image))
    assert np.abs(whole.astype(int) - reduced).max() <= 6


def test_a_reduced_jpeg_is_turned_as_its_whole_would_be():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = _file(_smooth(512, 300), "JPEG", exif=exif)
    turned = framed(open_image(data, where="x", least_side=64), "x", (512, 300))
    assert turned.size == (75, 128)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_keep_every_pixel(format):
    options = {"lossless": True} if format == "WEBP" else {}
    pixels = decode_image(_file(Image.fromarray(RGB), format, **options), where="x", expected_hw=(6, 9))
    np.testing.assert_array_equal(pixels, RGB)
    assert pixels.dtype == np.uint8 and pixels.flags.writeable and pixels.flags.c_contiguous


def test_jpeg_keeps_size_and_colour():
    red = Image.new("RGB", (9, 6), (250, 10, 10))
    pixels = decode_image(_file(red, "JPEG"), where="x")
    assert pixels.shape == (6, 9, 3)
    np.testing.assert_allclose(pixels, np.broadcast_to([250, 10, 10], (6, 9, 3)), atol=4)


def test_gray_palette_and_alpha_become_rgb():
    gray = RGB[:, :, 0]
    np.testing.assert_array_equal(
        decode_image(_file(Image.fromarray(gray)), where="x"), np.repeat(gray[:, :, None], 3, axis=2)
    )
    palette = Image.fromarray(gray // 86).convert("P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    transparencies: list[dict[str, Any]] = [{}, {"transparency": 1}, {"transparency": b"\x00\x80\xff"}]
    for options in transparencies:
        pixels = decode_image(_file(palette, **options), where="x")
        np.testing.assert_array_equal(pixels, colours[gray // 86])
    rgba = np.dstack([RGB, gray])
    np.testing.assert_array_equal(decode_image(_file(Image.fromarray(rgba)), where="x"), RGB)


def test_cmyk_jpeg_becomes_rgb():
    cmyk = Image.new("RGB", (9, 6), (200, 30, 30)).convert("CMYK")
    pixels = decode_image(_file(cmyk, "JPEG"), where="x")
    np.testing.assert_allclose(pixels, np.broadcast_to([200, 30, 30], (6, 9, 3)), atol=6)


@pytest.mark.parametrize(("format", "dtype"), [("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.int32)])
def test_16_bit_gray_is_scaled_and_not_clipped(format, dtype):
    values = np.array([[0, 128, 129, 257], [256, 30000, 65407, 65535]], dtype=dtype)
    pixels = decode_image(_file(Image.fromarray(values), format), where="x")
    expected = np.array([[0, 0, 1, 1], [1, 117, 255, 255]], dtype=np.uint8)
    np.testing.assert_array_equal(pixels, np.repeat(expected[:, :, None], 3, axis=2))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_gray_of_fewer_bits_in_16_is_scaled_by_its_own_range(bits):
    values = np.array([[0, 2 ** (bits - 1), 2**bits - 1]], dtype=np.uint16)
    pixels = decode_image(_file(Image.fromarray(values), "PNG"), where="x")
    assert pixels[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    "values", [np.array([[70000]], np.int32), np.array([[-1]], np.int32), np.ones((2, 2), "f")]
)
def test_pixels_without_an_rgb_meaning_are_refused(values):
    with pytest.raises(DataError, match=r"x: .*(do not fit 16 bits|mode F have no meaning)") as caught:
        decode_image(_file(Image.fromarray(values), "TIFF"), where="x")
    assert caught.value.reason == "image_format"


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation_is_ignored_where_the_stored_size_is_expected(format):
    plain = decode_image(_file(Image.fromarray(RGB), format), where="x")
    for orientation in (3, 6):
        data = _with_orientation(orientation, format)
        np.testing.assert_array_equal(decode_image(data, where="x", expected_hw=(6, 9)), plain)
        np.testing.assert_array_equal(decode_image(data, where="x"), plain)


def test_exif_orientation_is_applied_only_if_that_makes_the_sizes_agree():
    turned = decode_image(_with_orientation(6), where="x", expected_hw=(9, 6))
    np.testing.assert_array_equal(turned, np.rot90(RGB, k=-1))
    for data, expected_hw in [
        (_with_orientation(6), (6, 8)),
        (_with_orientation(3), (9, 6)),
        (_file(Image.fromarray(RGB)), (9, 6)),
    ]:
        with pytest.raises(DataError, match=r"x: the image has 6x9 pixels .* annotation states") as caught:
            decode_image(data, where="x", expected_hw=expected_hw)
        assert caught.value.reason == "image_size"


@pytest.mark.filterwarnings("ignore:.*EXIF:UserWarning")
@pytest.mark.parametrize(
    "body", [b"MM\x00\x2a\x00\x00\x00\x08\x00\x05\x01", b"XX\x00\x2a\x00\x00\x00\x08", b"MM"]
)
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_exif_data_that_cannot_be_read_matters_only_where_the_size_differs(format, body):
    data = _file(Image.fromarray(RGB), format, exif=b"Exif\x00\x00" + body)
    assert decode_image(data, where="x", expected_hw=(6, 9)).shape == (6, 9, 3)
    with pytest.raises(DataError, match=r"x: the (image has 6x9 pixels|EXIF data cannot be read)") as caught:
        decode_image(data, where="x", expected_hw=(9, 6))
    assert caught.value.reason == "image_size"


@pytest.mark.parametrize(
    ("data", "reason", "message"),
    [
        (b"", "image_empty", "file is empty"),
        (
            b"<html>not found</html>",
            "image_format",
            "22 bytes that start with b'<html>no' are not a readable",
        ),
        (_file(Image.fromarray(RGB), "GIF"), "image_format", "expected one of JPEG, PNG, WEBP, BMP, TIFF"),
        (_file(Image.fromarray(RGB), "PPM"), "image_format", "not a readable"),
        (_file(Image.fromarray(RGB))[:20], "image_format", "not a readable"),
        (_file(Image.fromarray(RGB), "JPEG")[:-40], "image_truncated", "JPEG image of .* is cut off"),
        (_file(Image.fromarray(RGB))[:100], "image_truncated", "PNG image of 100 bytes is cut off"),
        (_file(Image.fromarray(RGB), "BMP")[:-60], "image_truncated", "BMP image of .* is cut off"),
        (_png_header(20, 20), "image_truncated", "is cut off or damaged"),
        (_png_header(1001, 1000), "image_bomb", "1001x1000 pixels, expected at most 1000000"),
        (_png_header(2**20, 2**20), "image_bomb", "decompression bomb"),
    ],
)
def test_unusable_images_are_refused_with_a_reason(data, reason, message):
    with pytest.raises(DataError, match=f"^a.jpg: .*{message}") as caught:
        decode_image(data, where="a.jpg", max_pixels=1_000_000)
    assert caught.value.reason == reason


def test_the_pixel_limit_does_not_depend_on_the_global_setting_of_pillow(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(DataError, match="expected at most 268435456") as caught:
        decode_image(_png_header(2**14 + 1, 2**14), where="x")
    assert caught.value.reason == "image_bomb"


def test_filling_cut_off_images_with_gray_is_refused(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ConfigError, match="LOAD_TRUNCATED_IMAGES is on"):
        decode_image(_file(Image.fromarray(RGB)), where="x")


ORIGINALS = [_file(Image.fromarray(RGB), format) for format in ("PNG", "JPEG", "WEBP", "BMP", "TIFF")]
ORIGINALS += [_file(Image.fromarray(RGB), "TIFF", compression="tiff_lzw"), _with_orientation(6, "JPEG")]


def test_a_header_of_many_pixels_is_a_bomb_by_our_limit_and_warns_of_nothing():
    bmp = bytearray(_file(Image.fromarray(RGB), "BMP"))
    bmp[18:26] = struct.pack("<ii", 9001, 9961)  # 89,658,961 pixels, above which Pillow warns
    with pytest.raises(DataError, match="9961x9001 pixels, expected at most 10000") as caught:
        decode_image(bytes(bmp), where="x", max_pixels=10_000)
    assert caught.value.reason == "image_bomb"


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of damaged metadata beside raising
@settings(max_examples=150)
@given(
    st.sampled_from(ORIGINALS),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
    st.data(),
)
def test_damaged_files_decode_or_are_refused_with_a_reason(original, changes, data):
    damaged = bytearray(original[: data.draw(st.integers(1, len(original)))])
    for place, value in changes:
        damaged[place % len(damaged)] = value
    try:
        pixels = decode_image(bytes(damaged), where="x", expected_hw=(9, 6), max_pixels=10_000)
    except DataError as error:
        assert error.reason in {"image_format", "image_truncated", "image_bomb", "image_size"}
    else:
        assert pixels.shape == (9, 6, 3)


def test_resizing_is_bicubic_and_ignores_the_aspect_ratio():
    resized = resize_square(RGB, 12)
    expected = Image.fromarray(RGB).resize((12, 12))  # the reference names no filter
    np.testing.assert_array_equal(resized, np.asarray(expected))
    assert resized.shape == (12, 12, 3) and resized.flags.writeable


@pytest.mark.parametrize("name", ["a.jpg", "train/a b.jpg", "a..b/c.jpg", "é/ü.png", "...", "data/x:1.jpg"])
def test_relative_names_are_joined_to_local_and_remote_roots(tmp_path, name):
    for written in (name, f"./{name}", name.replace("/", "//"), f"{name}/."):
        assert safe_join("s3://bucket/coco/", written) == f"s3://bucket/coco/{name}"
        assert safe_join(str(tmp_path), written) == str(tmp_path / name)


def test_an_absolute_name_below_the_root_is_inside_it(tmp_path):
    (tmp_path / "entrance").symlink_to(tmp_path)
    for root in (str(tmp_path), f"{tmp_path}/", str(tmp_path / "entrance")):
        for name in (f"{root}/train/a.jpg", f"{tmp_path}/train/a.jpg"):
            assert safe_join(root, name) == f"{root.rstrip('/')}/train/a.jpg"
    assert safe_join("s3://b/coco", "s3://b/coco/train/a.jpg") == "s3://b/coco/train/a.jpg"
    for root, name in ((str(tmp_path), f"{tmp_path}2/a.jpg"), ("s3://b/coco", "s3://b/coco2/a.jpg")):
        with pytest.raises(DataError, match="it is absolute|it is a URI"):
            safe_join(root, name)
    with pytest.raises(DataError, match="has a part"):
        safe_join(str(tmp_path), f"{tmp_path}/../a.jpg")


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "it is empty"),
        ("/etc/passwd", "it is absolute"),
        ("C:/windows", "it is absolute"),
        ("c:evil.jpg", "it is absolute"),
        ("..", "it has a part '..'"),
        ("a/../../b", "it has a part '..'"),
        ("a/b/..", "it has a part '..'"),
        ("..\\b", "backslash"),
        ("a\\b", "backslash"),
        ("a.jpg\0.txt", "NUL"),
        ("s3://other/a.jpg", "it is a URI"),
        ("https://host/a.jpg", "it is a URI"),
        ("data:image/png;base64,iVBORw0KGgo=", "it is a URI"),
        (".", "it names a folder"),
        (".//./", "it names a folder"),
    ],
)
@pytest.mark.parametrize("root", ["data", "s3://bucket/coco"])
def test_names_that_may_leave_the_root_are_refused(root, name, fault):
    with pytest.raises(DataError, match=fault) as caught:
        safe_join(root, name)
    assert caught.value.reason == "unsafe_path"


def test_links_may_point_inside_the_root_only(tmp_path):
    root = tmp_path / "root"
    (root / "real").mkdir(parents=True)
    (tmp_path / "root-secret").mkdir()
    (root / "good").symlink_to(root / "real")
    (root / "bad").symlink_to(tmp_path / "root-secret")
    (root / "loop").symlink_to(root / "loop")
    (tmp_path / "entrance").symlink_to(root)
    assert safe_join(str(root), "good/a.jpg") == str(root / "good/a.jpg")
    assert safe_join(str(tmp_path / "entrance"), "real/a.jpg") == str(tmp_path / "entrance/real/a.jpg")
    for name in ("bad/a.jpg", "bad", "loop/a.jpg"):
        with pytest.raises(DataError, match=r"a link leads outside|cannot be resolved"):
            safe_join(str(root), name)
    with pytest.raises(
        DataError,
        match=rf"{tmp_path}/root-secret as --corpus.link-root, or link_root= in",
    ):
        safe_join(str(root), "bad/a.jpg")
    named = (str(tmp_path / "other"), str(tmp_path / "root-secret"))
    assert safe_join(str(root), "bad/a.jpg", link_roots=named) == str(root / "bad/a.jpg")
    with pytest.raises(DataError, match="a link leads outside"):
        safe_join(str(root), "bad/a.jpg", link_roots=named[:1])


def test_a_root_of_another_kind_is_a_programming_error():
    with pytest.raises(ValueError, match="a local folder or an s3:// URI, got 'https://host/x'"):
        safe_join("https://host/x", "a.jpg")
