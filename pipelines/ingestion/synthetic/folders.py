"""Synthetic scenes as people keep masks at home: PNGs, LabelMe's JSON, YOLO's text (``folder_reader``).

- masks: a PNG per shape, named after its kind, or a label map of kinds with a legend;
- labelme: a JSON beside each image, with the description of each shape;
- yolo: a line per shape, a polygon where one polygon is exactly the mask and else a box.

Each writer returns the number of masks.
"""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from pipelines import storage
from pipelines.ingestion.synthetic import scenes as common
from pipelines.ingestion.synthetic.config import ShapesConfig
from samtok.shapes import KINDS, Scene, ShapeObject, description, trace_outline


def mask_files(config: ShapesConfig) -> int:
    """Writes PNGs to ``masks/<split>``, ``legend.json`` for label maps, and the images."""
    num_masks = 0
    for scene in common.pictured(config):
        place = storage.join(config.out, "masks", config.split, _stem(scene))
        if config.mask_layout == "labelmap":
            kinds = sorted({shape.kind for shape in scene.objects})
            common.put_new(f"{place}.png", lambda scene=scene: _label_map(scene))
            num_masks += len(kinds)
            continue
        for number, shape in enumerate(scene.objects, start=1):
            name = f"{shape.kind}_{number}.png"
            common.put_new(storage.join(place, name), lambda shape=shape: _png(shape.mask))
        num_masks += len(scene.objects)
    if config.mask_layout == "labelmap":
        legend = {str(value): kind for value, kind in enumerate(KINDS, start=1)}
        storage.write_bytes(storage.join(config.out, "legend.json"), common.json_bytes(legend) + b"\n")
    return num_masks


def labelme_files(config: ShapesConfig) -> int:
    """Writes a JSON beside each image."""
    num_masks = 0
    for scene in common.pictured(config):
        uri = storage.join(config.out, config.split, f"{_stem(scene)}.json")
        common.put_new(uri, lambda scene=scene: common.json_bytes(_labelme(scene, config)))
        num_masks += len(scene.objects)
    return num_masks


def yolo_files(config: ShapesConfig) -> int:
    """Writes text files to ``labels/<split>``, the images to ``images/<split>``, and ``data.yaml``."""
    num_masks = 0
    for scene in common.pictured(config, folder="images"):
        uri = storage.join(config.out, "labels", config.split, f"{_stem(scene)}.txt")
        common.put_new(uri, lambda scene=scene: "".join(map(_line, scene.objects)).encode())
        num_masks += len(scene.objects)
    names = "".join(f"  {number}: {kind}\n" for number, kind in enumerate(KINDS))
    body = f"path: .\n{config.split}: images/{config.split}\nnames:\n{names}"
    storage.write_bytes(storage.join(config.out, "data.yaml"), body.encode())
    return num_masks


def _stem(scene: Scene) -> str:
    return f"{common.image_id(scene):012d}"


def _png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def _label_map(scene: Scene) -> bytes:
    values = np.zeros(scene.size_hw, np.uint8)
    for shape in scene.objects:
        values[shape.mask] = KINDS.index(shape.kind) + 1
    return _png(values)


def _labelme(scene: Scene, config: ShapesConfig) -> dict[str, Any]:
    crowds = common.crowds(scene, config.crowd_share)
    height, width = scene.size_hw
    shapes = []
    for shape, crowd in zip(scene.objects, crowds, strict=True):
        outline = trace_outline(shape.mask) if config.segmentation == "polygon" and not crowd else None
        left, top, right, bottom = shape.box_xyxy
        about = {
            "label": shape.kind,
            "group_id": None,
            "description": description(shape),
            "flags": {"crowd": True} if crowd else {},
        }
        if outline:
            points = np.asarray(outline, float).reshape(-1, 2).tolist()
            shapes.append({**about, "points": points, "shape_type": "polygon", "mask": None})
            continue
        points = [[float(left), float(top)], [float(right), float(bottom)]]
        png = _png(shape.mask[top : bottom + 1, left : right + 1])
        mask = base64.b64encode(png).decode()
        shapes.append({**about, "points": points, "shape_type": "mask", "mask": mask})
    size = {"imageHeight": height, "imageWidth": width}
    image = {"imagePath": common.image_name(scene, config), "imageData": None}
    return {"version": "5.5.0", "flags": {}, "shapes": shapes, **image, **size}


def _line(shape: ShapeObject) -> str:
    height, width = shape.mask.shape
    outline = trace_outline(shape.mask)
    if outline:
        shares = [value / (height if place % 2 else width) for place, value in enumerate(outline)]
    else:
        x, y, wide, high = common.bbox_xywh(shape)
        shares = [(x + wide / 2) / width, (y + high / 2) / height, wide / width, high / height]
    return " ".join([str(KINDS.index(shape.kind)), *(f"{share:.6f}" for share in shares)]) + "\n"
