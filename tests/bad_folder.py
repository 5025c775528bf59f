"""A COCO folder in which nearly everything is wrong, and what must become of each record."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from samtok import masks

HEIGHT, WIDTH = 40, 56

IMAGE_REASONS = {
    "truncated.jpg": "image_truncated",
    "zero.jpg": "image_empty",
    "other_size.png": "image_size",
    "absolute": "unsafe_path",
    "missing.jpg": "image_missing",
}
"""Images that cannot be used, and why."""

MASK_REASONS = {"rle_short": "rle_sum", "polygon_4": "polygon_invalid"}
"""Masks of a good image that cannot be used, and why."""

READ_CORRECTLY = ("good.png", "cmyk.jpg", "sixteen_bit.png", "gray.png", "palette.png")


def write_bad_folder(root: Path) -> Path:
    """Writes the folder; returns the annotation file."""
    folder = root / "images"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    rgb.save(folder / "good.png")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("L").save(folder / "gray.png")
    rgb.convert("P").save(folder / "palette.png")
    sixteen = rng.integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)
    Image.fromarray(sixteen).save(folder / "sixteen_bit.png")
    rgb.resize((WIDTH, HEIGHT + 8)).save(folder / "other_size.png")
    (folder / "zero.jpg").write_bytes(b"")
    whole = io.BytesIO()
    rgb.save(whole, "JPEG")
    (folder / "truncated.jpg").write_bytes(whole.getvalue()[:-200])
    outside = root / "outside.png"
    rgb.save(outside)
    names = [*READ_CORRECTLY, *(n for n in IMAGE_REASONS if n != "absolute"), str(outside)]
    images = [
        {"id": i, "file_name": name, "height": HEIGHT, "width": WIDTH}
        for i, name in enumerate(names, start=1)
    ]
    full = np.zeros((HEIGHT, WIDTH), dtype=bool)
    full[4:20, 8:30] = True
    good = {"size": [HEIGHT, WIDTH], "counts": masks.encode(full)}
    annotations = [_annotation(i, i, good) for i in range(1, len(images) + 1)]
    short = {"size": [HEIGHT, WIDTH], "counts": [100, 50]}
    annotations.append(_annotation(101, 1, short))
    annotations.append(_annotation(102, 1, [[1.0, 2.0, 3.0, 4.0]]))
    body = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    path = root / "instances.json"
    path.write_text(json.dumps(body))
    return path


def _annotation(number: int, image: int, segmentation: object) -> dict:
    box = [8, 4, 22, 16]
    return {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "iscrowd": 0,
        "bbox": box,
        "area": 352,
        "segmentation": segmentation,
    }
