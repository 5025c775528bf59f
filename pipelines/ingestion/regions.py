"""Masks with a text each (family F8): DAM's training data as extracted, and benchmarks of regions.

- ``dam``: ``{key: [{caption, mask_rle, ann_id, image | img_id}]}``, lists whose keys have no meaning
  (NVlabs/describe-anything);
- ``regions``: JSON lines or a list of records in one of the layouts of ``region_layouts``.

All entries of an image become one row. The size of an image is that of its masks, as the file states no
other; it is compared with the image when that is read. Of several captions of one mask each is an
annotation; a mask without any has an annotation without text, since its caption is what is asked.

Files are read entry by entry and sorted on the disk, so their size does not matter.
"""

import json
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple, TypeAlias

from pipelines import storage
from pipelines.ingestion import annotations, json_lines, json_stream, records, region_layouts
from pipelines.ingestion.annotations import Annotation
from pipelines.ingestion.external_sort import ExternalSort
from pipelines.ingestion.file_reader import FileReader
from pipelines.ingestion.reader import Input, ReadResult, Reject
from pipelines.ingestion.records import Record
from samtok.errors import DataError

_NO_IMAGE = "?"  # row id of entries that do not say whose they are
_OWN = ("task", "tags", "payload")  # what a region says of its annotation besides the text
_Row: TypeAlias = tuple[str, tuple[int, str], str]  # image id, order of the mask's id, region as JSON


class _Found(NamedTuple):
    """A region of the file."""

    image_id: str
    region: Record
    chars: int  # about as many as its JSON has


@dataclass(frozen=True, kw_only=True)
class _RegionsReader(FileReader):
    """What readers of masks with a text each have in common."""

    def inputs(self) -> Iterator[Input | Reject]:
        """Yields rejects, then one input per image by ascending key.

        Raises:
            DataError: If the file has another layout.
            ConfigError: As ``json_lines.read_lines``, of ``regions``.
            StorageError: If it cannot be read, or sorted on the local disk.
        """
        rejects: list[Reject] = []
        with ExternalSort[_Row]() as rows:
            for found in self._found():
                if isinstance(found, dict):
                    rejects.append(found)
                    continue
                order = records.id_order(found.region["mask_id"] or "")
                rows.add((found.image_id, order, records.compact_json(found.region)), found.chars)
            yield from sorted(rejects, key=records.compact_json)
            for image_id, own in groupby(rows, lambda row: row[0]):
                entries = [json.loads(text) for _, _, text in own]
                _number(entries)
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
        made, lost = self._annotations(entries, item.key)
        return annotations.attach(result, made, lost)

    @abstractmethod
    def _found(self) -> Iterator[_Found | Reject]:
        """Yields the regions of the file, and what is none."""

    def _masks(self, entries: list[Record], image_id: str) -> tuple[list[Record], list[Reject]]:
        by_mask: dict[str, list[Any]] = defaultdict(list)
        labels: dict[str, str] = {}
        for entry in entries:
            if entry["mask_rle"] not in by_mask[entry["mask_id"]]:
                by_mask[entry["mask_id"]].append(entry["mask_rle"])
            if "label" in entry:
                labels.setdefault(entry["mask_id"], entry["label"])
        usable, rejects = [], []
        for mask_id, found in by_mask.items():
            if len(found) == 1:
                mask = {"mask_id": mask_id, "segmentation": found[0]}
                usable.append(mask | ({"label": labels[mask_id]} if mask_id in labels else {}))
            else:
                message = f"ann_id {mask_id} of image {image_id} has {len(found)} differing masks"
                reason = "duplicate_annotation_id"
                rejects.append(records.mask_reject(self.name, image_id, mask_id, reason, message))
        return usable, rejects

    def _annotations(self, entries: list[Record], image_id: str) -> tuple[list[Annotation], list[Reject]]:
        made, rejects, seen = [], [], Counter[str]()
        for entry in entries:
            mask_id = entry["mask_id"]
            seen[mask_id] += 1
            name = f"{mask_id}-{seen[mask_id]}"
            own: Record = {"task": "region_caption", **records.picked(entry, _OWN)}
            try:
                if "caption" in entry:
                    own["text"] = annotations.text_of(entry["caption"], "caption")
            except DataError as error:
                rejects.append(annotations.annotation_reject(self.name, image_id, name, error))
            else:
                made.append(annotations.annotation(name, mask_ids=[mask_id], **own))
        return made, rejects


