"""Image files whose pixels are all there although something else in them is damaged or cut off.

A PNG may end in the middle of a chunk of text, a JPEG without its end mark: such files are mended, so that
strict decoders take them. Where pixels are missing or damaged nothing is: the checksum of a PNG's pixels must
hold, and of a JPEG every bit of them must be there. Sources: the PNG specification (third edition), section
5; ITU-T T.81, annex B.
"""

import zlib
from io import BytesIO

from PIL import Image

_PNG, _JPEG, _END_OF_JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"\xff\xd9"
_STEP = 1 << 20  # bytes that are inflated at a time
_FILLERS = tuple(bytes([byte]) * 4096 for byte in (0x00, 0xAA, 0x55, 0x7F))
"""Bits that stand in for missing ones: more than an MCU of ten blocks can have (10 x 64 coefficients of 27
bits, 2160 bytes), since one that is not complete is not decoded at all, whatever it begins with."""
_FRAMES, _BASELINE = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}, {0xC0, 0xC1}  # markers of JPEG
_SCAN, _RESTARTS = 0xDA, 0xDD


def mended(data: bytes, *, max_pixels: int) -> bytes | None:
    """Returns the file with nothing but whole parts and its end; None if pixels are missing, there are more
    than ``max_pixels``, or it is no PNG or JPEG."""
    if data.startswith(_PNG):
        return _mended_png(data, max_pixels)
    return _mended_jpeg(data) if data.startswith(_JPEG) else None


def _mended_png(data: bytes, max_pixels: int) -> bytes | None:
    before, pixels, place = [_PNG], b"", len(_PNG)
    while place + 8 <= len(data):
        size, kind = int.from_bytes(data[place : place + 4]), data[place + 4 : place + 8]
        body, end = data[place + 8 : place + 8 + size], place + 12 + size
        if kind == b"IDAT":
            pixels += body
        elif kind == b"IEND":
            break
        elif data[end - 4 : end] == _crc(kind + body):
            before += [] if pixels else [data[place:end]]
        elif kind[:1].isupper():  # what the pixels mean depends on it
            return None
        place = end
    header = before[1] if len(before) > 1 else b""
    width, height = int.from_bytes(header[8:12]), int.from_bytes(header[12:16])
    if (
        header[4:8] != b"IHDR"
        or width * height > max_pixels
        or not _inflates(pixels, 9 * height * (width + 8))
    ):
        return None
    return b"".join([*before, _chunk(b"IDAT", pixels), _chunk(b"IEND", b"")])


def _inflates(data: bytes, limit: int) -> bool:
    """Whether it is a whole zlib stream with a right checksum, of at most so many bytes."""
    stream, found = zlib.decompressobj(), 0
    try:
        while not stream.eof and found <= limit:
            part = stream.decompress(data, _STEP)
            data, found = stream.unconsumed_tail, found + len(part)
            if not part and not data:
                break
    except zlib.error:
        return False
    return stream.eof and found <= limit


def _chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4) + kind + body + _crc(kind + body)


def _crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4)


def _mended_jpeg(data: bytes) -> bytes | None:
    """Different fillers give the same pixels only where no bit of them is read as a pixel."""
    if not _is_one_baseline_scan(data):
        return None
    data = data.rstrip(b"\xff")
    filled = (data + filler + _END_OF_JPEG for filler in _FILLERS)
    seen = {Image.open(BytesIO(one), formats=["JPEG"]).tobytes() for one in filled}
    return data + _END_OF_JPEG if len(seen) == 1 else None


def _is_one_baseline_scan(data: bytes) -> bool:
    """Whether all pixels come in one run of bits: with more scans or restarts a whole one may be missing."""
    place = len(_JPEG)
    while place + 4 <= len(data) and data[place] == 0xFF:
        kind, end = data[place + 1], place + 2 + int.from_bytes(data[place + 2 : place + 4])
        if kind == _SCAN:
            pixels = data[end:].replace(b"\xff\x00", b"").rstrip(b"\xff")
            return b"\xff" not in pixels
        if kind == _RESTARTS or (kind in _FRAMES and kind not in _BASELINE):
            return False
        place = end
    return False
