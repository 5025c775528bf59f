"""ReasonSeg: an image with a JSON of polygons and of questions beside it (dvlab-research/LISA).

A file is ``{text: [str], is_sentence: bool, shapes: [{label, points: [[x, y]]}]}``. All shapes of an image
are two masks (``reasonseg_shapes``). Those whose label holds ``ignore`` are the void ``ignore``, which
metrics leave out; all others are the one mask ``target``. A shape with the label ``flag`` means nothing, and
is told as ``shape_flag``.

Each text is a ``referring`` annotation of the target, with the tag ``sentence`` (a question) or ``phrase``.
A shape that cannot be painted costs its image, since the others lie over it or below.
"""

import json
from dataclasses import dataclass
from typing import ClassVar

from pipelines.ingestion import annotations, reasonseg_shapes, records
from pipelines.ingestion.annotations import Annotation
from pipelines.ingestion.folder_reader import FolderReader, Group
from pipelines.ingestion.reader import Input, ReadResult, Reject
from pipelines.ingestion.reasonseg_shapes import IGNORE, TARGET, kind_of
from pipelines.ingestion.records import Record
from pipelines.ingestion.sidecar import MAX_SIDECAR_BYTES
from samtok.errors import DataError


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
            record = reasonseg_shapes.record_of(self.content(name, self.max_sidecar_bytes), name)
            shapes = record["shapes"]
            kinds = [kind_of(shape) for shape in shapes]
            num_masks = 1 + (IGNORE in kinds)
            image_uri = self.below(self.images, place["image"])
            height, width = record.get("imageHeight"), record.get("imageWidth")
            image_hw = self.size_stated(height, width, image_uri, name)
            shown = list(zip(kinds, shapes, strict=True))
            seen, notes = reasonseg_shapes.painted(shown, image_hw, item.key)
        except DataError as error:
            return ReadResult.refused(self.name, item.key, error, num_masks=num_masks)
        made: list[Record] = [{"mask_id": TARGET, "segmentation": seen.get(TARGET)}]
        if IGNORE in kinds:
            made.append({"mask_id": IGNORE, "segmentation": seen.get(IGNORE), "ignore": True})
        told = [self.reject(item.key, reason, message, mask_id=name) for reason, message, name in notes]
        texts, lost = self._texts(item.key, record)
        result = records.make_row(self, item.key, image_uri, image_hw, made)
        return annotations.attach(result, texts, [*told, *lost])

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
