"""Small label maps, and what was read of them."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.ingestion.reader import Input, Reader
from samtok import masks
from tests.readers import build_reader

HEIGHT, WIDTH = 6, 8


def regions(*numbers: Any) -> np.ndarray:
    """A map of six rows, of which each has one of up to six numbers, in asymmetric pieces."""
    made = np.zeros((HEIGHT, WIDTH, *np.shape(numbers[0])), np.int64)
    for index, number in enumerate(numbers):
        made[index, index:] = number
    return made


def save(path: Path, values: np.ndarray, dtype: type = np.uint8) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(dtype)).save(path)
    return values


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)


def reader_of(folder: Path | str, encoding: Any, **options: Any) -> Reader:
    place = {"source": f"{folder}/maps", "images": f"{folder}/images"}
    return build_reader("labelmap", **{**place, "dataset": "m", "encoding": encoding, **options})


def found_in(row: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    return {mask["mask_id"]: (mask["rle"], mask["label"], mask["flags"]) for mask in row["masks"]}


def reasons(rejects: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return sorted((one["reason"], one["row_id"], one["mask_id"] or "", one["num_masks"]) for one in rejects)


def covers(row: dict[str, Any]) -> bool:
    """Whether each pixel is in exactly one mask."""
    size = {"height": row["height"], "width": row["width"]}
    dense = np.stack([masks.decode(mask["rle"], **size) for mask in row["masks"]])
    return bool((dense.sum(axis=0) == 1).all())


def write_cityscapes(
    folder: Path, stem: str = "aachen/aachen_000000_000019", of: str = "gtFine"
) -> np.ndarray:
    values = save(
        folder / f"maps/{stem}_{of}_instanceIds.png", regions(26001, 26, 7, 3, 40, 24000), np.uint16
    )
    labels = np.where(values >= 1000, values // 1000, values)
    save(folder / f"maps/{stem}_{of}_labelIds.png", labels)
    save(folder / f"maps/{stem}_{of}_color.png", np.stack([labels] * 3, axis=-1))
    (folder / f"maps/{stem}_{of}_polygons.json").write_text("{}")
    picture(folder / f"images/{stem}_leftImg8bit.png")
    return values


def inputs_of(reader: Reader) -> list[Input]:
    """Returns the inputs of a reader, without rejects."""
    return [item for item in reader.inputs() if isinstance(item, Input)]
