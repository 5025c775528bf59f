"""Cops-Ref: expressions for boxes in pictures of Visual Genome (family F9; zfchenUnique/Cops-Ref).

The file is ``{refs: [{image_id, box: [4 numbers], expression, split} or null]}``; the picture is
``<image_id>.jpg``. Refs have no id: annotations and masks are named by their number in the file, from 1. A
ref without a box is rejected. Boxes are flagged and cut as in ``boxes``.

In which order a box has its width and height is not documented, so ``box_order`` says it. Boxes of the first
images are compared with the images' sizes, and an order that makes more of them leave their image than the
other one is refused.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pipelines import storage
from pipelines.ingestion import annotations, json_stream, records
from pipelines.ingestion.boxes import Asked, BoxReader, from_xywh
from pipelines.ingestion.file_reader import no_split
from pipelines.ingestion.reader import Reject
from pipelines.storage.threads import map_ahead
from samtok.errors import ConfigError, DataError

_CHECKED_IMAGES = 200
_CLEAR_SHARE = 0.02  # of boxes that leave their image: rounding makes fewer do so

Order = Literal["xywh", "xyhw"]


@dataclass(frozen=True, kw_only=True)
class CopsrefOptions:
    """Options of Cops-Ref."""

    box_order: Order = "xywh"
    """copsref: order of the numbers of a box, x, y, width, height or x, y, height, width."""


@dataclass(frozen=True, kw_only=True)
class CopsrefReader(BoxReader, CopsrefOptions):
    """Reads the refs of one split of ``data.json``."""

    options: ClassVar[type] = CopsrefOptions

    def asked(self) -> Iterator[Asked | Reject]:
        """Yields the refs of the split, and those without one.

        Raises:
            DataError: ``copsref_layout`` for another layout.
            ConfigError: If no ref is of the split; if ``box_order`` is clearly the wrong one.
        """
        refs = self._refs()
        splits = Counter(split for ref in refs if (split := _split_of(ref)) is not None)
        if self.split not in splits:
            raise ConfigError(no_split(self.source, "refs", self.split, splits))
        made = [
            self._asked(str(number), ref)
            for number, ref in enumerate(refs, start=1)
            if _split_of(ref) in (self.split, None)
        ]
        self._check_order([one for one in made if isinstance(one, Asked)])
        yield from made

    def _refs(self) -> list[Any]:
        with storage.open_input(self.source) as stream:
            members = json_stream.members_of(stream, self.source)
            for member in () if isinstance(members, str) else members:
                if member.key == "refs" and member.entries is not None:
                    return [_reduced(entry.value) for entry in member.entries]
        fault = (
            f'{self.source} has no list "refs" (Cops-Ref). Check that --corpus.source names its data.json.'
        )
        raise DataError(fault, reason="copsref_layout")

    def _asked(self, number: str, ref: Any) -> Asked | Reject:
        image = records.id_of(ref, "image_id")
        name = None if image is None else f"{image}.jpg"
        fields = ref if isinstance(ref, dict) else {}
        try:
            if name is None or _split_of(ref) is None:
                fault = f"ref {number} is {ref!r:.80}, expected an image_id and a split"
                raise DataError(fault, reason="annotation_record")
            text = annotations.text_of(fields.get("expression"), "expression")
            box = fields.get("box")
            if not isinstance(box, list) or len(box) != 4:
                raise DataError(f"box is {box!r:.80}, expected four numbers", reason="annotation_targets")
        except DataError as error:
            return self.lost(name, number, error)
        made = annotations.annotation(number, "referring", [number], text=text)
        return Asked(name, made, {number: from_xywh(_as_xywh(box, self.box_order))}, {})

    def _size_or_none(self, image: str) -> tuple[int, int] | None:
        try:
            return self.size_of(self.image_uri(image))
        except DataError:
            return None  # its own reject says so

    def _check_order(self, found: list[Asked]) -> None:
        """Counts boxes of the first images that leave them, in either order."""
        boxes: dict[str, list[list[Any]]] = {}
        for one in found:
            if one.image in boxes or len(boxes) < _CHECKED_IMAGES:
                boxes.setdefault(one.image, []).extend(one.boxes.values())
        outside = checked = outside_other = 0
        for own, size in zip(boxes.values(), map_ahead(self._size_or_none, boxes), strict=True):
            if size is None:
                continue
            height, width = size
            for x0, y0, x1, y1 in own:
                if all(map(records.is_coordinate, (x0, y0, x1, y1))):
                    checked += 1
                    outside += x1 > width or y1 > height
                    outside_other += x0 + y1 - y0 > width or y0 + x1 - x0 > height
        if outside > max(outside_other, _CLEAR_SHARE * checked):
            other = "xyhw" if self.box_order == "xywh" else "xywh"
            raise ConfigError(
                f"of {checked} boxes of {self.source} {outside} leave their image if their order is "
                f"{self.box_order}, and {outside_other} if it is {other}: set --corpus.box-order to {other}."
            )


def _reduced(ref: Any) -> Any:
    return records.picked(ref, ("image_id", "box", "expression", "split")) if isinstance(ref, dict) else ref


def _split_of(ref: Any) -> str | None:
    split = ref.get("split") if isinstance(ref, dict) else None
    return split if isinstance(split, str) else None


def _as_xywh(box: list[Any], order: Order) -> list[Any]:
    x, y, third, fourth = box
    return [x, y, third, fourth] if order == "xywh" else [x, y, fourth, third]
