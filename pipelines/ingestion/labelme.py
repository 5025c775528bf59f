"""LabelMe: one JSON file per image, beside it or in a folder apart (wkentaro/labelme, version 3 and later).

Shapes of the types polygon, rectangle, circle and mask become masks; those of a ``group_id`` and a label are
one object. The id of a mask is the number of its first shape in the file, from 1. A ``description`` is a
caption of the object. The label ``__ignore__`` and the flag ``void`` of a shape make it void, the flag
``crowd`` a crowd. Polygons are drawn as COCO draws them, which is up to half a pixel inside of what LabelMe
shows; a shape of type mask is exact.

Only the end of ``imagePath`` is used, since it is relative to where the file once was, on any system. It is
searched below the images: in the folder that the JSON has below the source, then under its last one, two and
three parts. ``imageData`` is not read. Images that no JSON names are not looked for.
"""

import base64
import json
import math
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool

from pipelines.ingestion import annotations, image_source, records
from pipelines.ingestion.annotations import Annotation
from pipelines.ingestion.folder_reader import FolderReader, Group
from pipelines.ingestion.painting import placed, points_of
from pipelines.ingestion.reader import Input, ReadResult, Reject
from pipelines.ingestion.records import Record
from pipelines.ingestion.sidecar import MAX_SIDECAR_BYTES
from samtok import masks
from samtok.errors import DataError
from samtok.images import read_header
from samtok.labelmaps import read_label_map

_AREAS = ("polygon", "rectangle", "circle", "mask")
_POINT = "point"
_VOID = "__ignore__"  # as in LabelMe's examples of labels
_TAILS = 3  # parts of imagePath that are tried at most
_SAGITTA_PX = 0.02  # between a circle and the polygon that is drawn for it

Shape = tuple[int, Record]
"""A shape, and its number in the file."""


@dataclass(frozen=True, kw_only=True)
class LabelmeReader(FolderReader):
    """Reads a folder of LabelMe files."""

    suffix: ClassVar[str] = ".json"
    lists_images: ClassVar[bool] = False
    max_sidecar_bytes: ClassVar[int] = MAX_SIDECAR_BYTES

    def item_of(self, group: Group, names: dict[str, str]) -> Input:
        """Returns the input of a file."""
        return self.input_of(group)

    def alone(self, stem: str, name: str) -> Input:
        """Returns the input of a file."""
        return self.input_of(Group(stem, [], [name]))

    def read(self, item: Input) -> ReadResult:
        """Reads one file; each object of it is a mask of the row or a reject. If it cannot be parsed no masks
        are counted."""
        (name,) = json.loads(item.payload)["files"]
        num_masks = 0
        try:
            record = self.json_record(name, "LabelMe", self.max_sidecar_bytes, "shapes")
            objects, rejects = self._objects(item.key, record["shapes"])
            num_masks = len(objects) + len(rejects)
            image_uri = self._image_uri(posixpath.dirname(item.key), record.get("imagePath"))
            image_hw = self.size_stated(record.get("imageHeight"), record.get("imageWidth"), image_uri, name)
        except DataError as error:
            return ReadResult.refused(self.name, item.key, error, num_masks=num_masks)
        made: list[Record] = []
        captions: list[Annotation] = []
        told: list[Reject] = []
        for mask_id, shapes in objects.items():
            try:
                made.append({**_object(shapes, *image_hw), "mask_id": mask_id})
            except DataError as error:
                rejects.append(self._lost(item.key, mask_id, error))
            for number, shape in shapes:
                try:
                    captions += _captions(number, mask_id, shape)
                except DataError as error:
                    told.append(annotations.annotation_reject(self.name, item.key, str(number), error))
        result = records.make_row(self, item.key, image_uri, image_hw, made, rejects)
        return annotations.attach(result, captions, told)

    def _objects(self, key: str, shapes: list[Any]) -> tuple[dict[str, list[Shape]], list[Reject]]:
        """Returns the shapes of each object by its id, and a reject of each shape that has no area."""
        ids: dict[tuple[str, str], str] = {}
        objects: dict[str, list[Shape]] = {}
        rejects: list[Reject] = []
        for number, shape in enumerate(shapes, start=1):
            try:
                group = _group(shape)
            except DataError as error:
                rejects.append(self._lost(key, str(number), error))
                continue
            mask_id = str(number) if group is None else ids.setdefault(group, str(number))
            objects.setdefault(mask_id, []).append((number, shape))
        return objects, rejects

    def _lost(self, key: str, mask_id: str, error: DataError) -> Reject:
        message = f"shape {mask_id} of {key}: {error}"
        return records.mask_reject(self.name, key, mask_id, error.reason, message)

    def _image_uri(self, folder: str, path: object) -> str:
        parts = records.image_name(path, "imagePath").replace("\\", "/").split("/")
        below: list[str] = []
        for part in reversed(parts):  # from the end to the first part that leads elsewhere
            if part == ".." or part.endswith(":") or len(below) == _TAILS:
                break
            below += [part] if part not in ("", ".") else []
        tails = ["/".join(reversed(below[:count])) for count in range(1, len(below) + 1)]
        if not tails:
            fault = f"imagePath is {path!r:.200}, expected the name of an image at its end"
            raise DataError(fault, reason="image_path")
        exact = posixpath.join(folder, tails[0])
        others = [tail for tail in tails if tail != exact]
        return image_source.find_image(self.images, exact, others, link_roots=self.link_root)


