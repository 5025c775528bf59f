"""Synthetic scenes in further layouts of masks with texts: region captions, benchmarks and prompts.

- osprey: descriptions of shapes, and a conversation about each scene as in ``gar`` (CircleRadon/Osprey);
- groundingsuite: a line for each expression, with the union of what it means (hustvl/GroundingSuite);
- mdvp: a question about each shape and its caption (Haochen-Wang409/Grasp-Any-Region, MDVP-Bench);
- dlc: COCO layout, and questions that judge a description (NVlabs/describe-anything, DLC-Bench);
- dam_tar: archives of images and pickled captions (nvidia/describe-anything-dataset);
- easyr1: Parquet of prompts with embedded images, as the authors' mix_gres8k_ver4k_train.parquet. Answers are
  descriptions, or ``No target.``: words of masks need a tokenizer.

Each writer returns the number of masks.
"""

import dataclasses
import io
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.ingestion.dlc_bench import NAMES, QUESTIONS
from pipelines.ingestion.rl_rows import PLACEHOLDER
from pipelines.ingestion.synthetic import scenes as common
from pipelines.ingestion.synthetic.coco import segmentation_of, write_instances
from pipelines.ingestion.synthetic.config import ShapesConfig
from pipelines.ingestion.synthetic.regions import RLE, about_regions
from pipelines.ingestion.synthetic.sa1b import Members, write_archives
from samtok import masks
from samtok.shapes import KINDS, PALETTE, Expression, Scene, ShapeObject, description

OSPREY_PREFIX = "COCO_train2014_"
"""Of the names of images in Osprey's files, which the files of the images lack."""

_MULTI_OBJECT, _SINGLE_OBJECT = 3, 4  # class_id of GroundingSuite-Eval
_PICKLE_PROTOCOL = 4
_ROW_GROUP_ROWS = 100  # few, as their images are read together
_EASYR1 = pa.schema(
    [
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        ("problem", pa.list_(pa.string())),
        ("answer", pa.string()),
        ("masks", pa.list_(RLE)),
        ("source", pa.string()),
    ]
)


def osprey_files(config: ShapesConfig) -> int:
    """Writes ``osprey_detail_description.json``, ``osprey_conversation.json`` and the images; masks are in
    both files, and counted once."""
    described, discussed, num_masks = [], [], 0
    for scene in common.pictured_as(config, lambda one: f"train2014/{common.image_name(one, config)}"):
        height, width = scene.size_hw
        regions = [
            {"segmentation": segmentation_of(shape, config.segmentation), "bbox": common.bbox_xywh(shape)}
            for shape in scene.objects
        ]
        image = {"file_name": OSPREY_PREFIX + common.image_name(scene, config)}
        entry = {**image, "height": height, "width": width, "annotation": regions}
        told = [f"<region{i}>: {description(shape)}" for i, shape in enumerate(scene.objects, start=1)]
        described.append(common.json_bytes({**entry, "description": told}))
        conversation = about_regions(scene, lambda index: f"<region{index + 1}>")
        discussed.append(common.json_bytes({**entry, "conversations": conversation}))
        num_masks += len(regions)
    for kind, entries in (("detail_description", described), ("conversation", discussed)):
        uri = storage.join(config.out, f"osprey_{kind}.json")
        storage.write_bytes(uri, common.json_list(entries) + b"\n")
    return num_masks


def groundingsuite_files(config: ShapesConfig) -> int:
    """Writes ``GroundingSuite-Eval.jsonl`` and the images; a line's mask counts as one."""
    lines: list[bytes] = []
    for scene in common.pictured(config):
        for made in common.expressions(scene, config, none=0):
            mask = np.any([scene.objects[i].mask for i in made.targets], axis=0)
            kinds = {scene.objects[i].kind for i in made.targets}
            line = {
                "idx": len(lines),
                "image_path": f"{config.split}/{common.image_name(scene, config)}",
                "class_id": _SINGLE_OBJECT if len(made.targets) == 1 else _MULTI_OBJECT,
                "label": kinds.pop() if len(kinds) == 1 else "shape",
                "caption": made.text,
                "box": common.box_xyxy(mask),
                "segmentation": {"size": list(mask.shape), "counts": masks.encode(mask)},
            }
            lines.append(common.json_bytes(line) + b"\n")
    storage.write_bytes(storage.join(config.out, "GroundingSuite-Eval.jsonl"), b"".join(lines))
    return len(lines)