@dataclass(frozen=True, kw_only=True)
class DamReader(_RegionsReader):
    """Reads one ``annotations.json``.

    An entry names its image by ``image``, or by ``img_id`` without the ending ``.jpg``.
    """

    def _found(self) -> Iterator[_Found | Reject]:
        for where, entry, chars in self._entries():
            image_id, ann_id = _image_of(entry), records.id_of(entry, "ann_id")
            if image_id is None or ann_id is None:
                message = f"entry {where} is {entry!r:.200}, expected an object with ann_id and image"
                owner = image_id or _NO_IMAGE
                yield records.mask_reject(self.name, owner, where, "annotation_id", message)
            else:
                fields = {key: entry.get(key) for key in ("caption", "mask_rle")}
                yield _Found(image_id, {**fields, "mask_id": ann_id}, chars)

    def _entries(self) -> Iterator[tuple[str, Any, int]]:
        with storage.open_input(self.source) as stream:
            members = json_stream.members_of(stream, self.source)
            if isinstance(members, str):
                raise self._other_layout(members)
            for member in members:
                if member.entries is None:
                    raise self._other_layout(f"dict with a {type(member.value).__name__}")
                shown = member.key if records.is_utf8(member.key) else repr(member.key)
                for index, (entry, chars, *_) in enumerate(member.entries):
                    yield f"{shown}#{index}", entry, chars

    def _other_layout(self, has: str) -> DataError:
        return DataError(
            f"{self.source} holds a {has}, expected an object of lists of captioned masks (DAM's "
            "annotations.json)",
            reason="dam_layout",
        )


@dataclass(frozen=True, kw_only=True)
class RegionsReader(_RegionsReader):
    """Reads JSON lines or a list of records of ``region_layouts``. A record that has none is a reject; a file
    of which all are is refused."""

    def _found(self) -> Iterator[_Found | Reject]:
        records_of_a_layout, fault = 0, None
        for line in json_lines.read_lines(self.source, flag="--corpus.source"):
            where, regions = f"#{line.number}", list[Record]()
            try:
                entry = json_lines.parse_line(line.raw, f"record {where}")
                layout = region_layouts.layout_of(entry)
                records_of_a_layout += 1
                image, regions = layout.read(entry)
                image_id = records.image_name(image, f"the image of record {where}")
            except DataError as error:
                fault = fault or error
                lost = len(regions)
                yield self.reject(where, error.reason, f"record {where}: {error}", num_masks=lost)
                continue
            for region in regions:
                yield _Found(image_id, region, line.size // len(regions))
        if fault and not records_of_a_layout:
            raise DataError(
                f"no record of {self.source} has a layout of masks with texts; the first: {fault}",
                reason="region_layout",
            )


def _number(entries: list[Record]) -> None:
    """Gives those without an id of their own their number among them, which no other one has."""
    taken = {entry["mask_id"] for entry in entries}
    number = 0
    for entry in entries:
        if entry["mask_id"] is None:
            number += 1
            while str(number) in taken:
                number += 1
            entry["mask_id"] = str(number)


def _image_of(entry: Any) -> str | None:
    if not isinstance(entry, dict):
        return None
    if entry.get("image") is not None:
        name = entry["image"]
        return name if isinstance(name, str) and name and records.is_utf8(name) else None
    image_id = records.id_text(entry.get("img_id"))
    return None if image_id is None else f"{image_id}.jpg"
