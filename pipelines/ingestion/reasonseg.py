"""ReasonSeg: an image with a JSON of polygons and of questions beside it (dvlab-research/LISA).

A file is ``{text: [str], is_sentence: bool, shapes: [{label, points: [[x, y]]}]}``. All shapes of an image
are two masks, made as LISA makes them (utils/data_processing.py): polygons are painted one over the other by
descending area, so a small one stays on top. Those whose label holds ``ignore`` are the void ``ignore``,
which metrics leave out; all others are the one mask ``target``. A shape with the label ``flag`` means
nothing, and is told as ``shape_flag``.

Each text is a ``referring`` annotation of the target, with the tag ``sentence`` (a question) or ``phrase``.
A shape that cannot be painted costs its image, since the others lie over it or below.
"""

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from pipelines.ingestion import annotations, records
from pipelines.ingestion.annotations import Annotation
from pipelines.ingestion.folder_reader import FolderReader, Group
from pipelines.ingestion.painting import Canvas, points_of
from pipelines.ingestion.reader import Input, ReadResult, Reject
from pipelines.ingestion.records import Record
from pipelines.ingestion.sidecar import MAX_SIDECAR_BYTES
from samtok.errors import DataError

TARGET, IGNORE = "target", "ignore"
"""Ids of the two masks, and labels of their shapes as published."""

_FLAG = "flag"  # an annotation of the annotators' own, deprecated
_NUMBERS = {TARGET: 1, IGNORE: 2}


@dataclass(frozen=True, kw_only=True)
class ReasonSegReader(FolderReader):
    """Reads one split, in whose folder images and JSON files lie together."""

    suffix: ClassVar[str] = ".json"
    max_sidecar_bytes: ClassVar[int] = MAX_SIDECAR_BYTES

    def item_of(self, group: Group, names: dict[str, str]) -> Input | Reject:
        """Returns the input of an image and its file."""
        if len(group.files) > 1:
            return self.ambiguous_annotation(group)
        return self.input_of(group) if group.files else self.missing_annotation(group.stem, group.images[0])

    def alone(self, stem: str, name: str) -> Reject:
        """Returns the reject of a file without an image."""
        return self.missing_image(stem, name)

    def read(self, item: Input) -> ReadResult:
        """Reads one file. One that cannot be parsed has no masks that could be counted, any other has a
        target, and a void if a shape says so."""
        place = json.loads(item.payload)
        (name,) = place["files"]
        num_masks = 0
        try:
            record = self.json_record(
                name, "ReasonSeg", self.max_sidecar_bytes, "shapes", or_encoding="cp1252"
            )
            shapes = record["shapes"]
            kinds = [_kind(shape) for shape in shapes]
            num_masks = 1 + (IGNORE in kinds)
            image_uri = self.below(self.images, place["image"])
            height, width = record.get("imageHeight"), record.get("imageWidth")
            image_hw = self.size_stated(height, width, image_uri, name)
            seen, told = self._painted(item.key, list(zip(kinds, shapes, strict=True)), image_hw)
        except DataError as error:
            return ReadResult.refused(self.name, item.key, error, num_masks=num_masks)
        made: list[Record] = [{"mask_id": TARGET, "segmentation": seen.get(TARGET)}]
        if IGNORE in kinds:
            made.append({"mask_id": IGNORE, "segmentation": seen.get(IGNORE), "ignore": True})
        texts, lost = self._texts(item.key, record)
        result = records.make_row(self, item.key, image_uri, image_hw, made)
        return annotations.attach(result, texts, [*told, *lost])

    def _painted(
        self, key: str, shapes: list[tuple[str, Any]], image_hw: tuple[int, int]
    ) -> tuple[dict[str, Record], list[Reject]]:
        """Returns the masks by their ids, without those that have no pixel, and what is no polygon."""
        canvas, told, areas = Canvas(*image_hw), list[Reject](), []
        for number, (kind, shape) in enumerate(shapes, start=1):
            if kind == _FLAG:
                message = f"shape {number} of {key} has the label {shape['label']!r:.40} and is no mask"
                told.append(self.reject(key, "shape_flag", message, mask_id=f"shape {number}"))
                continue
            try:
                points = points_of(shape.get("points"))
                if len(points) < 3:
                    message = f"shape {number} of {key} adds nothing: it has {len(points)} corners"
                    told.append(self.reject(key, "polygon_part", message, mask_id=f"shape {number}"))
                    continue
                filled = canvas.filled(points)
            except DataError as error:
                raise DataError(f"shape {number} of {key}: {error}", reason=error.reason) from error
            areas.append((int(filled.pixels.sum()), number, kind, filled))
        for _, _, kind, filled in sorted(areas, key=lambda one: one[:2], reverse=True):
            canvas.paint(_NUMBERS[kind], filled)
        seen = canvas.painted()
        return {kind: seen[number] for kind, number in _NUMBERS.items() if number in seen}, told

    def _texts(self, key: str, record: Record) -> tuple[list[Annotation], list[Reject]]:
        made, lost, tags = list[Annotation](), list[Reject](), list[str]()
        is_sentence, texts = record.get("is_sentence"), record.get("text")
        if isinstance(is_sentence, bool):
            tags = ["sentence" if is_sentence else "phrase"]
        else:
            error = DataError(
                f"is_sentence is {is_sentence!r:.40}, expected true or false", reason="annotation_tags"
            )
            lost.append(annotations.annotation_reject(self.name, key, "tags", error))
        for number, value in enumerate(texts if isinstance(texts, list) else [texts], start=1):
            name = f"text-{number}"
            try:
                text = annotations.text_of(value, f"text {number} of {key}")
            except DataError as error:
                lost.append(annotations.annotation_reject(self.name, key, name, error))
            else:
                made.append(annotations.annotation(name, "referring", [TARGET], text=text, tags=tags))
        return made, lost


def _kind(shape: Any) -> str:
    """Returns which mask a shape belongs to, or ``flag``."""
    label = shape.get("label") if isinstance(shape, dict) else None
    if not isinstance(label, str):
        raise DataError(f"a shape is {shape!r:.80}, expected an object with a label", reason="label")
    if label.lower() == _FLAG:
        return _FLAG
    return IGNORE if IGNORE in label.lower() else TARGET
