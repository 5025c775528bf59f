"""Synthetic scenes as COCO instances (cocodataset/cocoapi, annotation format)."""

from collections.abc import Callable, Iterable
from typing import Any

from pipelines import storage
from pipelines.ingestion.synthetic import scenes as common
from pipelines.ingestion.synthetic.config import ShapesConfig
from samtok import masks
from samtok.shapes import KINDS, Scene, ShapeObject, trace_outline


def coco_files(config: ShapesConfig) -> int:
    """Writes annotations and images; returns the number of masks."""
    name = f"annotations/instances_{config.split}.json"
    return write_instances(name, common.pictured(config), config)


def write_instances(
    name: str,
    scenes: Iterable[Scene],
    config: ShapesConfig,
    *,
    folder: str = "",
    change: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> int:
    """Writes scenes as they come to an instances file of that name; returns the number of masks.

    Args:
        name: Of the file, below the corpus.
        scenes: All of them.
        config: Of the corpus.
        folder: Of the images in their names, with a slash at its end.
        change: Makes of an annotation of COCO that of another dataset.
    """
    images, annotations = [], []
    for scene in scenes:
        height, width = scene.size_hw
        image = {"id": common.image_id(scene), "file_name": folder + common.image_name(scene, config)}
        images.append(common.json_bytes({**image, "height": height, "width": width}))
        annotations += [common.json_bytes(change(one)) for one in _annotations(scene, config)]
    categories = [{"id": i, "name": kind, "supercategory": "shape"} for i, kind in enumerate(KINDS, start=1)]
    parts = [
        *(b'{"info":{"description":"synthetic shapes"},"licenses":[],"images":', common.json_list(images)),
        *(b',"annotations":', common.json_list(annotations)),
        *(b',"categories":', common.json_bytes(categories)),
        b"}\n",
    ]
    storage.write_bytes(storage.join(config.out, name), b"".join(parts))
    return len(annotations)


def _annotations(scene: Scene, config: ShapesConfig) -> list[dict[str, Any]]:
    return [
        {
            "id": common.mask_id(scene, number),
            "image_id": common.image_id(scene),
            "category_id": KINDS.index(shape.kind) + 1,
            "segmentation": segmentation_of(shape, config.segmentation, crowd=crowd),
            "area": int(shape.mask.sum()),
            "bbox": common.bbox_xywh(shape),
            "iscrowd": int(crowd),
            "attributes": {"colour": shape.colour, "size": shape.size},
        }
        for number, (shape, crowd) in enumerate(
            zip(scene.objects, common.crowds(scene, config.crowd_share), strict=True), start=1
        )
    ]


def segmentation_of(
    shape: ShapeObject, form: str, *, crowd: bool = False
) -> dict[str, Any] | list[list[int]]:
    """Returns the visible part: of a crowd as uncompressed RLE, else in a form of ``--segmentation``."""
    if crowd:
        height, width = shape.mask.shape
        runs = masks.parse_counts(masks.encode(shape.mask), height=height, width=width)
        return {"size": [height, width], "counts": runs.tolist()}
    outline = trace_outline(shape.mask) if form == "polygon" else None
    return [outline] if outline else common.rle(shape)
