"""Writes synthetic scenes in published formats, which the readers of real datasets read.

    COCO instances    OUT/annotations/instances_train.json, OUT/train/000000000001.jpg
    SA-1B             OUT/sa_1.jpg + OUT/sa_1.json, or below OUT/sa_000000/, or in OUT/sa_000000.tar
    gRefCOCO          OUT/grefs.json + OUT/instances.json, OUT/train/000000000001.jpg
    GranDf            OUT/granf.json, OUT/train/000000000001.jpg
    PSG               OUT/psg.json, OUT/annotations/panoptic_train/000000000001.png, images as before
    DAM               OUT/annotations.json, images as before
    panoptic          OUT/annotations/panoptic_train.json, maps and images as those of PSG
    ADE20K            OUT/ADE/training/shapes/ADE_train_00000001.jpg, _seg.png and .json
    Cityscapes        OUT/gtFine/train/shapes/shapes_000000_000001_gtFine_instanceIds.png, _labelIds.png,
                      OUT/leftImg8bit/train/shapes/shapes_000000_000001_leftImg8bit.png, OUT/legend.json
    Cityscapes, drawn OUT/gtFine/train/shapes/shapes_000000_000001_gtFine_polygons.json, images as before
    ReasonSeg         OUT/train/000000000001.json, beside the images
    LISA++            OUT/data.json + OUT/instances_train2017.json, OUT/train/000000000001.jpg
    PixelWeb          OUT/train/000000000001-screenshot.png, -mask.json and -class.json
    chats             OUT/vqa.jsonl, OUT/train/000000000001.jpg
    masks             OUT/masks/train/000000000001/star_1.png, or OUT/masks/train/000000000001.png and
                      OUT/legend.json; images as before
    LabelMe           OUT/train/000000000001.json, beside the images
    GAR               OUT/data-00000-of-00001.arrow, with the images in it
    SegLLM            OUT/mr_refcoco_train.json + OUT/instances.json, images as before
    YOLO              OUT/labels/train/000000000001.txt, OUT/images/train/000000000001.jpg, OUT/data.yaml
    SA-V              OUT/sav_train/sav_000/sav_000001_auto.json, OUT/frames/sav_000001/00004.jpg
    MeViS             OUT/train/meta_expressions.json, mask_dict.json, JPEGImages/000000000001/00000.jpg
    ReVOS             OUT/meta_expressions_train_.json, OUT/mask_dict.json,
                      OUT/JPEGImages/shapes/train/000000000001/00000.jpg
    Ref-YouTube-VOS   OUT/meta_expressions/train/meta_expressions.json, OUT/train/meta.json,
                      OUT/train/JPEGImages/000000000001/00000.jpg,
                      OUT/train/Annotations/000000000001/00000.png
    Osprey            OUT/osprey_detail_description.json, OUT/osprey_conversation.json,
                      OUT/train2014/000000000001.jpg
    GroundingSuite    OUT/GroundingSuite-Eval.jsonl, OUT/train/000000000001.jpg
    MDVP-Bench        OUT/annotations/mdvp_caption_mask.json, OUT/data/shapes/images/000000000001.jpg
    DLC-Bench         OUT/annotations.json, OUT/qa.json, OUT/class_names.json, OUT/images/000000000001.jpg
    DAM, archives     OUT/train/dam_000000.tar
    EasyR1            OUT/train-00000-of-00001.parquet, with the images in it
    Visual7W          OUT/dataset_v7w_pointing.json, OUT/images/v7w_1.jpg
    InViG             OUT/invig21k_train_anns.jsonl, OUT/invig21k_imgs/000000000001.jpg
    Cops-Ref          OUT/data.json, OUT/images/1.jpg
    V3Det             OUT/annotations/v3det_2023_v1_train.json, OUT/images/shapes/000000000001.jpg

Image ids are the scene's index + 1, so corpora of disjoint ranges can share a table. The same config gives
the same bytes: repeating a killed run finishes it, a finished corpus is left alone, and a folder with
anything else in it is refused. ``shapes.started`` is written first and ``shapes.complete`` last; both hold
the config as JSON and have no ``.json`` ending, which would make them side-cars of SA-1B.
"""

import logging
import sys
from collections.abc import Callable
from typing import Any

