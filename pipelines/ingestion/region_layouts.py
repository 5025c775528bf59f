"""Records of an image, masks and texts in several layouts, brought into one form for ``regions``.

The table ``LAYOUTS`` recognises a record by the keys that it has:

- GroundingSuite-Eval (hustvl/GroundingSuite): JSON lines of an expression and its target;
- MDVP-Bench (Haochen-Wang409/Grasp-Any-Region, evaluation/MDVP-Bench): a list of a mask, a question about it
  and its caption;
- DLC-Bench as the authors of SAMTok packed it: a list of images with masks and their classes, without texts;
  the names of its further fields are not published, so several are taken for the id of a mask.

A region is ``{"mask_id", "mask_rle"}`` and, where there are any, ``label``, ``caption``, ``task``, ``tags``
and ``payload`` of the annotation; all values are as they are in the file, but for the id. Without an id of
its own, ``regions`` numbers it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from pipelines.ingestion import annotations, records
from pipelines.ingestion.records import Record
from samtok.errors import DataError
from samtok.metrics import grounding_suite

_DLC_IDS = ("ann_id", "annotation_id", "id")


class Regions(NamedTuple):
    """What one record says of an image."""

    image: Any
    """Its name, as in the record."""
    found: list[Record]


class Layout(NamedTuple):
    """How records of a dataset are read."""

    name: str
    keys: frozenset[str]
    """Keys that all of its records have; no other layout has all of them."""
    read: Callable[[Record], Regions]
    """Raises DataError for a record that has no regions."""


def layout_of(entry: Any) -> Layout:
    """Returns the layout of a record.

    Raises:
        DataError: ``region_record`` if it has none.
    """
    if isinstance(entry, dict):
        for layout in LAYOUTS:
            if layout.keys <= entry.keys():
                return layout
    expected = "; ".join(f"{', '.join(sorted(layout.keys))} ({layout.name})" for layout in LAYOUTS)
    raise DataError(f"it is {entry!r:.200}, expected an object with {expected}", reason="region_record")


def _grounding_suite(entry: Record) -> Regions:
    region = {
        "mask_id": records.id_of(entry, "idx"),
        "mask_rle": entry["segmentation"],
        "caption": entry["caption"],
        "task": "referring",
    }
    label, kind, box = entry.get("label"), entry.get("class_id"), entry.get("box")
    if isinstance(label, str) and records.is_utf8(label):
        region["label"] = label
    if type(kind) is int and kind in grounding_suite.CLASSES:
        region["tags"] = [grounding_suite.CLASSES[kind]]
    if isinstance(box, list) and len(box) == 4 and all(map(records.is_coordinate, box)):
        region["payload"] = {"box_xyxy": box}  # annotated: not the box of the mask
    return Regions(entry["image_path"], [region])


def _mdvp(entry: Record) -> Regions:
    region = {"mask_id": None, "mask_rle": entry["mask_rle"], "caption": entry["caption"]}
    if isinstance(entry.get("question"), str):
        region["payload"] = {"question": entry["question"]}
    if entry.get("dataset_name"):
        region["tags"] = annotations.tags_of([entry["dataset_name"]], "dataset_name")
    return Regions(entry["image_path"], [region])


def _dlc(entry: Record) -> Regions:
    samples = entry["mask_samples"]
    if not isinstance(samples, list) or not samples:
        raise DataError(f"mask_samples are {samples!r:.80}, expected a list of masks", reason="region_record")
    found = []
    for sample in samples:
        fields = sample if isinstance(sample, dict) else {"segmentation": repr(sample)[:80]}
        ids = [one for key in _DLC_IDS if (one := records.id_of(fields, key)) is not None]
        region = {"mask_id": ids[0] if ids else None, "mask_rle": fields.get("segmentation")}
        if isinstance(fields.get("class_name"), str) and records.is_utf8(fields["class_name"]):
            region["label"] = fields["class_name"]
        found.append(region)
    return Regions(entry["image_name"], found)


LAYOUTS = (
    Layout("GroundingSuite-Eval", frozenset({"image_path", "segmentation", "caption"}), _grounding_suite),
    Layout("MDVP-Bench", frozenset({"image_path", "mask_rle", "caption"}), _mdvp),
    Layout("DLC-Bench, packed anew", frozenset({"image_name", "mask_samples"}), _dlc),
)
