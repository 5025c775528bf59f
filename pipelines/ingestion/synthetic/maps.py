"""Synthetic scenes as label maps, in the formats that ``panoptic`` and ``labelmap`` read.

- panoptic: COCO panoptic JSON and its folder of PNGs (cocodataset/panopticapi);
- ade20k: the full release of ADE20K (CSAILVision/ADE20K): image, ``_seg.png`` and JSON side by side;
- cityscapes: ``instanceIds`` and ``labelIds`` beside the images' tree (mcordts/cityscapesScripts), and
  ``legend.json`` with what the ids of things mean here.

What is no shape is void. Each writer returns the number of masks, an instance each.
"""

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from pipelines import storage
from pipelines.ingestion.synthetic import scenes as common
from pipelines.ingestion.synthetic.config import ShapesConfig
from samtok.shapes import KINDS, Scene

_ADE_CLASS = 312  # of the first kind: in R and G
_CITYSCAPES_THING = 24  # of the first kind: 24 to 33 are all things that there are


def segment_id(number: int) -> int:
    """Returns the number of a shape's pixels, which needs all three channels of a map."""
    return number * 70_001


def panoptic_map(scene: Scene) -> bytes:
    """Returns the panoptic map of a scene as PNG."""
    ids = _painted(scene, map(segment_id, range(1, len(scene.objects) + 1)), np.uint32)
    return _png(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8))


def panoptic_files(config: ShapesConfig) -> int:
    """Writes ``annotations/panoptic_<split>.json``, the maps to the folder of that name, and the images."""
    folder = f"annotations/panoptic_{config.split}"
    images, entries, num_masks = [], [], 0
    for scene in common.pictured(config):
        height, width = scene.size_hw
        image = {"id": common.image_id(scene), "file_name": common.image_name(scene, config)}
        images.append(common.json_bytes({**image, "height": height, "width": width}))
        name = f"{common.image_id(scene):012d}.png"
        common.put_new(storage.join(config.out, folder, name), lambda scene=scene: panoptic_map(scene))
        segments = _segments(scene, config)
        entry = {"image_id": common.image_id(scene), "file_name": name, "segments_info": segments}
        entries.append(common.json_bytes(entry))
        num_masks += len(segments)
    categories = [
        {"id": i, "name": kind, "supercategory": "shape", "isthing": 1}
        for i, kind in enumerate(KINDS, start=1)
    ]
    parts = [
        *(b'{"images":', common.json_list(images), b',"annotations":', common.json_list(entries)),
        *(b',"categories":', common.json_bytes(categories), b"}\n"),
    ]
    storage.write_bytes(storage.join(config.out, f"{folder}.json"), b"".join(parts))
    return num_masks


def ade20k_files(config: ShapesConfig) -> int:
    """Writes ``ADE/training/shapes/ADE_train_00000001.jpg`` with ``_seg.png`` and ``.json`` beside it."""
    part = {"train": "training", "val": "validation"}.get(config.split, config.split)
    folder = storage.join(config.out, "ADE", part, "shapes")
    num_masks = 0
    for scene in common.scenes(config):
        stem = f"ADE_{config.split}_{common.image_id(scene):08d}"
        common.put_new(
            storage.join(folder, f"{stem}.jpg"),
            lambda scene=scene: common.image_bytes(scene, "jpg", config.jpeg_quality),
        )
        common.put_new(storage.join(folder, f"{stem}_seg.png"), lambda scene=scene: _ade_map(scene))
        described = common.json_bytes({"annotation": _ade_annotation(scene, stem)})
        storage.write_bytes(storage.join(folder, f"{stem}.json"), described)
        num_masks += len(scene.objects)
    return num_masks


def cityscapes_files(config: ShapesConfig) -> int:
    """Writes ``leftImg8bit/<split>/shapes/shapes_000000_000001_leftImg8bit.png``, the maps below ``gtFine``
    likewise, and ``legend.json``."""
    num_masks = 0
    for scene in common.scenes(config):
        kinds = [_CITYSCAPES_THING + KINDS.index(shape.kind) for shape in scene.objects]
        numbers = [
            label if crowd else 1000 * label + number
            for number, (label, crowd) in enumerate(
                zip(kinds, common.crowds(scene, config.crowd_share), strict=True)
            )
        ]
        write_cityscapes_image(scene, config)
        for end, ids, dtype in (("instanceIds", numbers, np.uint16), ("labelIds", kinds, np.uint8)):
            common.put_new(
                cityscapes_uri(scene, config, "gtFine", f"{end}.png"),
                lambda scene=scene, ids=ids, dtype=dtype: _png(_painted(scene, ids, dtype)),
            )
        num_masks += len(scene.objects)
    legend = {"0": "unlabeled"} | {str(_CITYSCAPES_THING + i): kind for i, kind in enumerate(KINDS)}
    storage.write_bytes(storage.join(config.out, "legend.json"), common.json_bytes(legend))
    return num_masks


def cityscapes_uri(scene: Scene, config: ShapesConfig, kind: str, end: str) -> str:
    """Returns where a file of Cityscapes is: ``gtFine/train/shapes/shapes_000000_000001_gtFine_`` and its
    end."""
    stem = f"shapes_000000_{common.image_id(scene):06d}"
    return storage.join(config.out, kind, config.split, "shapes", "_".join(filter(None, (stem, kind, end))))


def write_cityscapes_image(scene: Scene, config: ShapesConfig) -> None:
    """Writes ``leftImg8bit/<split>/shapes/shapes_000000_000001_leftImg8bit.png``."""
    uri = cityscapes_uri(scene, config, "leftImg8bit", "") + ".png"
    common.put_new(uri, lambda: common.image_bytes(scene, "png", config.jpeg_quality))


def _segments(scene: Scene, config: ShapesConfig) -> list[dict[str, Any]]:
    return [
        {
            "id": segment_id(number),
            "category_id": KINDS.index(shape.kind) + 1,
            "area": int(shape.mask.sum()),
            "bbox": common.bbox_xywh(shape),
            "iscrowd": int(crowd),
        }
        for number, (shape, crowd) in enumerate(
            zip(scene.objects, common.crowds(scene, config.crowd_share), strict=True), start=1
        )
    ]


def _ade_map(scene: Scene) -> bytes:
    classes = _painted(scene, (_ADE_CLASS + KINDS.index(shape.kind) for shape in scene.objects), np.uint16)
    tags = _painted(scene, (2 * number + 35 for number in range(len(scene.objects))), np.uint8)
    return _png(np.stack([classes // 256 * 10, classes % 256, tags], axis=-1).astype(np.uint8))


def _ade_annotation(scene: Scene, stem: str) -> dict[str, Any]:
    objects = [
        {
            "id": number,
            "name": shape.kind,
            "name_ndx": _ADE_CLASS + KINDS.index(shape.kind),
            "parts": {"hasparts": [], "ispartof": [], "part_level": 0},
        }
        for number, shape in enumerate(scene.objects)
    ]
    return {"filename": f"{stem}.jpg", "imsize": [*scene.size_hw, 3], "object": objects}


def _painted(scene: Scene, numbers: Iterable[int], dtype: type[np.generic]) -> np.ndarray:
    """Returns a map with these numbers where the shapes are, and 0."""
    painted = np.zeros(scene.size_hw, dtype)
    for shape, number in zip(scene.objects, numbers, strict=True):
        painted[shape.mask] = number
    return painted


def _png(pixels: Shaped[np.ndarray, "height width ..."]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
