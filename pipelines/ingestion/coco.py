"""COCO-layout JSON: ``images``, ``annotations`` and, where there are any, ``categories`` (family F1).

Serves COCO instances, LVIS, PACO, EntitySeg, V3Det (boxes), the official DLC-Bench file, Flickr30k-GCG
(``mask_key="sam_mask"``) and the ``instances.json`` of the REFER family. Source: cocodataset/cocoapi.

The file is read once, in ``inputs``, entry by entry, and sorted on the disk, so its size does not matter;
each image leaves with its own annotations as the payload, reduced to the fields that are used. Every
annotation ends in one input or one reject:

- it is no object, or has no id while others have one, or its image is not in the file: a mask reject;
- its id is repeated: of equal records one stays, of differing ones none (``records.by_id``).
  The same holds for images; annotations of an id that stands for different images count as without one.
"""

import json
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

from pipelines import storage
from pipelines.ingestion import json_stream, records
from pipelines.ingestion.external_sort import ExternalSort
from pipelines.ingestion.file_reader import FileReader, ImageFolders
from pipelines.ingestion.reader import Input, ReadResult, Reject
from pipelines.ingestion.records import Record
from samtok.errors import ConfigError, DataError

MASK_KEYS = ("segmentation", "sam_mask")

_IMAGE_FIELDS = ("coco_url", "file_name", "height", "width")
_OF_ANNOTATION = ("id", "image_id", "category_id", "iscrowd", "bbox")
_OTHER_KINDS = {
    "segments_info": "of panoptic maps, whose masks are in PNG files (reader panoptic)",
    "caption": "of captions, which have no masks",
}
_NO_OWNER = "?"  # row id of annotations that do not say whose they are
_NAMELESS, _IMAGE, _ANNOTATION = range(3)
_Row: TypeAlias = tuple[str, int, int, Any]  # image id, one of these kinds, index in its list, entry


@dataclass
class _File:
    """What is known of a file besides its images and annotations, once it is read."""

    keys: list[str] = field(default_factory=list)
    categories: list[Any] = field(default_factory=list)
    objects: int = 0  # annotations that are one
    has_ids: bool = False
    seen: set[str] = field(default_factory=set)  # keys that tell what kind of annotations they are

    def see(self, entry: Any, telling: frozenset[str]) -> None:
        """Takes note of an annotation, and of which of the telling keys it has."""
        if isinstance(entry, dict):
            self.objects += 1
            self.has_ids = self.has_ids or "id" in entry
            self.seen |= telling & entry.keys()


class Listed(NamedTuple):
    """One image of the file."""

    image_id: str
    record: Record
    """``image`` and ``annotations``, reduced to the fields that ``CocoReader.row_of`` uses; JSON values."""


@dataclass(frozen=True, kw_only=True)
class CocoOptions(ImageFolders):
    """Options of COCO layout."""

    mask_key: str = "segmentation"
    """coco: key of the mask in an annotation; sam_mask in Flickr30k-GCG."""
    image_path: Literal["file_name", "coco_url"] = "file_name"
    """coco: which field names the image file. LVIS, which mixes train and val images, uses the last two parts
    of coco_url."""