def _group(shape: Any) -> tuple[str, str] | None:
    """Returns what shapes of one object have in common; None for an object of one shape."""
    if not isinstance(shape, dict):
        raise DataError(f"it is {shape!r:.80}, expected an object", reason="annotation_type")
    kind = shape.get("shape_type") or "polygon"  # before version 3.2 all were
    if kind not in (*_AREAS, _POINT):
        fault = f"shape_type is {kind!r:.40}, expected {_POINT} or one with an area: {', '.join(_AREAS)}"
        raise DataError(fault, reason="shape_type")
    label = shape.get("label")
    if label is not None and (not isinstance(label, str) or not records.is_utf8(label)):
        raise DataError(f"the label is {label!r:.80}, expected a text", reason="label")
    if shape.get("group_id") is None:
        return None
    group = records.id_text(shape["group_id"])
    if group is None:
        raise DataError(f"group_id is {shape['group_id']!r:.80}, expected a number", reason="group_id")
    return None if kind == _POINT else (group, label or "")  # a point is an object of its own


def _object(shapes: list[Shape], height: int, width: int) -> Record:
    """Returns the mask of shapes in the common shape of ``records``, without its id; one that cannot be drawn
    spoils all."""
    label = shapes[0][1].get("label") or None
    flags = {name for _, shape in shapes for name in _flags(shape)}
    about = {"label": label, "iscrowd": int("crowd" in flags), "ignore": label == _VOID or "void" in flags}
    if shapes[0][1].get("shape_type") == _POINT:
        points = points_of(shapes[0][1].get("points"))
        if len(points) != 1:
            raise DataError(f"a point has {len(points)} points, expected 1", reason="points")
        return {**about, "point": list(points[0])}
    drawn = [_drawn(shape, height, width) for _, shape in shapes]
    if all(isinstance(one, list) for one in drawn):
        segmentation: Any = drawn
    else:
        segmentation = [one if isinstance(one, dict) else _as_rle(one, height, width) for one in drawn]
    return {**about, "segmentation": segmentation}


def _flags(shape: Record) -> Iterable[str]:
    flags = shape.get("flags")
    return [name for name, value in flags.items() if value is True] if isinstance(flags, dict) else []


def _as_rle(polygon: list[float], height: int, width: int) -> Record:
    return {"size": [height, width], "counts": masks.to_counts([polygon], height=height, width=width)}


def _drawn(shape: Record, height: int, width: int) -> list[float] | Record:
    """Returns a shape as one polygon, or as RLE if it is a mask."""
    kind, points = shape.get("shape_type") or "polygon", points_of(shape.get("points"))
    if kind == "polygon":
        return [number for point in points for number in point]
    if len(points) != 2:
        raise DataError(f"a {kind} has {len(points)} points, expected 2", reason="points")
    (x0, y0), (x1, y1) = points
    if kind == "rectangle":
        return [x0, y0, x1, y0, x1, y1, x0, y1]
    if kind == "circle":  # its centre, and a point on it
        radius = max(math.hypot(x1 - x0, y1 - y0), _SAGITTA_PX)
        corners = max(16, math.ceil(math.pi / math.acos(1 - min(1, _SAGITTA_PX / radius))))
        angles = [2 * math.pi * corner / corners for corner in range(corners)]
        return [n for a in angles for n in (x0 + radius * math.cos(a), y0 + radius * math.sin(a))]
    return placed(_mask_of(shape.get("mask"), points), int(x0), int(y0), height, width)


def _mask_of(text: object, points: list[tuple[float, float]]) -> Bool[np.ndarray, "height width"]:
    """Returns the pixels of a mask shape, a PNG in base64 of what its two points span, both included."""
    try:
        data = base64.b64decode(text if isinstance(text, str) else "", validate=True)
    except ValueError as error:
        raise DataError(f"its mask is no base64: {error}", reason="mask_base64") from error
    (x0, y0), (x1, y1) = ((int(x), int(y)) for x, y in points)
    spans = (y1 - y0 + 1, x1 - x0 + 1)
    try:
        size_hw, _ = read_header(data, where="its mask")
        if size_hw != spans:
            fault = f"its mask has (height, width) {size_hw}, its points span {spans}"
            raise DataError(fault, reason="mask_box")
        return read_label_map(data, where="its mask") != 0
    except DataError as error:
        raise DataError(str(error), reason=error.reason.replace("image", "mask_file", 1)) from error


def _captions(number: int, mask_id: str, shape: Record) -> list[Annotation]:
    if shape.get("description") in (None, ""):
        return []
    text = annotations.text_of(shape["description"], f"description of shape {number}")
    return [annotations.annotation(f"description-{number}", "region_caption", [mask_id], text=text)]
