"""Writes synthetic scenes in published formats, which the readers of real datasets read.

    COCO instances    OUT/annotations/instances_train.json, OUT/train/000000000001.jpg
    SA-1B             OUT/sa_1.jpg + OUT/sa_1.json, or below OUT/sa_000000/, or in OUT/sa_000000.tar
    gRefCOCO          OUT/grefs.json + OUT/instances.json, OUT/train/000000000001.jpg
    GranDf            OUT/granf.json, OUT/train/000000000001.jpg
    PSG               OUT/psg.json, OUT/annotations/panoptic_train/000000000001.png, images as before
    DAM               OUT/annotations.json, images as before

Image ids are the scene's index + 1, so corpora of disjoint ranges can share a table. The same config gives
the same bytes: repeating a killed run finishes it, a finished corpus is left alone, and a folder with
anything else in it is refused. ``shapes.started`` is written first and ``shapes.complete`` last; both hold
the config as JSON and have no ``.json`` ending, which would make them side-cars of SA-1B.
"""

import dataclasses
import logging
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from pipelines import storage
from pipelines.ingestion.config import Format, ShapesConfig
from pipelines.ingestion.shapes_coco import coco_files
from pipelines.ingestion.shapes_layouts import dam_files, granf_files, psg_files
from pipelines.ingestion.shapes_refer import refer_files
from pipelines.ingestion.shapes_sa1b import sa1b_archives, sa1b_files
from pipelines.ingestion.shapes_scenes import json_bytes
from pipelines.job import config_json
from samtok.errors import ConfigError

log = logging.getLogger(__name__)

STARTED, COMPLETE = "shapes.started", "shapes.complete"


@dataclass(frozen=True)
class CorpusCounts:
    """What a corpus holds."""

    num_images: int
    num_masks: int


def make_shapes(config: ShapesConfig) -> int:
    """Writes the corpus to ``config.out`` and returns the exit code. The work of ``jobs/make_shapes.py``."""
    if config.dry_run:
        found = _found(config.out, config.identity())
        left = {None: "all to be written", STARTED: "begun", COMPLETE: "complete already"}[found]
        sys.stdout.write(config_json(config))
        sys.stdout.write(f"plan      {config.num_images} images as {config.format} in {config.out}: {left}\n")
        return 0
    counts = _WRITERS[config.format](config.out, config)
    log.info("%s has %d images with %d masks", config.out, counts.num_images, counts.num_masks)
    return 0


def write_coco(root: str, config: ShapesConfig) -> CorpusCounts:
    """Writes COCO instances: polygons or compressed RLE, crowds as uncompressed RLE, categories = kinds.

    An annotation has an extra field ``attributes`` with colour and size. Scenes are made one at a time; the
    annotation file is put together in memory, about 400 bytes per mask.

    Args:
        root: Folder or prefix; images go to ``root/<split>``.
        config: What to write; ``out`` and ``format`` are ignored.

    Raises:
        ConfigError: If ``root`` holds something else than this corpus, whole or in part.
        StorageError: If it cannot be written.
    """
    return _write_once(root, config, "coco", coco_files)


def write_sa1b(root: str, config: ShapesConfig) -> CorpusCounts:
    """Writes SA-1B: per image a JPEG and a JSON of the same stem, loose or in archives.

    Masks are the visible parts, so they do not overlap. ``predicted_iou`` and ``stability_score`` are drawn
    from [0.88, 1) and [0.92, 1), ``point_coords`` is a pixel of the mask. Memory is bounded by the
    files of an archive.

    Args:
        root: Folder or prefix.
        config: What to write; ``out``, ``format`` and what is COCO's alone are ignored.

    Raises:
        ConfigError: If ``root`` holds something else than this corpus, whole or in part.
        StorageError: If it cannot be written.
    """
    return _write_once(root, config, "sa1b", sa1b_archives if config.layout == "tar" else sa1b_files)


def write_refer(root: str, config: ShapesConfig) -> CorpusCounts:
    """Writes gRefCOCO: refs with one sentence each, with several targets or none too.

    Which expressions there are is ``config.expressions``; the options of COCO hold for the objects. Raises as
    ``write_coco``.
    """
    return _write_once(root, config, "refer", refer_files)


def write_granf(root: str, config: ShapesConfig) -> CorpusCounts:
    """Writes GranDf's grounded captions, in which every object is in one phrase; raises as ``write_coco``."""
    return _write_once(root, config, "granf", granf_files)


def write_psg(root: str, config: ShapesConfig) -> CorpusCounts:
    """Writes PSG, all scenes as its test images unless the split is train; raises as ``write_coco``."""
    return _write_once(root, config, "psg", psg_files)


def write_dam(root: str, config: ShapesConfig) -> CorpusCounts:
    """Writes DAM's captions of masks: size, colour and kind; raises as ``write_coco``."""
    return _write_once(root, config, "dam", dam_files)


_WRITERS: dict[Format, Callable[[str, ShapesConfig], CorpusCounts]] = {
    "coco": write_coco,
    "sa1b": write_sa1b,
    "refer": write_refer,
    "granf": write_granf,
    "psg": write_psg,
    "dam": write_dam,
}


def _write_once(
    root: str, config: ShapesConfig, name: Format, write: Callable[[str, ShapesConfig], int]
) -> CorpusCounts:
    identity = dataclasses.replace(config, format=name).identity()
    complete, found = storage.join(root, COMPLETE), _found(root, identity)
    if found == COMPLETE:
        log.info("%s is complete already", root)
        return CorpusCounts(**storage.read_json(complete)["counts"])
    if found is None:
        storage.write_bytes(storage.join(root, STARTED), json_bytes({"config": identity}))
    counts = CorpusCounts(config.num_images, write(root, config))
    storage.write_bytes(complete, json_bytes({"config": identity, "counts": asdict(counts)}))
    return counts


def _found(root: str, identity: dict[str, Any]) -> str | None:
    """Returns the mark of this corpus in a folder, ``COMPLETE`` or ``STARTED``; None if the folder is empty.

    Raises:
        ConfigError: If something else is there.
    """
    for mark in (COMPLETE, STARTED):
        uri = storage.join(root, mark)
        if storage.exists(uri):
            _check_same(root, storage.read_json(uri)["config"], identity)
            return mark
    _check_empty(root)
    return None


def _check_same(root: str, written: dict[str, Any], wanted: dict[str, Any]) -> None:
    changed = [
        f"{name}: there {written.get(name)!r}, wanted {wanted.get(name)!r}"
        for name in sorted(written.keys() | wanted.keys())
        if written.get(name) != wanted.get(name)
    ]
    if changed:
        raise ConfigError(
            f"{root} holds another synthetic corpus. Different: {'; '.join(changed)}. "
            "Choose another --out, or repeat the settings that it was made with."
        )


def _check_empty(root: str) -> None:
    for found in storage.list_files(root):
        raise ConfigError(
            f"{root} is not empty and no synthetic corpus: it holds {found.uri}. Choose another --out."
        )
