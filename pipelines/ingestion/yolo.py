"""YOLO labels: one text file per image (docs.ultralytics.com/datasets/segment and /detect).

A line is ``class x1 y1 x2 y2 ...``, the corners of a polygon in shares of the image's width and height, or
``class x y width height``, a box by its centre, which becomes a mask that is only a box. The id of a mask is
the number of its line. Names of classes are in ``classes.txt`` beside the labels (a name per line) or in the
``names`` of a ``data.yaml``, which is the place of nothing else: folders in it are not followed.

An image without a text file is one that shows nothing, as Ultralytics has it. The files do not say how large
an image is, so its header is read. Ultralytics turns images by their EXIF orientation; ``orientation``
``upright`` does that here.
"""

import json
import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import yaml

from pipelines import storage
from pipelines.config import Place
from pipelines.ingestion import legends, records
from pipelines.ingestion.folder_reader import FolderReader, Group, ParseNames, names_of
from pipelines.ingestion.reader import Input, ReadResult, Reject
from pipelines.ingestion.records import Record
from samtok.errors import DataError

MAX_TEXT_BYTES = 64 * 2**20
"""Largest text file that is read; a thousand outlines of a thousand corners have 20 MB."""

CLASSES = "classes.txt"
"""File of names beside the labels, which belongs to no image."""

_SLACK = 0.01  # by which Ultralytics lets shares leave 0..1 too
_BOX_NUMBERS, _POLYGON_NUMBERS = 4, 6


@dataclass(frozen=True, kw_only=True)
class YoloOptions:
    """Options of YOLO labels."""

    class_names: Place | None = None
    """yolo: file with the names of the classes, a data.yaml or a text with a name per line; by default
    classes.txt beside the labels, if there is one. Without names masks have no labels."""


def _class_names(raw: bytes, where: str) -> dict[int, str]:
    """Reads a ``data.yaml``, or a text with a name per line.

    Raises:
        DataError: ``legend``.
    """
    try:
        text = raw.decode().removeprefix("\ufeff")
        if where.lower().endswith((".yaml", ".yml")):
            value: Any = yaml.safe_load(text)
            found = value.get("names") if isinstance(value, dict) else None
        else:
            found = [line.strip() for line in text.rstrip().split("\n")]
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        fault = f"{where} cannot be read as names of classes: {error}"
        raise DataError(fault, reason="legend") from error
    return legends.of_value(found, where)


@dataclass(frozen=True, kw_only=True)
class YoloReader(FolderReader, YoloOptions):
    """Reads a folder of images and one of YOLO labels."""

    options: ClassVar[type] = YoloOptions
    suffix: ClassVar[str] = ".txt"
    parse_names: ClassVar[ParseNames] = staticmethod(_class_names)

    def names_uri(self) -> str | None:
        """Returns where the names of the classes are; raises DataError if a link leads them elsewhere."""
        if self.class_names is not None:
            return self.class_names
        beside = self.below(self.source, CLASSES)
        return beside if storage.exists(beside) else None

    def is_annotation(self, name: str) -> bool:
        """Returns whether a text file is not that of the classes."""
        return name != CLASSES

    def resolved(self) -> "YoloReader":
        """Returns the reader with the place of the names."""
        return replace(self, class_names=self.names_uri())

    def item_of(self, group: Group, names: dict[str, str]) -> Input | Reject:
        """Returns the input of an image, which may have no text file."""
        if len(group.files) > 1:
            return self.ambiguous_annotation(group)
        return self.input_of(group, **names)

    def alone(self, stem: str, name: str) -> Reject:
        """Returns the reject of a text file without an image."""
        return self.missing_image(stem, name)

    def read(self, item: Input) -> ReadResult:
        """Reads one image's lines; each is a mask or a reject of one."""
        place = json.loads(item.payload)
        lines: list[tuple[int, str]] = []
        try:
            image_uri = self.below(self.images, place["image"])
            lines = self._lines(place["files"])
            image_hw = self.size_of(image_uri)
            names = self._names_in(place)
        except DataError as error:
            return ReadResult.refused(self.name, item.key, error, num_masks=len(lines))
        made: list[Record] = []
        rejects: list[Reject] = []
        for number, line in lines:
            try:
                made.append({**_mask(line, image_hw, names), "mask_id": str(number)})
            except DataError as error:
                message = f"line {number} of {place['files'][0]}: {error}"
                rejects.append(records.mask_reject(self.name, item.key, str(number), error.reason, message))
        return records.make_row(self, item.key, image_uri, image_hw, made, rejects)

    def _lines(self, files: list[str]) -> list[tuple[int, str]]:
        """Returns the lines that are not blank, with their numbers from 1."""
        if not files:
            return []
        try:
            text = self.content(files[0], MAX_TEXT_BYTES).decode().removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            fault = f"{files[0]} is no text in UTF-8 ({error.reason} at byte {error.start})"
            raise DataError(fault, reason="label_text") from error
        return [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]

    def _names_in(self, place: Record) -> dict[int, str] | None:
        if "names" not in place:
            return None
        uri = self.class_names or self.below(self.source, CLASSES)
        return names_of(uri, place["names"], self.parse_names)


def _mask(line: str, image_hw: tuple[int, int], names: dict[int, str] | None) -> Record:
    """Returns the mask of a line in the common shape of ``records``, without its id."""
    first, *rest = line.split()
    if len(rest) != _BOX_NUMBERS and (len(rest) < _POLYGON_NUMBERS or len(rest) % 2):
        raise DataError(
            f"{len(rest)} numbers after the class, expected 4 of a box or an even number of at least 6 of a "
            "polygon",
            reason="label_line",
        )
    mask = _class_of(first, names)
    shares = [_share(text) for text in rest]
    height, width = image_hw
    if len(rest) == _BOX_NUMBERS:
        x, y, wide, high = shares
        return {
            **mask,
            "bbox": [(x - wide / 2) * width, (y - high / 2) * height, wide * width, high * height],
        }
    polygon = [share * (height if place % 2 else width) for place, share in enumerate(shares)]
    return {**mask, "segmentation": [polygon]}


def _class_of(text: str, names: dict[int, str] | None) -> Record:
    """Returns the label of a class; some tools write its number as ``2.0``."""
    number = _number(text)
    if number is None or number < 0 or not number.is_integer():
        raise DataError(f"the class is {text!r:.40}, expected a whole number from 0", reason="label_class")
    if names is None:
        return {}
    known = names.get(int(number))
    return {"label": known} if known is not None else {"unknown_category": text}


def _share(text: str) -> float:
    share = _number(text)
    if share is None or not -_SLACK <= share <= 1 + _SLACK:  # NaN too
        raise DataError(
            f"{text!r:.40} is no share of the image's side in 0..1; are these pixels?", reason="label_share"
        )
    return share


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
