"""Panoptic JSON and its folder of PNGs: COCO 2017 panoptic, COCONut, Cityscapes panoptic (family F3).

Source: cocodataset/panopticapi (utils.py), bytedance/coconut_cvpr2024, mcordts/cityscapesScripts
(createPanopticImgs.py). ``annotations`` has an entry for each image, whose ``file_name`` is a PNG and whose
``segments_info`` lists the numbers of its pixels, ``R + 256 * G + 65536 * B``; 0 is void and in no list.

The JSON is read once, in ``inputs``, entry by entry, and sorted on the disk, so its size does not matter.
Each segment ends as one mask or one reject:

- ``iscrowd`` is the flag ``crowd``; a segment without a pixel is an ``empty`` mask;
- a number above 0 that is no other segment's is its id, anything else the reject ``segment_id``;
- an area that is not the count of pixels is ``segment_area``: the map may be of another image;
- a ``category_id`` that is no category's is told as ``unknown_category``; the mask stays, without a label.

Pixels of a number that no segment has are told as ``unknown_segment``. An image without an annotation gives a
row without masks; an annotation whose image is not in the file is a reject with all of its masks.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar, TypeAlias

from pipelines import schema, storage
from pipelines.ingestion import annotations, json_stream, label_maps, records
from pipelines.ingestion.coco import labels_of
from pipelines.ingestion.external_sort import ExternalSort
from pipelines.ingestion.file_reader import FileReader, ImageFolders
from pipelines.ingestion.label_maps import SEGMENT_FIELDS, PanopticOptions
from pipelines.ingestion.reader import STAGE, Input, Reader, ReadResult, Reject
from pipelines.ingestion.records import Record
from samtok.errors import DataError

_LISTS = ("images", "annotations", "categories")
_NO_OWNER = "?"  # row id of entries that do not say of which image they are
_NAMELESS, _IMAGE, _ANNOTATION = range(3)
_Row: TypeAlias = tuple[str, int, str, int, Any]  # image id, one of these kinds, its list, index there, entry

_CITYSCAPES = re.compile(r"(?P<stem>(?P<city>[^/_]+)_\d+_\d+)_gtFine_leftImg8bit\.png")
"""Name of an image that createPanopticImgs.py writes, and that no file has."""


@dataclass(frozen=True, kw_only=True)
class PanopticReaderOptions(PanopticOptions, ImageFolders):
    """Options of panoptic JSON."""


@dataclass(frozen=True, kw_only=True)
class PanopticReader(FileReader, PanopticReaderOptions):
    """Reads one panoptic file. Labels are the names of its categories, ids of masks those of segments."""

    options: ClassVar[type] = PanopticReaderOptions

    @property
    def _label_maps(self) -> str:
        return self.panoptic or self.source.removesuffix(".json")

    def witness(self, inputs: Sequence[Input] = ()) -> dict[str, str]:
        """Returns ``{file name: "size:sha256"}`` of the JSON, and ``{name: size}`` of the maps of these
        inputs; without inputs what ``label_maps.first_files`` tells of the folder of maps."""
        names = [(json.loads(item.payload)["annotation"] or {}).get("file_name") for item in inputs]
        maps = label_maps.sizes_now(
            (name for name in names if isinstance(name, str)), lambda name: self.below(self._label_maps, name)
        )
        return {**super().witness(), **(maps or {"label maps": label_maps.first_files(self._label_maps)})}

    def inputs(self) -> Iterator[Input | Reject]:
        """Yields one input per image by ascending key, and rejects among them.

        Raises:
            DataError: If the file is not JSON, or its lists are missing or of another type.
            StorageError: If it cannot be read, or sorted on the local disk.
        """
        with ExternalSort[_Row]() as entries:
            labels = labels_of(self._read_file(entries), self.source)
            for owner, rows in groupby(entries, lambda row: row[0]):
                yield from self._of_owner(owner, rows, labels)

    def read(self, item: Input) -> ReadResult:
        """Reads the label map of one image; ``num_masks_in`` of the result equals ``item.num_masks``."""
        record = json.loads(item.payload)
        segments = record["annotation"]["segments"] if record["annotation"] else []
        try:
            image_hw = records.size_hw(record["image"], f"image {item.key}")
            image_uri = self._image(record["image"], item.key)
            if record["annotation"] is None:
                return records.make_row(self, item.key, image_uri, image_hw, [])
            what = f"file_name of the annotation of image {item.key}"
            map_uri = self.below(
                self._label_maps, records.image_name(record["annotation"].get("file_name"), what)
            )
            counts, masks_hw = label_maps.read_counts(map_uri, image_hw, self.orientation)
        except DataError as error:
            return ReadResult.refused(self.name, item.key, error, num_masks=len(segments))
        return row_of(self, item.key, image_uri, image_hw, segments, counts, masks_hw)

    def _image(self, image: Record, image_id: str) -> str:
        name = records.image_name(image.get("file_name"), f"file_name of image {image_id}")
        folder, slash, base = name.rpartition("/")
        known = _CITYSCAPES.fullmatch(base)
        if known is None:
            return self.image_uri(name)
        real = f"{known['stem']}_leftImg8bit.png"
        return self.image_uri(name, f"{folder}{slash}{known['city']}/{real}", folder + slash + real)

    def _read_file(self, entries: ExternalSort[_Row]) -> list[Any]:
        """Sorts the images and annotations of the file by image; returns its categories."""
        found: dict[str, list[Any]] = {}
        with storage.open_input(self.source) as stream:
            members = json_stream.members_of(stream, self.source)
            if isinstance(members, str):
                raise self._other_layout(f"a {members}")
            for member in members:
                if member.key not in _LISTS:
                    continue
                if member.key in found or member.entries is None:
                    raise self._other_layout(f'"{member.key}" twice or as another value than a list')
                found[member.key] = []
                for index, (entry, chars, *_) in enumerate(member.entries):
                    if member.key == "categories":
                        found[member.key].append(entry)
                    else:
                        entries.add(_row(member.key, index, entry), chars)
        if missing := [key for key in _LISTS if key not in found]:
            raise self._other_layout(f"no {' and no '.join(missing)}")
        return found["categories"]

    def _other_layout(self, has: str) -> DataError:
        return DataError(
            f"{self.source} holds {has}, expected an object with the lists images, annotations and "
            "categories, of which annotations have segments_info (COCO panoptic). Check that "
            "--corpus.source names "
            "the right file.",
            reason="panoptic_layout",
        )

    def _of_owner(self, owner: str, rows: Iterable[_Row], labels: dict[str, str]) -> Iterator[Input | Reject]:
        """Yields an image with its annotation, or what is rejected of those that name no usable one."""
        by_kind: dict[int, list[Record]] = {_IMAGE: [], _ANNOTATION: []}
        for _, kind, key, index, entry in rows:
            if kind == _NAMELESS:
                yield self._nameless(key, index, entry)
            else:
                by_kind[kind].append(entry)
        images = records.by_id((owner, entry) for entry in by_kind[_IMAGE])
        marked = records.by_id((owner, entry) for entry in by_kind[_ANNOTATION])
        for _, _, end in images.repeated:
            yield self.reject(owner, "duplicate_image_id", f"image id {owner} {end}")
        for _, entry, end in marked.repeated:
            message, lost = f"the annotation of image {owner} {end}", len(entry["segments"])
            yield self.reject(owner, "duplicate_annotation", message, num_masks=lost)
        image, annotation = images.kept.get(owner), marked.kept.get(owner)
        segments = [labelled(segment, labels) for segment in annotation["segments"]] if annotation else []
        if image is not None:
            if annotation is not None:
                annotation = {**annotation, "segments": segments}
            payload = records.compact_json({"image": image, "annotation": annotation})
            yield Input(key=owner, payload=payload, num_masks=len(segments))
        elif annotation is not None:
            message = f"an annotation is of image {owner}, which has no record here or differing ones"
            yield self.reject(owner, "unknown_image", message, num_masks=len(segments))

    def _nameless(self, key: str, index: int, entry: Any) -> Reject:
        if key == "images":
            message = f"image at index {index} is {entry!r:.200}, expected an object with an id"
            return self.reject(f"#{index}", "image_id", message)
        message = f"annotation at index {index} is {entry!r:.200}, expected an image_id and segments_info"
        num_masks = len(_segments(entry) or [])
        row_id = records.id_of(entry, "image_id") or _NO_OWNER
        return self.reject(row_id, "annotation_record", message, num_masks=num_masks)


def _row(key: str, index: int, entry: Any) -> _Row:
    """Returns what is sorted of an entry, reduced to what is read of it."""
    if key == "images":
        owner, kind = records.id_of(entry), _IMAGE
        reduced = records.picked(entry, ("file_name", "height", "width")) if owner is not None else entry
    else:
        owner, kind = records.id_of(entry, "image_id"), _ANNOTATION
        segments, reduced = _segments(entry), entry
        owner = None if segments is None else owner
        if owner is not None and segments is not None:
            kept = [
                records.picked(segment if isinstance(segment, dict) else {}, SEGMENT_FIELDS)
                for segment in segments
            ]
            reduced = records.picked(entry, ("file_name",)) | {"segments": kept}
    return (_NO_OWNER, _NAMELESS, key, index, entry) if owner is None else (owner, kind, key, index, reduced)


def _segments(entry: Any) -> list[Any] | None:
    segments = entry.get("segments_info") if isinstance(entry, dict) else None
    return segments if isinstance(segments, list) else None


def row_of(
    reader: Reader,
    key: str,
    image_uri: str,
    image_hw: tuple[int, int],
    segments: Sequence[Record],
    counts: dict[int, str],
    masks_hw: tuple[int, int],
) -> ReadResult:
    """Returns the row of an image, with a mask or a reject for each of its segments.

    Args:
        reader: Names the dataset.
        key: Image id.
        image_uri: The image.
        image_hw: Its height and width in pixels.
        segments: What was read of them, as ``labelled`` gives it.
        counts: Masks by number, as in ``label_maps.read_counts``.
        masks_hw: Height and width of the map.
    """
    usable, rejects = list[Record](), list[Reject]()
    for mask_id, segment in zip(label_maps.mask_ids_of(segments), segments, strict=True):
        try:
            usable.append(_annotation(mask_id, segment, counts, masks_hw))
        except DataError as error:
            rejects.append(records.mask_reject(reader.name, key, mask_id, error.reason, str(error)))
    result = records.make_row(reader, key, image_uri, image_hw, usable, rejects)
    message = f"pixels of image {key} have this id, which no segment has"
    told = [
        schema.reject(STAGE, reader.name, key, "unknown_segment", message, mask_id=str(number))
        for number in label_maps.unlisted(segments, counts)
    ]
    return annotations.attach(result, [], told)


def labelled(segment: Record, labels: dict[str, str]) -> Record:
    """Puts the name in the place of the category; without any categories there is nothing to tell.

    Args:
        segment: Its ``SEGMENT_FIELDS``; the category is taken out of it.
        labels: Names of categories by their ids, as ``coco.labels_of`` gives them.
    """
    category = segment.pop("category_id", None)
    known = records.id_text(category)
    if known in labels:
        return {**segment, "label": labels[known]}
    return {**segment, "unknown_category": f"{category!r:.40}"} if labels else segment


def _annotation(mask_id: str, segment: Record, counts: dict[int, str], image_hw: tuple[int, int]) -> Record:
    if label_maps.check_id(mask_id, segment) < 1:
        fault = f"segment {mask_id} has a number that is void, expected one above 0"
        raise DataError(fault, reason="segment_id")
    found = label_maps.segment_of(mask_id, segment, counts, image_hw)
    return found | records.picked(segment, ("label", "unknown_category"))
