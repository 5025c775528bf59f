"""Synthetic scenes in layouts whose texts and relations name several masks.

- granf: captions whose phrases have masks (mbzuai-oryx/groundingLMM, GranDf);
- psg: panoptic maps and relations (Jingkang50/OpenPSG);
- dam: a caption for every mask (NVlabs/describe-anything, as extracted);
- refer: referring expressions in gRefCOCO's layout (henghuiding/gRefCOCO), one sentence to a ref, and in an
  extra field, which real files lack, ``tags`` (``samtok.shapes.referring``);
- vqa: chats without masks in ms-swift's form, of each image a question that words answer, and one about no
  image at all.

Each writer returns the number of masks.
"""

from collections.abc import Iterator
from typing import Any

from pipelines import storage
from pipelines.ingestion.synthetic import scenes as common
from pipelines.ingestion.synthetic.coco import write_instances
from pipelines.ingestion.synthetic.config import ShapesConfig
from pipelines.ingestion.synthetic.maps import panoptic_map, segment_id
from samtok.shapes import (
    KINDS,
    PREDICATES,
    Expression,
    Scene,
    description,
    grounded_caption,
    relations,
    text_question,
    visual_question,
)


def granf_files(config: ShapesConfig) -> int:
    """Writes ``granf.json``, a list of captioned images, and the images."""
    entries, num_masks = [], 0
    for scene in common.pictured(config):
        entries.append(common.json_bytes(_captioned(scene, config)))
        num_masks += len(scene.objects)
    storage.write_bytes(storage.join(config.out, "granf.json"), common.json_list(entries) + b"\n")
    return num_masks


def psg_files(config: ShapesConfig) -> int:
    """Writes ``psg.json``, the maps to ``annotations/panoptic_<split>``, and the images."""
    entries, ids, num_masks = [], [], 0
    for scene in common.pictured(config):
        entry = _graph(scene, config)
        uri = storage.join(config.out, "annotations", entry["pan_seg_file_name"])
        common.put_new(uri, lambda scene=scene: panoptic_map(scene))
        entries.append(common.json_bytes(entry))
        ids.append(common.image_id(scene))
        num_masks += len(scene.objects)
    classes = {
        "thing_classes": list(KINDS),
        "stuff_classes": [],
        "predicate_classes": list(PREDICATES),
        "test_image_ids": [] if config.split == "train" else ids,
    }
    body = b'{"data":' + common.json_list(entries) + b"," + common.json_bytes(classes)[1:] + b"\n"
    storage.write_bytes(storage.join(config.out, "psg.json"), body)
    return num_masks


def dam_files(config: ShapesConfig) -> int:
    """Writes ``annotations.json``, a list per image, and the images."""
    entries, num_masks = [], 0
    for scene in common.pictured(config):
        captions = [
            {
                "caption": description(shape),
                "mask_rle": common.rle(shape),
                "ann_id": common.mask_id(scene, number),
                "image": f"{config.split}/{common.image_name(scene, config)}",
            }
            for number, shape in enumerate(scene.objects, start=1)
        ]
        entries.append(b'"%d":' % common.image_id(scene) + common.json_bytes(captions))
        num_masks += len(captions)
    body = b"{\n" + b",\n".join(entries) + b"\n}\n"
    storage.write_bytes(storage.join(config.out, "annotations.json"), body)
    return num_masks


def _captioned(scene: Scene, config: ShapesConfig) -> dict[str, Any]:
    caption, spans = grounded_caption(scene, common.language_rng(scene))
    height, width = scene.size_hw
    return {
        "file_name": common.image_name(scene, config),
        "height": height,
        "width": width,
        "image_id": str(common.image_id(scene)),
        "caption": caption,
        "groundings": {
            caption[start:end]: {
                "token_positives": [start, end],
                "rle_masks": [common.rle(scene.objects[i]) for i in members],
            }
            for start, end, members in spans
        },
    }


def _graph(scene: Scene, config: ShapesConfig) -> dict[str, Any]:
    height, width = scene.size_hw
    segments, boxes = [], []
    for number, shape in enumerate(scene.objects, start=1):
        category = KINDS.index(shape.kind)
        area = int(shape.mask.sum())
        segments.append(
            {"id": segment_id(number), "category_id": category, "isthing": 1, "iscrowd": 0, "area": area}
        )
        left, top, right, bottom = shape.box_xyxy
        boxes.append({"bbox": [left, top, right + 1, bottom + 1], "category_id": category})
    return {
        "file_name": f"{config.split}/{common.image_name(scene, config)}",
        "height": height,
        "width": width,
        "image_id": str(common.image_id(scene)),
        "pan_seg_file_name": f"panoptic_{config.split}/{common.image_id(scene):012d}.png",
        "segments_info": segments,
        "annotations": boxes,
        "relations": [[i, j, PREDICATES.index(word)] for i, word, j in relations(scene)],
    }


def vqa_files(config: ShapesConfig) -> int:
    """Writes ``vqa.jsonl`` and the images; returns the number of masks, which is 0."""
    lines = []
    for scene in common.pictured(config):
        rng = common.language_rng(scene)
        image = f"{config.split}/{common.image_name(scene, config)}"
        for images, said in (([image], visual_question(scene, rng)), ([], text_question(rng))):
            asked, answer = said
            messages = [
                {"role": "user", "content": "<image>" * len(images) + asked},
                {"role": "assistant", "content": answer},
            ]
            lines.append(common.json_bytes({"messages": messages, "images": images}) + b"\n")
    storage.write_bytes(storage.join(config.out, "vqa.jsonl"), b"".join(lines))
    return 0


def refer_files(config: ShapesConfig) -> int:
    """Writes refs, instances and images; returns the number of masks."""
    refs: list[bytes] = []

    def noted() -> Iterator[Scene]:
        for scene in common.pictured(config):
            made = common.expressions(scene, config)
            refs.extend(common.json_bytes(_ref(scene, i, one, config)) for i, one in enumerate(made, start=1))
            yield scene

    num_masks = write_instances("instances.json", noted(), config)
    storage.write_bytes(storage.join(config.out, "grefs.json"), common.json_list(refs) + b"\n")
    return num_masks


def _ref(scene: Scene, number: int, made: Expression, config: ShapesConfig) -> dict[str, Any]:
    ref_id = common.mask_id(scene, number)
    stem, _, suffix = common.image_name(scene, config).partition(".")
    raw = made.text[0].upper() + made.text[1:] + "."
    return {
        "ref_id": ref_id,
        "ann_id": [common.mask_id(scene, i + 1) for i in made.targets] or [-1],
        "category_id": [KINDS.index(scene.objects[i].kind) + 1 for i in made.targets] or [-1],
        "image_id": common.image_id(scene),
        "split": config.split,
        "file_name": f"{stem}_{number}.{suffix}",  # as published: it is not the name of the image
        "no_target": not made.targets,
        "sent_ids": [ref_id],
        "sentences": [{"sent_id": ref_id, "sent": made.text, "raw": raw, "tokens": made.text.split()}],
        "tags": [*made.tags, *_hidden(scene, made, config)],
    }


def _hidden(scene: Scene, made: Expression, config: ShapesConfig) -> list[str]:
    behind = {j for _, j in scene.in_front}
    return ["occluded"] if config.expressions.mark_hidden and behind & set(made.targets) else []
