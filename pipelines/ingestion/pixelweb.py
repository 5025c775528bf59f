"""PixelWeb: screenshots of web pages with a matrix of elements each.

Three files are one image: ``NAME-screenshot.png``, ``NAME-mask.json``, a list of rows of whole numbers, and
``NAME-class.json``, a list of names. A cell is 0 for nothing, else the number of an element, whose class is
the name at that number less 1. Each number is a mask, and its id. The first element, which is the page, and
those of the class ``none`` are void, as the authors of SAMTok leave them out.

The size of an image is that of its matrix; it is compared with the screenshot when that is read. A number
beyond the names is told as ``unknown_category``.
"""

import json
import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from pipelines import storage
from pipelines.ingestion import image_source, label_maps, records
from pipelines.ingestion.folder_reader import FolderReader, Group
from pipelines.ingestion.reader import Input, ReadResult
from pipelines.ingestion.records import Record
from pipelines.ingestion.sidecar import MAX_SIDECAR_BYTES
from samtok import masks
from samtok.errors import DataError

_MASK, _CLASS, _IMAGE = "-mask.json", "-class.json", "-screenshot.png"
_PAGE, _NONE = 1, "none"
_SPACE, _DIGITS = b" \t\r\n", b"0123456789"
_MOST_DIGITS = 9  # of a number that fits 32 bits
_AS_ZERO = bytes.maketrans(b"123456789", b"0" * 9)
_MISPLACED = (b"[,", b",,", b",]", b"[]", b"0[", b"]0", b"0" * (_MOST_DIGITS + 1))
"""What no matrix has, all digits being 0: empty cells, numbers outside of rows, and too long ones."""


@dataclass(frozen=True, kw_only=True)
class PixelWebReader(FolderReader):
    """Reads a folder of matrices and classes, whose screenshots often are in the same one."""

    suffix: ClassVar[str] = ".json"
    files_are: ClassVar[str] = f"*{_MASK}"
    lists_images: ClassVar[bool] = False
    max_sidecar_bytes: ClassVar[int] = MAX_SIDECAR_BYTES

    def is_annotation(self, name: str) -> bool:
        """Returns whether a file is a matrix."""
        return name.endswith(_MASK) and not name.endswith(f"/{_MASK}") and name != _MASK

    def item_of(self, group: Group, names: dict[str, str]) -> Input:
        """Returns the input of a matrix."""
        return self.alone(group.stem, group.files[0])

    def alone(self, stem: str, name: str) -> Input:
        """Returns the input of a matrix."""
        key = name.removesuffix(_MASK)
        return self.input_of(Group(key, [], [name, f"{key}{_CLASS}"]))

    def read(self, item: Input) -> ReadResult:
        """Reads one matrix, which alone tells how many masks there are: one that cannot be read loses none
        that could be counted."""
        named, name = json.loads(item.payload)["files"]
        try:
            labels = matrix_of(self.content(name, self.max_sidecar_bytes), name)
            classes = self._classes(named)
            image_uri = image_source.find_image(
                self.images, f"{item.key}{_IMAGE}", (), link_roots=self.link_root
            )
            counts = label_maps.counts_of(labels, name)
        except DataError as error:
            return ReadResult.refused(self.name, item.key, error)
        image_hw = labels.shape[0], labels.shape[1]
        made = [_element(number, rle, classes, image_hw) for number, rle in counts.items()]
        return records.make_row(self, item.key, image_uri, image_hw, made)

    def _classes(self, name: str) -> list[str]:
        try:
            raw = self.content(name, self.max_sidecar_bytes)
        except storage.ObjectError as error:
            raise DataError(f"the names of classes: {error}", reason=f"classes_{error.reason}") from error
        classes = records.parse_json(raw, name)
        usable = isinstance(classes, list) and all(
            isinstance(one, str) and records.is_utf8(one) for one in classes
        )
        if not usable:
            fault = f"{name} is {classes!r:.80}, expected a list of names (PixelWeb)"
            raise DataError(fault, reason="sidecar_layout")
        return classes


def _element(number: int, counts: str, classes: list[str], image_hw: tuple[int, int]) -> Record:
    """Returns an element in the shape of ``records.make_row``."""
    found: Record = {"mask_id": str(number), "segmentation": {"size": list(image_hw), "counts": counts}}
    if number > len(classes):
        return {**found, "ignore": number == _PAGE, "unknown_category": str(number)}
    label = classes[number - 1]
    return {**found, "label": label or None, "ignore": number == _PAGE or label == _NONE}


def matrix_of(raw: bytes, where: str) -> Int[np.ndarray, "height width"]:
    """Returns the numbers of a JSON list of rows, without a Python object for each.

    Raises:
        DataError: ``matrix`` for anything but rows of as many whole numbers from 0 to 999,999,999;
            ``image_size`` for more than ``samtok.masks.MAX_PIXELS`` of them.
    """
    compact = raw.translate(None, _SPACE)
    marks = compact.translate(None, _DIGITS)
    width = marks.find(b"]") - 1  # the commas of the first row, and one more
    height = marks.count(b"]") - 1
    whole = (
        width >= 1
        and height >= 1
        and len(marks) == (width + 2) * height + 1
        and marks == b"[" + b",".join([b"[" + b"," * (width - 1) + b"]"] * height) + b"]"
    )
    zeros = compact.translate(_AS_ZERO)
    split_number = re.search(rb"[0-9]\s+[0-9]", raw) is not None
    if not whole or split_number or any(one in zeros for one in _MISPLACED):
        raise DataError(
            f"{where} is {raw[:40]!r}, expected a list of rows of as many numbers from 0 to "
            f"{10**_MOST_DIGITS - 1} (PixelWeb); the file may be cut off",
            reason="matrix",
        )
    if height * width > masks.MAX_PIXELS:
        fault = f"{where} has {height}x{width} numbers, expected at most {masks.MAX_PIXELS}"
        raise DataError(fault, reason="image_size")
    numbers = compact.replace(b"],[", b",").strip(b"[]")
    found = np.fromstring(numbers.decode(), np.int32, sep=",")
    assert found.size == height * width
    return found.reshape(height, width)