from pipelines import storage
from pipelines.ingestion.synthetic.boxes import copsref_files, invig_files, v3det_files, visual7w_files
from pipelines.ingestion.synthetic.coco import coco_files
from pipelines.ingestion.synthetic.config import COMPLETE, STARTED, Format, ShapesConfig
from pipelines.ingestion.synthetic.folders import labelme_files, mask_files, yolo_files
from pipelines.ingestion.synthetic.layouts import dam_files, granf_files, psg_files, refer_files, vqa_files
from pipelines.ingestion.synthetic.maps import ade20k_files, cityscapes_files, panoptic_files
from pipelines.ingestion.synthetic.polygons import (
    cityscapes_polygon_files,
    lisa_files,
    pixelweb_files,
    reasonseg_files,
)
from pipelines.ingestion.synthetic.regions import gar_files, segllm_files
from pipelines.ingestion.synthetic.sa1b import sa1b_files
from pipelines.ingestion.synthetic.scenes import json_bytes
from pipelines.ingestion.synthetic.texts import (
    dam_tar_files,
    dlc_files,
    easyr1_files,
    groundingsuite_files,
    mdvp_files,
    osprey_files,
)
from pipelines.ingestion.synthetic.video import mevis_files, revos_files, sav_files, ytvos_files
from pipelines.job import config_json
from samtok.errors import ConfigError

log = logging.getLogger(__name__)


def make_shapes(config: ShapesConfig) -> int:
    """Writes the corpus to ``config.out`` and returns the exit code. The work of ``jobs/make_shapes.py``."""
    if config.dry_run:
        found = _found(config.out, config.identity())
        left = {None: "all to be written", STARTED: "begun", COMPLETE: "complete already"}[found]
        sys.stdout.write(config_json(config))
        sys.stdout.write(f"plan      {config.num_images} images as {config.format} in {config.out}: {left}\n")
        return 0
    log.info("%s has %d images with %d masks", config.out, config.num_images, write_shapes(config))
    return 0


_WRITERS: dict[Format, Callable[[ShapesConfig], int]] = {
    "coco": coco_files,
    "sa1b": sa1b_files,
    "refer": refer_files,
    "granf": granf_files,
    "psg": psg_files,
    "dam": dam_files,
    "vqa": vqa_files,
    "masks": mask_files,
    "labelme": labelme_files,
    "yolo": yolo_files,
    "gar": gar_files,
    "segllm": segllm_files,
    "panoptic": panoptic_files,
    "ade20k": ade20k_files,
    "cityscapes": cityscapes_files,
    "sav": sav_files,
    "mevis": mevis_files,
    "cityscapes_polygons": cityscapes_polygon_files,
    "reasonseg": reasonseg_files,
    "lisa": lisa_files,
    "pixelweb": pixelweb_files,
    "osprey": osprey_files,
    "groundingsuite": groundingsuite_files,
    "mdvp": mdvp_files,
    "dlc": dlc_files,
    "dam_tar": dam_tar_files,
    "easyr1": easyr1_files,
    "revos": revos_files,
    "ytvos": ytvos_files,
    "visual7w": visual7w_files,
    "invig": invig_files,
    "copsref": copsref_files,
    "v3det": v3det_files,
}


def write_shapes(config: ShapesConfig) -> int:
    """Writes the corpus unless it is complete already; returns the number of its masks.

    Raises:
        ConfigError: If ``config.out`` holds something else than this corpus, whole or in part.
        StorageError: If it cannot be written.
    """
    identity = config.identity()
    complete, found = storage.join(config.out, COMPLETE), _found(config.out, identity)
    if found == COMPLETE:
        log.info("%s is complete already", config.out)
        return storage.read_json(complete)["counts"]["num_masks"]
    if found is None:
        storage.write_bytes(storage.join(config.out, STARTED), json_bytes({"config": identity}))
    num_masks = _WRITERS[config.format](config)
    counts = {"num_images": config.num_images, "num_masks": num_masks}
    storage.write_bytes(complete, json_bytes({"config": identity, "counts": counts}))
    return num_masks


def _found(root: str, identity: dict[str, Any]) -> str | None:
    """Returns the mark of this corpus in a folder, ``COMPLETE`` or ``STARTED``; None if the folder is empty.

    Raises:
        ConfigError: If something else is there.
    """
    for mark in (COMPLETE, STARTED):
        uri = storage.join(root, mark)
        if storage.exists(uri):
            written = storage.read_json(uri)["config"]
            changed = [
                f"{name}: there {written.get(name)!r}, wanted {identity.get(name)!r}"
                for name in sorted(written.keys() | identity.keys())
                if written.get(name) != identity.get(name)
            ]
            if changed:
                raise ConfigError(
                    f"{root} holds another synthetic corpus. Different: {'; '.join(changed)}. "
                    "Choose another --out, or repeat the settings that it was made with."
                )
            return mark
    for other in storage.list_files(root):
        raise ConfigError(
            f"{root} is not empty and no synthetic corpus: it holds {other.uri}. Choose another --out."
        )
    return None
