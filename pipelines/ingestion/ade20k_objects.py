"""What the JSON beside a map of the full ADE20K says of its objects: names of classes, and what is occluded.

Source: CSAILVision/ADE20K, README and its sample. ``annotation.object`` is a list of ``{name, name_ndx,
occluded: "yes" | "no" | [], parts: {part_level}, polygon: {x, y}}``, polygons in pixels from 1.

Nothing published says which object an instance of a map is: numbers of objects have gaps, and their own tool
leaves the question open (utils_ade20k.py). But the polygon of an object holds all of its visible pixels. So
an instance is one of the objects of its class and level whose polygon has room for it, and it is occluded if
all of these are; where some are and others are not, nothing is said.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

from pipelines.ingestion import records
from pipelines.ingestion.legends import Legend, file_bytes
from samtok.errors import DataError
from samtok.masks import RunMask

_MARGIN_PX = 2  # polygons count from 1, and their outline may be drawn or not

_Box: TypeAlias = tuple[float, float, float, float]  # x_min, y_min, x_max, y_max


class Described(NamedTuple):
    """What is said of one object."""

    occluded: bool
    level: str | None
    """0 for whole objects, from 1 for parts, as text; None where it does not say."""
    box_xyxy: _Box | None
    """Box of its polygon, in pixels from 1; None where it has none."""

    def may_be(self, level: int, box_xyxy: tuple[int, int, int, int]) -> bool:
        """Returns whether a mask of that level and box, in pixel indices, can be this object."""
        if self.level not in (None, str(level)):
            return False
        if self.box_xyxy is None:
            return True
        left, top, right, bottom = self.box_xyxy
        x0, y0, x1, y1 = box_xyxy
        inside = left - _MARGIN_PX <= x0 and x1 <= right + _MARGIN_PX
        return inside and top - _MARGIN_PX <= y0 and y1 <= bottom + _MARGIN_PX


def objects_beside(uri: str) -> list[Any]:
    """Returns the objects in the JSON of an image, unchecked; none without a file.

    Its text may be latin1.

    Raises:
        DataError: ``json`` or ``legend`` if the file is there and cannot be parsed, ``legend_refused`` and so
            on if it cannot be read.
        StorageError: If the storage fails.
    """
    try:
        raw = file_bytes(uri)
    except DataError as error:
        if error.reason == "legend_missing":
            return []
        raise
    try:
        raw.decode()
    except UnicodeDecodeError:
        raw = raw.decode("latin1").encode()
    record = records.parse_json(raw, uri)
    marked = record.get("annotation") if isinstance(record, dict) else None
    objects = marked.get("object") if isinstance(marked, dict) else None
    if isinstance(objects, dict):
        return [objects]  # MATLAB writes a list of one as its item
    if not isinstance(objects, list):
        raise DataError(f"{uri} holds no list annotation.object (ADE20K)", reason="legend")
    return objects


def names_of(objects: Iterable[Any]) -> Legend:
    """Returns names of classes by ``name_ndx``; what names no class is left out, since there may stand
    something else where a text was meant."""
    legend: Legend = {}
    for one in objects:
        number, name = (one.get("name_ndx"), one.get("name")) if isinstance(one, dict) else (None, None)
        if type(number) is int and isinstance(name, str) and name and records.is_utf8(name):
            legend.setdefault(number, name)
    return legend


def described(objects: Iterable[Any]) -> dict[int, list[Described]]:
    """Returns what is said of objects, by the number of their class; only of classes with an occluded one."""
    found: dict[int, list[Described]] = {}
    for one in objects:
        if isinstance(one, dict) and type(one.get("name_ndx")) is int:
            parts = one.get("parts")
            level = records.id_text(parts.get("part_level")) if isinstance(parts, dict) else None
            about = Described(one.get("occluded") == "yes", level, _box_of(one.get("polygon")))
            found.setdefault(one["name_ndx"], []).append(about)
    return {number: those for number, those in found.items() if any(one.occluded for one in those)}


def is_occluded(candidates: Sequence[Described], level: int, counts: str, image_hw: tuple[int, int]) -> bool:
    """Returns whether a mask is certainly that of an occluded object.

    Args:
        candidates: All objects of its class.
        level: 0 for whole objects, else the level of parts.
        counts: The mask, as compressed counts.
        image_hw: Height and width of the image in pixels.
    """
    if not candidates:
        return False
    box = RunMask.of_counts(counts, height=image_hw[0], width=image_hw[1]).box_xyxy
    possible = [] if box is None else [one for one in candidates if one.may_be(level, box)]
    return bool(possible) and all(one.occluded for one in possible)


def _box_of(polygon: Any) -> _Box | None:
    sides: list[Any] = [polygon.get(axis) for axis in ("x", "y")] if isinstance(polygon, dict) else []
    if not sides or not all(isinstance(side, list) and side for side in sides):
        return None
    x, y = sides
    return (min(x), min(y), max(x), max(y)) if all(map(records.is_coordinate, [*x, *y])) else None
