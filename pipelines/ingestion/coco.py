"""COCO-layout JSON: ``images``, ``annotations`` and, where there are any, ``categories`` (family F1).

Serves COCO instances, LVIS, PACO, EntitySeg, V3Det (boxes), the official DLC-Bench file, Flickr30k-GCG
(``mask_key="sam_mask"``) and the ``instances.json`` of the REFER family. Source: cocodataset/cocoapi.

The file is parsed once, in ``inputs``; each image leaves with its own annotations as the payload, reduced to
the fields that are used. Every annotation ends in one input or one reject:

- it is no object, or has no id while others have one, or its image is not in the file: a mask reject;
- its id is repeated: of equal records one stays, of differing ones none (``records.by_id``).
  The same holds for images; annotations of an id that stands for different images count as without one.
"""

import json
from collections import defaultdict
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from pipelines import storage
from pipelines.ingestion import records
from pipelines.ingestion.file_reader import FileReader, ImageFolders
from pipelines.ingestion.reader import Input, ReadResult, Reject
from pipelines.ingestion.records import Record
from samtok.errors import ConfigError, DataError

MASK_KEYS = ("segmentation", "sam_mask")

_IMAGE_FIELDS = ("coco_url", "file_name", "height", "width")
_OTHER_KINDS = {
    "segments_info": "of panoptic maps, whose masks are in PNG files",
    "caption": "of captions, which have no masks",
}
_NO_OWNER = "?"  # row id of annotations that do not say whose they are


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

    def listing(self, only: Container[str] | None = None) -> "Iterator[Listed | Reject]":
        """Yields rejects, then the images by ascending id. Holds the whole file meanwhile.

        Args:
            only: Ids of the images that are wanted. Other images, what was rejected of them included, are
                left out; rejects that name no image of the file stay.

        Raises:
            DataError: If the file is not JSON, its lists are missing or of another type, or its annotations
                are of another kind.
            ConfigError: If no annotation has ``mask_key``, though it was named or another known key is there.
        """
        corpus = self._load()
        labels = _labels(corpus["categories"], self.source)
        self._check_mask_key(corpus["annotations"])
        images, image_rejects = self._images(corpus["images"])
        annotations, mask_rejects = records.identify(
            self.name,
            corpus["annotations"],
            lambda entry: records.id_of(entry, "image_id") or _NO_OWNER,
            lambda entry: self._reduced(entry, labels),
        )
        by_image: dict[str, list[Record]] = defaultdict(list)
        for (owner, mask_id), annotation in annotations.items():
            if owner in images:
                by_image[owner].append({"mask_id": mask_id, **self._reduced(annotation, labels)})
            else:
                message = (
                    f"annotation {mask_id} is of image {owner}, which has no record here or differing ones"
                )
                mask_rejects.append(records.mask_reject(self.name, owner, mask_id, "unknown_image", message))

        for entry in (*sorted(image_rejects, key=_reject_order), *sorted(mask_rejects, key=_reject_order)):
            if only is None or entry["row_id"] in only or entry["row_id"] not in images:
                yield entry
        for image_id in sorted(images):
            if only is None or image_id in only:
                own = sorted(by_image[image_id], key=lambda entry: records.id_order(entry["mask_id"]))
                yield Listed(image_id, {"image": _of_image(images[image_id]), "annotations": own})

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

    def _load(self) -> dict[str, Any]:
        corpus = records.parse_json(storage.read_bytes(self.source), self.source)
        if not isinstance(corpus, dict) or not {"images", "annotations"} <= corpus.keys():
            keys = f" with {sorted(corpus)[:8]}" if isinstance(corpus, dict) else ""
            expected = 'an object with the lists "images" and "annotations"'
            raise _layout_error(self.source, f"a {type(corpus).__name__}{keys}", expected)
        lists = {key: corpus.get(key) for key in ("images", "annotations", "categories")}
        for key, entries in lists.items():
            if entries is None and key == "categories":
                lists[key] = entries = []  # some sets have none
            if not isinstance(entries, list):
                raise _layout_error(self.source, f'"{key}" as a {type(entries).__name__}', "a list")
        return lists

    def _check_mask_key(self, annotations: list[Any]) -> None:
        """A wrong key would turn every mask into a box, or into nothing."""
        objects = [entry for entry in annotations if isinstance(entry, dict)]
        if not objects or any(self.mask_key in entry for entry in objects):
            return
        others = [key for key in MASK_KEYS if any(key in entry for entry in objects)]
        if others or self.mask_key != MASK_KEYS[0]:
            raise ConfigError(
                f"no annotation of {self.source} has the mask key {self.mask_key!r}; of the known "
                f"keys it has {others or 'none'}. Set the reader option mask_key accordingly."
            )
        kinds = [kind for key, kind in _OTHER_KINDS.items() if any(key in entry for entry in objects)]
        if kinds and not any("bbox" in entry for entry in objects):
            raise _layout_error(self.source, f"annotations {kinds[0]}", f'annotations with "{self.mask_key}"')

    def _images(self, entries: list[Any]) -> tuple[dict[str, Record], list[Reject]]:
        found = records.by_id(((records.id_of(entry), entry) for entry in entries), _of_image)
        rejects: list[Reject] = []
        for index, entry in found.nameless:
            message = f"image at index {index} is {entry!r:.200}, expected an object with an id"
            rejects.append(self.reject(f"#{index}", "image_id", message))
        for image_id, _, end in found.repeated:
            rejects.append(self.reject(image_id, "duplicate_image_id", f"image id {image_id} {end}"))
        return found.kept, rejects

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


def _labels(categories: list[Any], where: str) -> dict[str, str]:
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
        f"{where} holds {got}, expected {expected} (COCO layout). Check that --source names the right file; "
        "a bare list of annotations must be wrapped together with its images.",
        reason="coco_layout",
    )
