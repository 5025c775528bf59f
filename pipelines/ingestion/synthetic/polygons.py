"""Synthetic scenes as polygons, as questions about them, and as matrices.

- cityscapes_polygons: ``*_gtFine_polygons.json`` (mcordts/cityscapesScripts), with the ground as an object
  that all shapes cover;
- reasonseg: a JSON with polygons and questions beside each image (dvlab-research/LISA);
- lisa: questions about objects of COCO (Senqiao/LISA_Plus_Instance_Seg), and their file;
- pixelweb: a matrix of elements and a list of classes beside each image.

Polygons are exactly the masks, when they are filled together with their sides; a shape with a hole or in
several parts has several, which in Cityscapes are an object each. Each writer returns the number of masks.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipelines import storage
from pipelines.ingestion.synthetic import scenes as common
from pipelines.ingestion.synthetic.coco import write_instances
from pipelines.ingestion.synthetic.config import ShapesConfig
from pipelines.ingestion.synthetic.maps import cityscapes_uri, write_cityscapes_image
from samtok.shapes import Expression, Scene, referring_expressions, trace_contours


def cityscapes_polygon_files(config: ShapesConfig) -> int:
    """Writes ``gtFine/<split>/shapes/shapes_000000_000001_gtFine_polygons.json``, and the images."""
    num_masks = 0
    for scene in common.scenes(config):
        write_cityscapes_image(scene, config)
        height, width = scene.size_hw
        objects = _objects(scene, config)
        body = common.json_bytes({"imgHeight": height, "imgWidth": width, "objects": objects})
        common.put_new(cityscapes_uri(scene, config, "gtFine", "polygons.json"), lambda body=body: body)
        num_masks += len(objects)
    return num_masks


def reasonseg_files(config: ShapesConfig) -> int:
    """Writes a JSON beside each image, which asks for the shapes that its first expression means."""
    num_masks = 0
    for scene in common.pictured(config):
        record = _reasoned(scene, config)
        uri = storage.join(config.out, config.split, f"{common.image_id(scene):012d}.json")
        common.put_new(uri, lambda record=record: common.json_bytes(record))
        num_masks += len({shape["label"] for shape in record["shapes"]})
    return num_masks


def lisa_files(config: ShapesConfig) -> int:
    """Writes ``data.json``, ``instances_train2017.json`` and the images."""
    entries: list[bytes] = []

    def noted() -> Iterator[Scene]:
        for scene in common.pictured(config):
            asked = (_asked(scene, made, config) for made in _expressions(scene))
            entries.extend(map(common.json_bytes, asked))
            yield scene

    num_masks = write_instances("instances_train2017.json", noted(), config)
    storage.write_bytes(storage.join(config.out, "data.json"), common.json_list(entries) + b"\n")
    return num_masks


def pixelweb_files(config: ShapesConfig) -> int:
    """Writes a screenshot, a matrix and a list of classes for each scene; the page is what is no shape."""
    num_masks = 0
    for scene in common.scenes(config):
        numbers = np.ones(scene.size_hw, int)
        for number, shape in enumerate(scene.objects, start=2):
            numbers[shape.mask] = number
        classes = ["html", *(shape.kind for shape in scene.objects)]
        image = common.image_bytes(scene, "png", config.jpeg_quality)
        place = storage.join(config.out, config.split, f"{common.image_id(scene):012d}")
        for end, body in {
            "screenshot.png": image,
            "mask.json": common.json_bytes(numbers.tolist()),
            "class.json": common.json_bytes(classes),
        }.items():
            common.put_new(f"{place}-{end}", lambda body=body: body)
        num_masks += len(classes)
    return num_masks


def _objects(scene: Scene, config: ShapesConfig) -> list[dict[str, Any]]:
    height, width = scene.size_hw
    frame = [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]
    objects: list[dict[str, Any]] = [{"label": "ground", "polygon": frame}]
    for shape, crowd in zip(scene.objects, common.crowds(scene, config.crowd_share), strict=True):
        label = f"{shape.kind}group" if crowd else shape.kind
        objects += [{"label": label, "polygon": points} for points in trace_contours(shape.mask)]
    return objects


def _expressions(scene: Scene) -> list[Expression]:
    """Returns the expressions of a scene that mean something."""
    return referring_expressions(scene, common.language_rng(scene), single=2, multi=1, none=0)


def _reasoned(scene: Scene, config: ShapesConfig) -> dict[str, Any]:
    """Returns a record whose texts are questions in scenes of even index, else phrases."""
    everything = tuple(range(len(scene.objects)))
    made = _expressions(scene) or [Expression("all that is drawn", everything, ())]
    targets, is_sentence = made[0].targets, scene.index % 2 == 0
    shapes = []
    for i, crowd in enumerate(common.crowds(scene, config.crowd_share)):
        label = "target" if i in targets else "ignore" if crowd else None
        contours = trace_contours(scene.objects[i].mask) if label else []
        shapes += [{"label": label, "points": points, "shape_type": "polygon"} for points in contours]
    texts = [one.text for one in made if one.targets == targets]
    texts = [_question(text) for text in texts] if is_sentence else texts
    return {"text": texts, "is_sentence": is_sentence, "shapes": shapes}


def _asked(scene: Scene, made: Expression, config: ShapesConfig) -> dict[str, Any]:
    ids = {str(common.mask_id(scene, i + 1)): scene.objects[i] for i in made.targets}
    points = {
        name: {"label name": shape.kind, "points": trace_contours(shape.mask)} for name, shape in ids.items()
    }
    name = common.image_name(scene, config)
    return {"English Question": _question(made.text), "img_path": name, "ID": list(ids), "points": points}


def _question(text: str) -> str:
    return f"What can be described as {text}?"
