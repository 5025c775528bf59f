"""Polygons of Cityscapes: ``*_gtFine_polygons.json`` and ``*_gtCoarse_polygons.json``
(mcordts/cityscapesScripts, annotation.py and json2instanceImg.py).

A file is ``{imgHeight, imgWidth, objects: [{label, polygon: [[x, y]], deleted}]}``; each object is a mask,
whose id is its number in the file, from 1. Later objects lie before earlier ones and cover them
(``painting``), so masks are those of the official label maps; with ``overlap`` ``whole`` each has all of its
polygon. Labels stay as they are written, but for a group of things, such as ``persongroup``: a crowd of
persons. Classes 0 to 6 are void.

Deleted objects and license plates, which the official maps leave out too, are no masks, and told as
``object_deleted`` and ``object_unpainted``. The image id is the path below the source without what marks the
file, as ``aachen/aachen_000000_000019``; the image is that with ``_leftImg8bit``.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pipelines.ingestion import annotations, records
from pipelines.ingestion.folder_reader import FolderReader, Group
from pipelines.ingestion.label_encodings import CITYSCAPES_CLASSES, CITYSCAPES_IMAGE, CITYSCAPES_VOIDS
from pipelines.ingestion.painting import Canvas, Filled, placed, points_of
from pipelines.ingestion.reader import Input, ReadResult, Reject
from pipelines.ingestion.records import Record
from pipelines.ingestion.sidecar import MAX_SIDECAR_BYTES
from samtok.errors import DataError

_FILES = re.compile(r"(?P<key>.*[^/])_gt(?:Fine|Coarse)_polygons\.json", re.IGNORECASE | re.DOTALL)
_GROUP = "group"
_UNPAINTED = "license plate"  # class -1 of labels.py, the only one that is not painted
_VOIDS = {CITYSCAPES_CLASSES[number] for number in CITYSCAPES_VOIDS}


@dataclass(frozen=True, kw_only=True)
class CityscapesPolygonsOptions:
    """Options of the polygons of Cityscapes."""

    overlap: Literal["covered", "whole"] = "covered"
    """cityscapes_polygons: covered, later objects of a file cover earlier ones, as in the official maps; or
    whole, each mask has all pixels of its polygon."""


@dataclass(frozen=True, kw_only=True)
class CityscapesPolygonsReader(FolderReader, CityscapesPolygonsOptions):
    """Reads the polygons of a folder such as ``gtFine/train``, whose images are in ``leftImg8bit/train``."""

    options: ClassVar[type] = CityscapesPolygonsOptions
    suffix: ClassVar[str] = ".json"
    files_are: ClassVar[str] = "*_gtFine_polygons.json or *_gtCoarse_polygons.json"
    lists_images: ClassVar[bool] = False
    max_sidecar_bytes: ClassVar[int] = MAX_SIDECAR_BYTES

    def is_annotation(self, name: str) -> bool:
        """Returns whether a file has polygons."""
        return _FILES.fullmatch(name) is not None

    def item_of(self, group: Group, names: dict[str, str]) -> Input:
        """Returns the input of a file."""
        return self.alone(group.stem, group.files[0])

    def alone(self, stem: str, name: str) -> Input:
        """Returns the input of a file."""
        match = _FILES.fullmatch(name)
        assert match is not None  # is_annotation
        return self.input_of(Group(match["key"], [], [name]))

    def read(self, item: Input) -> ReadResult:
        """Reads one file; each object of it is a mask of the row, a reject, or one that is not painted. If it
        cannot be parsed no masks are counted."""
        (name,) = json.loads(item.payload)["files"]
        num_masks = 0
        try:
            record = self.json_record(name, "Cityscapes", self.max_sidecar_bytes, "objects")
            painted, told = self._objects(item.key, record["objects"])
            num_masks = len(painted)
            image_hw = records.size_hw(
                {"height": record.get("imgHeight"), "width": record.get("imgWidth")}, name
            )
            image = CITYSCAPES_IMAGE.format(item.key)
            image_uri = self.image_uri(f"{image}.png", f"{image}.jpg")
        except DataError as error:
            return ReadResult.refused(self.name, item.key, error, num_masks=num_masks)
        made, rejects = self._masks(item.key, painted, Canvas(*image_hw))
        result = records.make_row(self, item.key, image_uri, image_hw, made, rejects)
        return annotations.attach(result, [], told)

    def _objects(self, key: str, objects: list[Any]) -> tuple[list[tuple[int, Any]], list[Reject]]:
        """Returns the objects that are masks, with their numbers, and what is told of the others."""
        masks, told = [], []
        for number, entry in enumerate(objects, start=1):
            fields = entry if isinstance(entry, dict) else {}
            if fields.get("deleted") not in (None, 0):
                reason, what = "object_deleted", "is marked as deleted"
            elif fields.get("label") == _UNPAINTED:
                reason, what = "object_unpainted", f"is a {_UNPAINTED}, which no map of Cityscapes has"
            else:
                masks.append((number, entry))
                continue
            message = f"object {number} of {key} {what}"
            told.append(self.reject(key, reason, message, mask_id=f"object {number}"))
        return masks, told

    def _masks(
        self, key: str, objects: list[tuple[int, Any]], canvas: Canvas
    ) -> tuple[list[Record], list[Reject]]:
        made, rejects = list[Record](), list[Reject]()
        for number, entry in objects:
            try:
                mask, filled = _described(entry), canvas.filled(points_of(entry.get("polygon")))
            except DataError as error:
                message = f"object {number} of {key}: {error}"
                rejects.append(records.mask_reject(self.name, key, str(number), error.reason, message))
                continue
            made.append({**mask, "mask_id": str(number), "segmentation": self._drawn(number, filled, canvas)})
        if self.overlap == "covered":
            seen = canvas.painted()
            made = [{**mask, "segmentation": seen.get(int(mask["mask_id"]))} for mask in made]
        return made, rejects

    def _drawn(self, number: int, filled: Filled, canvas: Canvas) -> Record | None:
        if self.overlap == "whole":
            return placed(filled.pixels, filled.x0, filled.y0, canvas.height, canvas.width)
        canvas.paint(number, filled)
        return None  # what is left of it shows once all are painted


def _described(entry: Any) -> Record:
    """Returns label and flags of an object in the common shape of ``records``."""
    if not isinstance(entry, dict):
        raise DataError(f"it is {entry!r:.80}, expected an object", reason="annotation_type")
    label = entry.get("label")
    if not isinstance(label, str) or not label or not records.is_utf8(label):
        raise DataError(f"the label is {label!r:.80}, expected a text", reason="label")
    is_group = label not in CITYSCAPES_CLASSES and label.endswith(_GROUP) and label != _GROUP
    label = label.removesuffix(_GROUP) if is_group else label
    return {"label": label, "iscrowd": int(is_group), "ignore": label in _VOIDS}
