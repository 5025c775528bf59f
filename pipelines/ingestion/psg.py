"""PSG: panoptic masks and the relations between them (family F3). Source: Jingkang50/OpenPSG (psg.py).

``psg.json`` has the images with ``segments_info`` and ``relations``; the masks are PNGs whose pixels are
segment ids. Labels are the dense categories of this dataset (things, then stuff), not COCO's ids. A relation
``[subject, object, predicate]`` has indices of ``segments_info`` and of ``predicate_classes``, all from 0.

An image without relations gives a row without a scene graph; the official loader leaves such images out.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pipelines import storage
from pipelines.ingestion import annotations, label_maps, records
from pipelines.ingestion.file_reader import FileReader
from pipelines.ingestion.label_maps import SEGMENT_FIELDS, PanopticOptions
from pipelines.ingestion.reader import Input, ReadResult, Reject
from pipelines.ingestion.records import Record
from samtok.errors import ConfigError, DataError

GRAPH_ID = "graph"
"""Id of the one annotation of an image."""

_IMAGE_FIELDS = ("file_name", "height", "width", "pan_seg_file_name")


@dataclass(frozen=True, kw_only=True)
class PsgReader(FileReader, PanopticOptions):
    """Reads one PSG file.

    The splits ``test`` and ``val`` take the images of ``test_image_ids``, ``train`` all others, any other
    name takes all.
    """

    options: ClassVar[type] = PanopticOptions
    max_head_bytes: ClassVar[int] = 512 * 2**20  # which split an image is of stands at the end

    @property
    def _label_maps(self) -> str:
        return self.panoptic or storage.join(self.images, "annotations")

    def witness(self, inputs: Sequence[Input] = ()) -> dict[str, str]:
        """Returns ``{file name: "size:sha256"}``, and for the PNGs the hash of their names and sizes."""
        root = self._label_maps.rstrip("/") + "/"
        pngs = [found for found in storage.list_files(self._label_maps) if found.uri.endswith(".png")]
        files = sorted((found.uri.removeprefix(root), found.size) for found in pngs)
        digest = hashlib.sha256(records.compact_json(files).encode()).hexdigest()
        label_maps = f"{len(files)}:{sum(size for _, size in files)}:{digest}"
        return {**super().witness(inputs), "label maps": label_maps}

    def inputs(self) -> Iterator[Input | Reject]:
        """Yields rejects, then one input per image of the split by ascending key. Holds the whole file.

        Raises:
            DataError: If the file has another layout.
            ConfigError: If no image is of the split.
        """
        corpus = self._load()
        labels = _names(corpus, "thing_classes") + _names(corpus, "stuff_classes")
        predicates = _names(corpus, "predicate_classes")
        kept, nameless, repeated = records.by_id(
            ((_image_of(entry), entry) for entry in corpus["data"]),
            lambda entry: _reduced(entry, labels, predicates),
        )
        for index, entry in nameless:
            segments = entry.get("segments_info") if isinstance(entry, dict) else None
            num_masks = len(segments) if isinstance(segments, list) else 0
            fault = f"image at index {index} is {entry!r:.200}, expected an image_id and segments_info"
            row_id = records.id_of(entry, "image_id") or f"#{index}"
            yield self.reject(row_id, "image_record", fault, num_masks=num_masks)
        chosen = sorted(image_id for image_id in kept if self._selects(image_id, corpus))
        lost = [one for one in repeated if self._selects(one[0], corpus)]
        if not chosen and not lost:
            raise ConfigError(
                f"{self.source} has no image of the split {self.split!r} among {len(kept) + len(repeated)}; "
                "train, val and test go by its test_image_ids, another name such as all takes every image"
            )
        for image_id, entry, end in sorted(lost, key=lambda one: one[0]):
            message, num_masks = f"image id {image_id} {end}", len(entry["segments_info"])
            yield self.reject(image_id, "duplicate_image_id", message, num_masks=num_masks)
        for image_id in chosen:
            payload = _reduced(kept[image_id], labels, predicates)
            num_masks = len(payload["segments"])
            yield Input(key=image_id, payload=records.compact_json(payload), num_masks=num_masks)

    def read(self, item: Input) -> ReadResult:
        """Reads one image's label map; segments that it lacks, or with another area, are rejected."""
        record = json.loads(item.payload)
        try:
            image_hw = records.size_hw(record["image"], f"image {item.key}")
            image_uri = self._uri(self.images, record["image"], "file_name", item.key)
            uri = self._uri(self._label_maps, record["image"], "pan_seg_file_name", item.key)
            counts, masks_hw = label_maps.read_counts(uri, image_hw, self.orientation)
        except DataError as error:
            return ReadResult.refused(self.name, item.key, error, num_masks=len(record["segments"]))
        usable, rejects, mask_ids = self._segments(record["segments"], counts, masks_hw, item.key)
        result = records.make_row(self, item.key, image_uri, image_hw, usable, rejects)
        triplets, lost = self._triplets(record["relations"], len(mask_ids), item.key)
        payload = {"triplets": triplets}
        message = f"pixels of image {item.key} have this id, which no segment has"
        for number in label_maps.unlisted(record["segments"], counts):
            lost.append(self.reject(item.key, "unknown_segment", message, mask_id=str(number)))
        graph = annotations.annotation(GRAPH_ID, "scene_graph", mask_ids, payload=payload)
        return annotations.attach(result, [graph] if triplets else [], lost)

    def _load(self) -> dict[str, Any]:
        corpus = records.parse_json(storage.read_bytes(self.source), self.source)
        if not isinstance(corpus, dict) or not isinstance(corpus.get("data"), list):
            raise DataError(
                f"{self.source} holds a {type(corpus).__name__}, expected an object with the list data "
                "and the lists thing_classes, stuff_classes and predicate_classes (OpenPSG's psg.json)",
                reason="psg_layout",
            )
        return corpus

    def _selects(self, image_id: str, corpus: dict[str, Any]) -> bool:
        if self.split not in ("train", "val", "test"):
            return True
        tested = {records.id_text(value) for value in corpus.get("test_image_ids") or []}
        return (image_id in tested) == (self.split != "train")

    def _uri(self, root: str, image: Record, field: str, image_id: str) -> str:
        return self.below(root, records.image_name(image.get(field), f"{field} of image {image_id}"))

    def _segments(
        self, segments: list[Record], counts: dict[int, str], image_hw: tuple[int, int], image_id: str
    ) -> tuple[list[Record], list[Reject], list[str]]:
        """Returns usable segments, a reject for each other one, and the ids of all."""
        mask_ids = label_maps.mask_ids_of(segments)
        usable, rejects = [], []
        for mask_id, segment in zip(mask_ids, segments, strict=True):
            try:
                usable.append(_segment(mask_id, segment, counts, image_hw))
            except DataError as error:
                rejects.append(records.mask_reject(self.name, image_id, mask_id, error.reason, str(error)))
        return usable, rejects, mask_ids

    def _triplets(
        self, relations: Any, num_segments: int, image_id: str
    ) -> tuple[list[list[int | str]], list[Reject]]:
        """Returns [subject, predicate, object] without repeats, sorted, and what is no relation."""
        triplets, rejects = [], []
        if relations is not None and not isinstance(relations, list):
            error = DataError(f"relations are {relations!r:.80}, expected a list", reason="relation")
            return [], [annotations.annotation_reject(self.name, image_id, GRAPH_ID, error)]
        for index, relation in enumerate(relations or []):
            ends = relation[:2] if isinstance(relation, list) and len(relation) == 3 else [None]
            if not all(type(end) is int and 0 <= end < num_segments for end in ends) or relation[2] is None:
                error = DataError(
                    f"relation is {relation!r:.80}, expected two of {num_segments} segments and a predicate",
                    reason="relation",
                )
                name = f"{GRAPH_ID} relation {index}"
                rejects.append(annotations.annotation_reject(self.name, image_id, name, error))
            else:
                triplets.append((ends[0], relation[2], ends[1]))
        return [list(one) for one in sorted(set(triplets))], rejects


