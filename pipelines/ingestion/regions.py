"""Masks with a caption each, as DAM's training data is extracted (family F8; NVlabs/describe-anything).

The file is ``{key: [{caption, mask_rle, ann_id, image | img_id}]}``: lists whose keys have no meaning.
All entries of an image become one row. The size of an image is that of its masks, as the file states no
other; it is compared with the image when that is read. Of several captions of one mask each is an
annotation.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipelines import storage
from pipelines.ingestion import annotations, records
from pipelines.ingestion.annotations import Annotation
from pipelines.ingestion.file_reader import FileReader
from pipelines.ingestion.reader import Input, ReadResult, Reject
from pipelines.ingestion.records import Record
from samtok.errors import DataError

_NO_IMAGE = "?"  # row id of entries that do not say whose they are


@dataclass(frozen=True, kw_only=True)
class DamReader(FileReader):
    """Reads one ``annotations.json``.

    An entry names its image by ``image``, or by ``img_id`` without the ending ``.jpg``.
    """

    def inputs(self) -> Iterator[Input | Reject]:
        """Yields rejects, then one input per image by ascending key. Holds the whole file meanwhile.

        Raises:
            DataError: If the file has another layout.
        """
        by_image: dict[str, list[Record]] = defaultdict(list)
        rejects: list[Reject] = []
        for where, entry in self._entries():
            image_id, ann_id = _image_of(entry), records.id_of(entry, "ann_id")
            if image_id is None or ann_id is None:
                message = f"entry {where} is {entry!r:.200}, expected an object with ann_id and image"
                owner = image_id or _NO_IMAGE
                rejects.append(records.mask_reject(self.name, owner, where, "annotation_id", message))
            else:
                fields = {key: entry.get(key) for key in ("caption", "mask_rle")}
                by_image[image_id].append({**fields, "mask_id": ann_id})
        yield from sorted(rejects, key=records.compact_json)
        for image_id in sorted(by_image):
            entries = sorted(by_image[image_id], key=records.compact_json)
            entries.sort(key=lambda one: records.id_order(one["mask_id"]))
            num_masks = len({entry["mask_id"] for entry in entries})
            yield Input(key=image_id, payload=records.compact_json(entries), num_masks=num_masks)

    def read(self, item: Input) -> ReadResult:
        """Reads one image's entries. Captions whose masks differ under one id lose that mask."""
        entries = json.loads(item.payload)
        num_masks = len({entry["mask_id"] for entry in entries})
        try:
            rles = (entry["mask_rle"] for entry in entries)
            where = f"image {item.key}"
            image_hw = records.size_hw_of_masks(rles, where) or records.size_hw({}, where)
            image_uri = self.image_uri(item.key)
        except DataError as error:
            return ReadResult.refused(self.name, item.key, error, num_masks=num_masks)
        usable, rejects = self._masks(entries, item.key)
        result = records.make_row(self, item.key, image_uri, image_hw, usable, rejects)
        made, lost = self._captions(entries, item.key)
        return annotations.attach(result, made, lost)

    def _entries(self) -> Iterator[tuple[str, Any]]:
        corpus = records.parse_json(storage.read_bytes(self.source), self.source)
        if not isinstance(corpus, dict) or not all(isinstance(found, list) for found in corpus.values()):
            raise DataError(
                f"{self.source} holds a {type(corpus).__name__}, expected an object of lists of "
                "captioned masks (DAM's annotations.json)",
                reason="dam_layout",
            )
        for key, found in corpus.items():
            shown = key if records.is_utf8(key) else repr(key)
            yield from ((f"{shown}#{index}", entry) for index, entry in enumerate(found))

    def _masks(self, entries: list[Record], image_id: str) -> tuple[list[Record], list[Reject]]:
        by_mask: dict[str, list[Any]] = defaultdict(list)
        for entry in entries:
            if entry["mask_rle"] not in by_mask[entry["mask_id"]]:
                by_mask[entry["mask_id"]].append(entry["mask_rle"])
        usable, rejects = [], []
        for mask_id, found in by_mask.items():
            if len(found) == 1:
                usable.append({"mask_id": mask_id, "segmentation": found[0]})
            else:
                message = f"ann_id {mask_id} of image {image_id} has {len(found)} differing masks"
                reason = "duplicate_annotation_id"
                rejects.append(records.mask_reject(self.name, image_id, mask_id, reason, message))
        return usable, rejects

    def _captions(self, entries: list[Record], image_id: str) -> tuple[list[Annotation], list[Reject]]:
        made, rejects, seen = [], [], Counter[str]()
        for entry in entries:
            mask_id = entry["mask_id"]
            seen[mask_id] += 1
            name = f"{mask_id}-{seen[mask_id]}"
            try:
                text = annotations.text_of(entry["caption"], "caption")
            except DataError as error:
                rejects.append(annotations.annotation_reject(self.name, image_id, name, error))
            else:
                made.append(annotations.annotation(name, "region_caption", [mask_id], text=text))
        return made, rejects


def _image_of(entry: Any) -> str | None:
    if not isinstance(entry, dict):
        return None
    if entry.get("image") is not None:
        name = entry["image"]
        return name if isinstance(name, str) and name and records.is_utf8(name) else None
    image_id = records.id_text(entry.get("img_id"))
    return None if image_id is None else f"{image_id}.jpg"