def mdvp_files(config: ShapesConfig) -> int:
    """Writes ``annotations/mdvp_caption_mask.json``, and the images to ``data/shapes/images``."""
    folder, entries = "shapes/images", []
    for scene in common.pictured_as(config, lambda one: f"data/{folder}/{common.image_name(one, config)}"):
        entries += [
            common.json_bytes(
                {
                    "image_path": f"{folder}/{common.image_name(scene, config)}",
                    "mask_rle": common.rle(shape),
                    "dataset_name": "natural",  # one of the kinds that the benchmark has numbers of
                    "question": "What is in the marked region?",
                    "caption": description(shape),
                }
            )
            for shape in scene.objects
        ]
    uri = storage.join(config.out, "annotations/mdvp_caption_mask.json")
    storage.write_bytes(uri, common.json_list(entries) + b"\n")
    return len(entries)


def dlc_files(config: ShapesConfig) -> int:
    """Writes ``annotations.json``, ``qa.json``, ``class_names.json``, and the images to ``images``."""
    asked: list[bytes] = []
    names: list[bytes] = []

    def noted() -> Iterator[Scene]:
        for scene in common.pictured_as(config, lambda one: f"images/{common.image_name(one, config)}"):
            for number, shape in enumerate(scene.objects, start=1):
                key = b'"%d":' % common.mask_id(scene, number)
                asked.append(key + common.json_bytes(judging_questions(shape)))
                names.append(key + common.json_bytes(shape.kind))
            yield scene

    def sized(annotation: dict[str, Any]) -> dict[str, Any]:
        return {**annotation, "size": annotation["attributes"]["size"][0].upper()}

    plain = dataclasses.replace(config, segmentation="rle", crowd_share=0.0)
    num_masks = write_instances("annotations.json", noted(), plain, change=sized)
    for name, entries in ((QUESTIONS, asked), (NAMES, names)):
        body = b"{\n" + b",\n".join(entries) + b"\n}\n"
        storage.write_bytes(storage.join(config.out, name), body)
    return num_masks


def judging_questions(shape: ShapeObject) -> list[dict[str, Any]]:
    """Returns DLC-Bench's questions about a description of a shape: whether it has what is there, and not
    what is not."""

    def question(kind: str, word: str, choices: list[list[Any]]) -> dict[str, Any]:
        text = f"Does the description call the object {word}?"
        return {"question": text, "choices": choices, "type": kind}

    right = [["Yes", 1], ["It says nothing of this", 0], ["It calls it something else", -1]]
    wrong = [["Yes", -1], ["No", 1]]
    other_kind = KINDS[(KINDS.index(shape.kind) + 1) % len(KINDS)]
    colours = list(PALETTE)
    other_colour = colours[(colours.index(shape.colour) + 1) % len(colours)]
    found = [question("positive", word, right) for word in (shape.kind, shape.colour, shape.size)]
    absent = [question("negative", word, wrong) for word in (other_kind, other_colour)]
    return found + [{**one, "subtype": "salient negative"} for one in absent]


def dam_tar_files(config: ShapesConfig) -> int:
    """Writes ``SPLIT/dam_000000.tar`` and so on, ``images_per_folder`` scenes to an archive."""
    return write_archives(config, config.split + "/dam_{:06d}.tar", _sample)


def _sample(scene: Scene, config: ShapesConfig) -> Members:
    key = f"{common.image_id(scene):012d}"
    captions = [
        {"img_id": key, "mask_rle": common.rle(shape), "caption": description(shape)}
        for shape in scene.objects
    ]
    return [
        (f"{key}.jpg", lambda: common.image_bytes(scene, "jpg", config.jpeg_quality)),
        (f"{key}.pickle", lambda: pickle.dumps(captions, protocol=_PICKLE_PROTOCOL)),
    ]


def easyr1_files(config: ShapesConfig) -> int:
    """Writes ``SPLIT-00000-of-00001.parquet`` and so on, ``images_per_folder`` scenes to a file."""
    num_masks = 0
    for uri, scenes in common.scenes_of_files(config, config.split + "-{:05d}-of-{:05d}.parquet"):
        rows = []
        for scene in scenes:
            image = common.image_bytes(scene, config.image_format, config.jpeg_quality)
            images = [{"bytes": image, "path": common.image_name(scene, config)}]
            for made in common.expressions(scene, config):
                rows.append({"images": images, **_prompt(scene, made)})
                num_masks += len(made.targets)
        common.put_new(uri, lambda rows=rows: _parquet(rows))
    return num_masks


def _prompt(scene: Scene, made: Expression) -> dict[str, Any]:
    targets = [scene.objects[i] for i in made.targets]
    return {
        "problem": [f"{PLACEHOLDER}\nPlease segment {made.text}."],
        "answer": f"{', '.join(map(description, targets)) or 'No target'}.",
        "masks": [common.rle(shape) for shape in targets],
        "source": "gres",
    }


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=_EASYR1), buffer, row_group_size=_ROW_GROUP_ROWS)
    return buffer.getvalue()