def _image_of(entry: Any) -> str | None:
    has_segments = isinstance(entry, dict) and isinstance(entry.get("segments_info"), list)
    return records.id_of(entry, "image_id") if has_segments else None


def _names(corpus: dict[str, Any], key: str) -> list[str]:
    names = corpus.get(key)
    if not isinstance(names, list) or not all(
        isinstance(name, str) and records.is_utf8(name) for name in names
    ):
        raise DataError(f"{key} is {names!r:.80}, expected a list of names (OpenPSG)", reason="psg_layout")
    return names


def _reduced(entry: Record, labels: list[str], predicates: list[str]) -> Record:
    """Keeps what ``read`` uses, with names instead of numbers; null where a number has no name."""
    segments = []
    for segment in entry["segments_info"]:
        fields = segment if isinstance(segment, dict) else {}
        kept = {key: fields[key] for key in SEGMENT_FIELDS if key in fields}
        segments.append({**kept, "label": _named(fields.get("category_id"), labels)})
    relations = entry.get("relations")
    if isinstance(relations, list):
        relations = [
            [*one[:2], _named(one[2], predicates)] if isinstance(one, list) and len(one) == 3 else one
            for one in relations
        ]
    image = {key: entry[key] for key in _IMAGE_FIELDS if key in entry}
    return {"image": image, "segments": segments, "relations": relations}


def _named(number: object, names: list[str]) -> str | None:
    return names[number] if type(number) is int and 0 <= number < len(names) else None


def _segment(mask_id: str, segment: Record, counts: dict[int, str], image_hw: tuple[int, int]) -> Record:
    number = label_maps.check_id(mask_id, segment)
    if segment["label"] is None:
        message = f"segment {mask_id} has category_id {segment.get('category_id')!r:.40}, which has no name"
        raise DataError(message, reason="category_id")
    if number not in counts:
        raise DataError(f"segment {mask_id} has no pixel in the label map", reason="segment_missing")
    return {**label_maps.segment_of(mask_id, segment, counts, image_hw), "label": segment["label"]}
