"""Synthetic scenes in the layouts of datasets that have boxes and no masks.

- visual7w: a question for each expression of one shape (yukezhu/visual7w-toolkit, pointing);
- invig: a dialogue about each shape that its size, colour and kind tell apart (InViG, ``invig_api.py``);
- copsref: expressions of one shape each (zfchenUnique/Cops-Ref), boxes as x, y, width and height;
- v3det: COCO layout without segmentation and without ids of annotations (V3Det/V3Det).

Boxes are those of the visible parts. Each writer returns the number of boxes.
"""

from typing import Any

from pipelines import storage
from pipelines.ingestion.records import picked
from pipelines.ingestion.synthetic import scenes as common
from pipelines.ingestion.synthetic.coco import write_instances
from pipelines.ingestion.synthetic.config import ShapesConfig
from samtok.shapes import Scene, description

_WRONG_CHOICES = 3  # of a question of Visual7W, where there are as many
_OF_V3DET = ("image_id", "category_id", "bbox", "iscrowd", "area")


def visual7w_files(config: ShapesConfig) -> int:
    """Writes ``dataset_v7w_pointing.json``, and the images to ``images``."""
    boxes: list[bytes] = []
    images: list[bytes] = []

    def name_of(scene: Scene) -> str:
        return f"v7w_{common.image_id(scene)}.{config.image_format}"

    for scene in common.pictured_as(config, lambda one: f"images/{name_of(one)}"):
        ids = [common.mask_id(scene, number) for number in range(1, len(scene.objects) + 1)]
        for box_id, shape in zip(ids, scene.objects, strict=True):
            box = dict(zip(("x", "y", "width", "height"), common.bbox_xywh(shape), strict=True))
            boxes.append(common.json_bytes({"box_id": box_id, "name": shape.kind, **box}))
        pairs = [
            {
                "qa_id": common.mask_id(scene, number),
                "question": f"Which is {made.text}?",
                "answer": ids[made.targets[0]],
                "multiple_choices": [one for one in ids if one != ids[made.targets[0]]][:_WRONG_CHOICES],
                "type": "which",
            }
            for number, made in enumerate(common.single_expressions(scene, config), start=1)
        ]
        about = {"image_id": common.image_id(scene), "filename": name_of(scene), "split": config.split}
        images.append(common.json_bytes({**about, "qa_pairs": pairs}))
    parts = [
        *(b'{"dataset":"visual7w-pointing","boxes":', common.json_list(boxes)),
        *(b',"images":', common.json_list(images), b"}\n"),
    ]
    storage.write_bytes(storage.join(config.out, "dataset_v7w_pointing.json"), b"".join(parts))
    return len(boxes)


def invig_files(config: ShapesConfig) -> int:
    """Writes ``invig21k_SPLIT_anns.jsonl``, and the images to ``invig21k_imgs``."""
    lines: list[bytes] = []
    for scene in common.pictured_as(config, lambda one: f"invig21k_imgs/{common.image_name(one, config)}"):
        height, width = scene.size_hw
        boxes = [common.box_xyxy(shape.mask) for shape in scene.objects]
        told = list(map(description, scene.objects))
        for number, (shape, box) in enumerate(zip(scene.objects, boxes, strict=True), start=1):
            if told.count(description(shape)) > 1:
                continue
            said = {
                "ref_exp": f"Find the {shape.kind}.",
                "questions": ["What colour is it?", "Is it small or large?"],
                "answers": [f"It is {shape.colour}.", f"It is {shape.size}."],
            }
            line = {
                "filename": common.image_name(scene, config),
                "width": width,
                "height": height,
                "id": common.mask_id(scene, number),
                "label": shape.kind,
                "ann": {"bboxes": boxes, **said, "ref_bboxes": [box]},
            }
            lines.append(common.json_bytes(line) + b"\n")
    storage.write_bytes(storage.join(config.out, f"invig21k_{config.split}_anns.jsonl"), b"".join(lines))
    return len(lines)


def copsref_files(config: ShapesConfig) -> int:
    """Writes ``data.json``, and the images to ``images``."""
    refs: list[bytes] = []
    for scene in common.pictured_as(config, lambda one: f"images/{common.image_id(one)}.jpg"):
        for made in common.single_expressions(scene, config):
            ref: dict[str, Any] = {
                "image_id": common.image_id(scene),
                "box": common.bbox_xywh(scene.objects[made.targets[0]]),
                "expression": made.text,
                "split": config.split,
            }
            refs.append(common.json_bytes(ref))
    body = b'{"refs":' + common.json_list(refs) + b"}\n"
    storage.write_bytes(storage.join(config.out, "data.json"), body)
    return len(refs)


def v3det_files(config: ShapesConfig) -> int:
    """Writes ``annotations/v3det_2023_v1_SPLIT.json``, and the images to ``images/shapes``."""
    folder = "images/shapes/"
    scenes = common.pictured_as(config, lambda one: folder + common.image_name(one, config))
    name = f"annotations/v3det_2023_v1_{config.split}.json"
    return write_instances(name, scenes, config, folder=folder, change=lambda one: picked(one, _OF_V3DET))