@dataclass(frozen=True, kw_only=True)
class CocoReader(FileReader, CocoOptions):
    """Reads one COCO-layout file; an image without annotations gives a row without masks."""

    options: ClassVar[type] = CocoOptions

    def inputs(self) -> Iterator[Input | Reject]:
        """Yields rejects, then one input per image by ascending key; raises as ``listing``."""
        for found in self.listing():
            if isinstance(found, dict):
                yield found
            else:
                payload, num_masks = records.compact_json(found.record), len(found.record["annotations"])
                yield Input(key=found.image_id, payload=payload, num_masks=num_masks)

    def listing(self, only: Container[str] | None = None) -> Iterator[Listed | Reject]:
        """Yields the images by ascending id, and rejects among them.

        Args:
            only: Ids of the images that are wanted. Other images, what was rejected of them included, are
                left out; rejects that name no image of the file stay.

        Raises:
            DataError: If the file is not JSON, its lists are missing or of another type, or its annotations
                are of another kind.
            ConfigError: If no annotation has ``mask_key``, though it was named or another known key is there.
            StorageError: If it cannot be read, or sorted on the local disk.
        """
        with ExternalSort[_Row]() as entries:
            file = self._read_file(entries)
            self._check_mask_key(file)
            labels = labels_of(file.categories, self.source)
            for owner, rows in groupby(entries, lambda row: row[0]):
                yield from self._of_owner(owner, rows, file, labels, only)

    def _of_owner(
        self,
        owner: str,
        rows: Iterable[_Row],
        file: _File,
        labels: dict[str, str],
        only: Container[str] | None,
    ) -> Iterator[Listed | Reject]:
        """Yields an image with its annotations, or what is rejected of those that name no usable one."""
        images, annotations = list[Record](), list[tuple[int, Any]]()
        for _, kind, index, entry in rows:
            if kind == _NAMELESS:
                yield self._nameless(index, entry)
            elif kind == _IMAGE:
                images.append(entry)
            else:
                annotations.append((index, entry))
        image, image_rejects = self._image(owner, images)
        found, mask_rejects = records.identify(
            self.name,
            annotations,
            lambda _: owner,
            lambda entry: self._reduced(entry, labels),
            numbered=not file.has_ids,
        )
        if image is None:
            for _, mask_id in found:
                message = (
                    f"annotation {mask_id} is of image {owner}, which has no record here or differing ones"
                )
                mask_rejects.append(records.mask_reject(self.name, owner, mask_id, "unknown_image", message))
        elif only is not None and owner not in only:
            return
        yield from sorted(image_rejects, key=_reject_order)
        yield from sorted(mask_rejects, key=_reject_order)
        if image is not None and (only is None or owner in only):
            own = [
                {"mask_id": mask_id, **self._reduced(entry, labels)}
                for (_, mask_id), entry in sorted(found.items(), key=lambda one: records.id_order(one[0][1]))
            ]
            yield Listed(owner, {"image": _of_image(image), "annotations": own})

    def read(self, item: Input) -> ReadResult:
        """Reads one image's record; ``num_masks_in`` of the result equals ``item.num_masks``."""
        return self.row_of(item.key, json.loads(item.payload))

    def row_of(self, image_id: str, record: Record) -> ReadResult:
        """Returns the row of a listed image."""
        image, annotations = record["image"], record["annotations"]
        try:
            image_hw = records.size_hw(image, f"image {image_id}")
            what = f"{self.image_path} of image {image_id} (the option image_path names the field)"
            name = records.image_name(image.get(self.image_path), what)
            if self.image_path == "coco_url":
                name = "/".join(name.partition("?")[0].split("/")[-2:])
            image_uri = self.image_uri(name)
        except DataError as error:
            return ReadResult.refused(self.name, image_id, error, num_masks=len(annotations))
        return records.make_row(self, image_id, image_uri, image_hw, annotations)

    def _read_file(self, entries: ExternalSort[_Row]) -> _File:
        """Sorts the images and annotations of the file by image; returns what it says besides."""
        file = _File()
        with storage.open_input(self.source) as stream:
            members = json_stream.members_of(stream, self.source)
            if isinstance(members, str):
                raise self._other_layout(f"a {members}")
            for member in members:
                if member.key in ("images", "annotations", "categories"):
                    self._take(member, entries, file)
                file.keys.append(member.key)
        if not {"images", "annotations"} <= set(file.keys):
            raise self._other_layout(f"a dict with {sorted(file.keys)[:8]}")
        return file

    def _take(self, member: json_stream.Member, entries: ExternalSort[_Row], file: _File) -> None:
        if member.key in file.keys:
            raise _layout_error(self.source, f'"{member.key}" twice', "it once")
        if member.entries is None:
            if member.key == "categories" and member.value is None:  # some sets have none
                return
            raise _layout_error(self.source, f'"{member.key}" as a {type(member.value).__name__}', "a list")
        telling = frozenset((self.mask_key, *MASK_KEYS, *_OTHER_KINDS, "bbox"))
        for index, (entry, chars, *_) in enumerate(member.entries):
            if member.key == "categories":
                file.categories.append(entry)
            elif member.key == "images":
                owner = records.id_of(entry)
                row = (
                    (_NO_OWNER, _NAMELESS, index, entry)
                    if owner is None
                    else (owner, _IMAGE, index, _of_image(entry))
                )
                entries.add(row, chars)
            else:
                file.see(entry, telling)
                if records.has_id(entry):
                    entry = records.picked(entry, (*_OF_ANNOTATION, self.mask_key))
                entries.add((records.id_of(entry, "image_id") or _NO_OWNER, _ANNOTATION, index, entry), chars)

    def _other_layout(self, has: str) -> DataError:
        return _layout_error(self.source, has, 'an object with the lists "images" and "annotations"')

    def _check_mask_key(self, file: _File) -> None:
        """A wrong key would turn every mask into a box, or into nothing."""
        if not file.objects or self.mask_key in file.seen:
            return
        others = [key for key in MASK_KEYS if key in file.seen]
        if others or self.mask_key != MASK_KEYS[0]:
            raise ConfigError(
                f"no annotation of {self.source} has the mask key {self.mask_key!r}; of the known "
                f"keys it has {others or 'none'}. Set the reader option mask_key accordingly."
            )
        kinds = [kind for key, kind in _OTHER_KINDS.items() if key in file.seen]
        if kinds and "bbox" not in file.seen:
            raise _layout_error(self.source, f"annotations {kinds[0]}", f'annotations with "{self.mask_key}"')

    def _image(self, owner: str, entries: list[Record]) -> tuple[Record | None, list[Reject]]:
        """Returns the record of an image of which the file has these, and what is rejected of them."""
        found = records.by_id((owner, entry) for entry in entries)
        rejects = [
            self.reject(owner, "duplicate_image_id", f"image id {owner} {end}")
            for _, _, end in found.repeated
        ]
        return found.kept.get(owner), rejects

    def _nameless(self, index: int, entry: Any) -> Reject:
        message = f"image at index {index} is {entry!r:.200}, expected an object with an id"
        return self.reject(f"#{index}", "image_id", message)

    def _reduced(self, annotation: Record, labels: dict[str, str]) -> Record:
        """Keeps the fields that ``records.make_row`` uses; the box only where it stands in for the mask."""
        reduced: Record = {}
        category = records.id_text(annotation.get("category_id"))
        if category in labels:
            reduced["label"] = labels[category]
        elif labels and category is not None:
            reduced["unknown_category"] = category
        if annotation.get("iscrowd") is not None:
            reduced["iscrowd"] = annotation["iscrowd"]
        if self.mask_key in annotation:
            reduced["segmentation"] = annotation[self.mask_key]
        elif annotation.get("bbox") is not None:
            reduced["bbox"] = annotation["bbox"]
        return reduced


def _of_image(image: Record) -> Record:
    return records.picked(image, _IMAGE_FIELDS)


def labels_of(categories: list[Any], where: str) -> dict[str, str]:
    """Returns the names of categories by their ids as text; raises DataError if one has two names."""
    labels: dict[str, str] = {}
    for entry in categories:
        category_id = records.id_of(entry)
        name = entry.get("name") if category_id is not None else None
        if category_id is None or not isinstance(name, str) or not records.is_utf8(name):
            continue
        if labels.setdefault(category_id, name) != name:
            got = f"category {category_id} named both {labels[category_id]!r:.40} and {name!r:.40}"
            raise _layout_error(where, got, "one name for each category")
    return labels


def _reject_order(entry: Reject) -> tuple[str, str, str, str]:
    return entry["row_id"], entry["mask_id"] or "", entry["reason"], entry["message"]


def _layout_error(where: str, got: str, expected: str) -> DataError:
    return DataError(
        f"{where} holds {got}, expected {expected} (COCO layout). Check that --corpus.source names the "
        "right file; "
        "a bare list of annotations must be wrapped together with its images.",
        reason="coco_layout",
    )
