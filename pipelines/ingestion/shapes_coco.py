"""Synthetic scenes as COCO instances (cocodataset/cocoapi, annotation format)."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from pipelines import storage
from pipelines.ingestion.config import ShapesConfig
from pipelines.ingestion.shapes_scenes import (
    CROWD_STREAM,
    bbox_xywh,
    image_id,
    image_name,
    json_bytes,
    json_list,
    mask_id,
    put_image,
    rle,
    scenes,
)
from samtok import masks
from samtok.shapes import KINDS, Scene, ShapeObject, trace_outline


def coco_files(root: str, config: ShapesConfig) -> int:
    """Writes annotations and images; returns the number of masks."""
    uri = storage.join(root, "annotations", f"instances_{config.split}.json")
    return write_instances(uri, storage.join(root, config.split), scenes(config), config)


def write_instances(uri: str, image_folder: str, made: Iterable[Scene], config: ShapesConfig) -> int:
    """Writes scenes as they come to an instances file and a folder; returns the number of masks."""
    images, annotations = [], []
    for scene in made:
        put_image(image_folder, scene, config)
        height, width = scene.size_hw
        name = image_name(scene, config)
        images.append(
            json_bytes({"id": image_id(scene), "file_name": name, "height": height, "width": width})
        )
        annotations += map(json_bytes, _annotations(scene, config))
    categories = [{"id": i, "name": kind, "supercategory": "shape"} for i, kind in enumerate(KINDS, start=1)]
    parts = [
        *(b'{"info":{"description":"synthetic shapes"},"licenses":[],"images":', json_list(images)),
        *(b',"annotations":', json_list(annotations)),
        *(b',"categories":', json_bytes(categories)),
        b"}\n",
    ]
    storage.write_bytes(uri, b"".join(parts))
    return len(annotations)


def _annotations(scene: Scene, config: ShapesConfig) -> list[dict[str, Any]]:
    rng = np.random.default_rng([scene.seed, scene.index, CROWD_STREAM])
    crowds = rng.random(len(scene.objects)) < config.crowd_share
    return [
        {
            "id": mask_id(scene, number),
            "image_id": image_id(scene),
            "category_id": KINDS.index(shape.kind) + 1,
            "segmentation": _coco_segmentation(shape, config.segmentation, crowd=bool(crowd)),
            "area": int(shape.mask.sum()),
            "bbox": bbox_xywh(shape),
            "iscrowd": int(crowd),
            "attributes": {"colour": shape.colour, "size": shape.size},
        }
        for number, (shape, crowd) in enumerate(zip(scene.objects, crowds, strict=True), start=1)
    ]


def _coco_segmentation(shape: ShapeObject, form: str, *, crowd: bool) -> dict[str, Any] | list[list[int]]:
    if crowd:
        height, width = shape.mask.shape
        runs = masks.parse_counts(masks.encode(shape.mask), height=height, width=width)
        return {"size": [height, width], "counts": runs.tolist()}
    outline = trace_outline(shape.mask) if form == "polygon" else None
    return [outline] if outline else rle(shape)
