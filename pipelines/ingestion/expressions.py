"""What the readers of expressions for objects of a COCO-layout file share: the REFER family and LISA++.

The one file has the expressions, the other one (``instances``) the objects that they mean. A row is an image
with expressions; what is rejected of other images is not reported.
"""

import json
import posixpath
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pipelines.config import Place
from pipelines.ingestion import annotations, records
from pipelines.ingestion.annotations import Annotation
from pipelines.ingestion.coco import CocoReader, Listed
from pipelines.ingestion.file_reader import FileReader, first_of, size_bytes
from pipelines.ingestion.reader import MAX_NAMES, Head, Input, ReadResult, Reject
from samtok.errors import DataError

NO_IMAGE = "?"
"""Row id of expressions that do not say of which image they are."""


@dataclass(frozen=True, kw_only=True)
class InstancesOption:
    """The option of readers whose objects are in a file of their own."""

    instances: Place | None = None
    """refer, lisa: URI of the objects, in COCO layout; by default instances.json (refer) or
    instances_train2017.json (lisa) beside --.source."""


@dataclass(frozen=True, kw_only=True)
class ExpressionReader(FileReader, InstancesOption):
    """Base of readers of a file of expressions.

    Attributes:
        beside: Name of the file of objects, if it lies beside that of the expressions.
        takes_all: A row has all objects of its image; otherwise those that an expression names.
    """

    beside: ClassVar[str] = "instances.json"
    takes_all: ClassVar[bool] = True

    @abstractmethod
    def expressions(self) -> tuple[dict[str, list[Annotation]], list[Reject]]:
        """Returns the expressions by image id, none of them without any, and what cannot be one; raises as
        ``inputs``."""

    def witness(self, inputs: Sequence[Input] = ()) -> dict[str, str]:
        """Returns ``{file name: "size:sha256"}`` of expressions and objects."""
        return {**self._objects().witness(), **super().witness(inputs)}

    def inputs(self) -> Iterator[Input | Reject]:
        """Yields rejects, then one input per image with expressions by ascending key.

        Raises:
            DataError: If a file has another layout.
            ConfigError: If there is nothing to read in it.
        """
        by_image, rejects = self.expressions()
        named = {mask_id for found in by_image.values() for made in found for mask_id in made["mask_ids"]}
        objects: list[Listed] = []
        for found in self._objects().listing(by_image):
            if isinstance(found, Listed):
                objects.append(self._taken(found, by_image[found.image_id]))
            elif self.takes_all or found["mask_id"] is None or found["mask_id"] in named:
                rejects.append(found)
        for image_id in by_image.keys() - {found.image_id for found in objects}:
            error = DataError(f"image {image_id} has no record, or differing ones", reason="unknown_image")
            rejects += [self.lost(image_id, made["annotation_id"], error) for made in by_image[image_id]]
        yield from sorted(rejects, key=records.compact_json)
        for found in objects:
            payload = {**found.record, "expressions": by_image[found.image_id]}
            num_masks = len(found.record["annotations"])
            yield Input(key=found.image_id, payload=records.compact_json(payload), num_masks=num_masks)

    def head(self, limit: int = MAX_NAMES) -> Head:
        """Lists the first images; where the file of objects is large, counts those that have expressions."""
        if size_bytes(self._objects().source) <= self.max_head_bytes:
            return first_of(self.inputs(), limit)
        by_image, rejects = self.expressions()
        return Head(list(rejects), more=True, unlisted=min(limit, len(by_image)))

    def read(self, item: Input) -> ReadResult:
        """Reads one image's record; a target that is missing is a reject and the expression stays."""
        record = json.loads(item.payload)
        return annotations.attach(self._objects().row_of(item.key, record), record["expressions"])

    def lost(self, image_id: str | None, name: str, error: DataError) -> Reject:
        """Returns the reject of what cannot be an expression."""
        return annotations.annotation_reject(self.name, image_id or NO_IMAGE, name, error)

    def _objects(self) -> CocoReader:
        beside = posixpath.join(posixpath.dirname(self.source), self.beside)
        own = {
            field: getattr(self, field) for field in ("name", "split", "images", "link_root", "orientation")
        }
        return CocoReader(**own, source=self.instances or beside)

    def _taken(self, found: Listed, expressions: list[Annotation]) -> Listed:
        if self.takes_all:
            return found
        named = {mask_id for made in expressions for mask_id in made["mask_ids"]}
        kept = [one for one in found.record["annotations"] if one["mask_id"] in named]
        return found._replace(record={**found.record, "annotations": kept})
