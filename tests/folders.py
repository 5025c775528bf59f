"""Small folders of images and of annotation files, as people have them."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines import storage
from samtok import masks
from tests.readers import build_reader, read_all

HEIGHT, WIDTH = 20, 30
KINDS_OF_FOLDERS = ("masks", "labelme", "yolo")
"""Readers of plain folders."""
SQUARE = np.pad(np.ones((6, 8), bool), ((3, HEIGHT - 9), (4, WIDTH - 12)))
SQUARE_RLE = masks.encode(SQUARE)
POINTS = [[4, 3], [12, 3], [12, 9], [4, 9]]
"""The corners of the square, and below those of YOLO."""
SHARES = "0.133333 0.15 0.4 0.15 0.4 0.45 0.133333 0.45"


def png(pixels: np.ndarray, palette: list[int] | None = None) -> bytes:
    """Encodes an image, with a palette one of indices."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette)
    image.save(buffer, "PNG")
    return buffer.getvalue()


MASK = png(SQUARE.astype(np.uint8) * 255)
SMALL = png(SQUARE[:9, :14].astype(np.uint8))
PICTURE = png(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
A = {"images/a.jpg": PICTURE}
"""An image that annotations may be of."""


def labelme(*shapes: Any, image: Any = "a.jpg", **fields: Any) -> bytes:
    size = {"imageHeight": HEIGHT, "imageWidth": WIDTH}
    return json.dumps(
        {"shapes": list(shapes), "imagePath": image, "imageData": "x", **size, **fields}
    ).encode()


def shape(points: Any = POINTS, kind: Any = "polygon", **fields: Any) -> dict[str, Any]:
    return {"label": "box", "points": points, "shape_type": kind, "group_id": None, "flags": {}, **fields}


def mask_shape(part: bytes, points: Any, **fields: Any) -> dict[str, Any]:
    return shape(points, "mask", mask=base64.b64encode(part).decode(), **fields)


def put(root: Path | str, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        storage.write_bytes(f"{root}/{name}", data)


def reader_of(kind: str, root: Path | str, **options: Any) -> Any:
    source = {"masks": "masks", "labelme": "json", "yolo": "labels"}[kind]
    return build_reader(kind, source=f"{root}/{source}", images=f"{root}/images", dataset="d", **options)


def rejected(reader: Any) -> list[tuple[str, str | None, str, int]]:
    rows = [(one["row_id"], one["mask_id"], one["reason"], one["num_masks"]) for one in read_all(reader)[1]]
    return sorted(rows, key=str)


def only_row(reader: Any) -> dict[str, Any]:
    rows, rejects = read_all(reader)
    assert rejects == [] and len(rows) == 1
    return rows[0]
