"""Small masks and images of records with texts, and what was read of them."""

import io
import json
from typing import Any

import numpy as np
from PIL import Image

from samtok import masks

HEIGHT, WIDTH = 6, 8


def rle(column: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> dict[str, Any]:
    mask = np.zeros(size, bool)
    mask[1:3, column] = True
    return {"size": list(size), "counts": masks.encode(mask)}


def said(row: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (made["task"], made["mask_ids"], made["text"], made["tags"], json.loads(made["payload"] or "{}"))
        for made in row["annotations"]
    ]


def picture(side: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (WIDTH + side, HEIGHT)).save(buffer, "PNG")
    return buffer.getvalue()


def counted(rows: list[Any], rejects: list[Any]) -> int:
    return sum(len(row["masks"]) for row in rows) + sum(one["num_masks"] for one in rejects)
