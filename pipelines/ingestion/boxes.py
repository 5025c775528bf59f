"""Questions about boxes that have no mask: Visual7W pointing and InViG (family F9).

A box becomes a mask of its row without an RLE, with ``box_xyxy`` and the flag ``box_only``; jobs leave those
out until something draws masks for them. What a box has outside of its image is cut off, and a box without
anything inside is rejected as ``box_outside``. A row has the boxes that a question means, no others. The
image id is the name of the image.

- Visual7W (yukezhu/visual7w-toolkit): ``{boxes: [{box_id, name, x, y, width, height}], images: [{filename,
  split, qa_pairs: [{qa_id, question, answer: box_id}]}]}``. Each question is a ``referring`` annotation.
- InViG (``invig_api.py``), JSON lines: ``{filename, width, height, id, ann: {ref_exp, questions, answers,
  ref_bboxes: [[x0, y0, x1, y1]] or one}}``. Each line is a dialogue: the user's ``ref_exp``, questions of the
  assistant with the user's answers, and at the end the assistant names the boxes.
"""

import json
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipelines import storage
from pipelines.ingestion import annotations, json_lines, json_stream, records
from pipelines.ingestion.annotations import Annotation
from pipelines.ingestion.file_reader import FileReader, no_split
from pipelines.ingestion.reader import Input, ReadResult, Reject
from pipelines.ingestion.records import Record
from samtok.errors import ConfigError, DataError

_NO_IMAGE = "?"  # row id of entries that do not say of which image they are

Box = list[Any]
"""x0, y0, x1, y1 in pixels, unchecked."""


class Asked(NamedTuple):
    """One question, and the boxes that it means."""

    image: str
    annotation: Annotation
    boxes: dict[str, Box]
    """By their mask ids."""
    labels: dict[str, str]
    size: dict[str, Any] | None = None
    """``height`` and ``width`` of the image, if the file states them."""


@dataclass(frozen=True, kw_only=True)
class BoxReader(FileReader):
    """Base of readers of one file of questions about boxes."""

    @abstractmethod
    def asked(self) -> Iterator[Asked | Reject]:
        """Yields what is asked, and what cannot be used; raises as ``inputs``."""

    def inputs(self) -> Iterator[Input | Reject]:
        """Yields rejects, then one input per image by ascending key. Holds the questions meanwhile.

        Raises:
            DataError: If the file has another layout.
            ConfigError: If it has no question of the split.
        """
        by_image: dict[str, list[Asked]] = defaultdict(list)
        rejects: list[Reject] = []
        for found in self.asked():
            if isinstance(found, Asked):
                by_image[found.image].append(found)
            else:
                rejects.append(found)
        inputs = [self._input(image, by_image.pop(image), rejects) for image in sorted(by_image)]
        yield from sorted(rejects, key=records.compact_json)
        yield from inputs

    def _input(self, image: str, found: list[Asked], rejects: list[Reject]) -> Input:
        named = records.by_id((one.annotation["annotation_id"], one._asdict()) for one in found)
        for name, _, end in named.repeated:
            error = DataError(f"the id {name} {end}", reason="duplicate_annotation_id")
            rejects.append(self.lost(image, name, error))
        kept = [named.kept[name] for name in sorted(named.kept, key=records.id_order)]
        boxes = {mask_id: box for one in kept for mask_id, box in one["boxes"].items()}
        labels = {mask_id: label for one in kept for mask_id, label in one["labels"].items()}
        sizes = sorted({records.compact_json(one["size"]) for one in kept})
        made = [one["annotation"] for one in kept]
        payload = {"sizes": sizes, "boxes": boxes, "labels": labels, "annotations": made}
        return Input(key=image, payload=records.compact_json(payload), num_masks=len(boxes))

    def read(self, item: Input) -> ReadResult:
        """Reads one image's boxes; ``num_masks_in`` of the result equals ``item.num_masks``."""
        record = json.loads(item.payload)
        made, rejects = list[Record](), list[Reject]()
        try:
            image_uri = self.image_uri(item.key)
            image_hw = self._size_hw(record["sizes"], image_uri, item.key)
        except DataError as error:
            return ReadResult.refused(self.name, item.key, error, num_masks=len(record["boxes"]))
        for mask_id, box in record["boxes"].items():
            try:
                bbox = _inside(box, *image_hw)
            except DataError as error:
                message = f"box {mask_id} of image {item.key}: {error}"
                rejects.append(records.mask_reject(self.name, item.key, mask_id, error.reason, message))
            else:
                made.append({"mask_id": mask_id, "bbox": bbox, "label": record["labels"].get(mask_id)})
        result = records.make_row(self, item.key, image_uri, image_hw, made, rejects)
        return annotations.attach(result, record["annotations"])

    def lost(self, image: str | None, name: str, error: DataError) -> Reject:
        """Returns the reject of a question that cannot be used."""
        return annotations.annotation_reject(self.name, image or _NO_IMAGE, name, error)

    def _size_hw(self, sizes: list[str], image_uri: str, key: str) -> tuple[int, int]:
        if len(sizes) > 1:
            fault = f"image {key} has {len(sizes)} sizes: {', '.join(sizes)}"
            raise DataError(fault, reason="image_size")
        size = json.loads(sizes[0]) if sizes else None
        return self.size_of(image_uri) if size is None else records.size_hw(size, f"image {key}")


@dataclass(frozen=True, kw_only=True)
class Visual7wReader(BoxReader):
    """Reads the questions of one split of ``dataset_v7w_pointing.json``."""

    def asked(self) -> Iterator[Asked | Reject]:
        """Yields the questions of the split.

        Raises:
            DataError: ``visual7w_layout`` for another layout.
            ConfigError: If no image is of the split; names those that are there.
        """
        found: dict[str, list[Any]] = {"boxes": [], "images": []}
        with storage.open_input(self.source) as stream:
            members = json_stream.members_of(stream, self.source)
            for member in () if isinstance(members, str) else members:
                if member.key in found and member.entries is not None:
                    found[member.key] += [entry.value for entry in member.entries]
        if not all(found.values()):
            raise DataError(
                f"{self.source} has {len(found['boxes'])} boxes and {len(found['images'])} images, expected "
                "an object with both lists (Visual7W pointing). Check that --corpus.source names the "
                "right file.",
                reason="visual7w_layout",
            )
        boxes = records.by_id((records.id_of(box, "box_id"), box) for box in found["boxes"]).kept
        named = (image.get("split") for image in found["images"] if isinstance(image, dict))
        splits = Counter(split for split in named if isinstance(split, str))
        if self.split not in splits:
            raise ConfigError(no_split(self.source, "image", self.split, splits))
        for number, image in enumerate(found["images"], start=1):
            pairs = image.get("qa_pairs") if isinstance(image, dict) else None
            if not isinstance(pairs, list):
                message = f"image {number} is {image!r:.80}, expected an object with qa_pairs"
                yield self.reject(f"#{number}", "image_record", message)
            elif image.get("split") == self.split:
                yield from (self._asked(image, one, place, boxes) for place, one in enumerate(pairs, start=1))

    def _asked(self, image: Record, pair: Any, place: int, boxes: dict[str, Record]) -> Asked | Reject:
        name, number = None, records.id_of(pair, "qa_id") or f"#{place}"
        fields = pair if isinstance(pair, dict) else {}
        try:
            name = records.image_name(image.get("filename"), "filename")
            text = annotations.text_of(fields.get("question"), "question")
            target = records.id_of(fields, "answer")
            if target is None or target not in boxes:
                fault = f"answer is {fields.get('answer')!r:.40}, which no box, or several, have as their id"
                raise DataError(fault, reason="annotation_targets")
        except DataError as error:
            return self.lost(name, number, error)
        box = boxes[target]
        label = box.get("name")
        labels = {target: label} if isinstance(label, str) and label and records.is_utf8(label) else {}
        made = annotations.annotation(number, "referring", [target], text=text)
        x, y, width, height = (box.get(key) for key in ("x", "y", "width", "height"))
        return Asked(name, made, {target: from_xywh([x, y, width, height])}, labels)


@dataclass(frozen=True, kw_only=True)
class InvigReader(BoxReader):
    """Reads one ``invig*_anns.jsonl``, whose images are in the folder ``invig*_imgs``."""

    def asked(self) -> Iterator[Asked | Reject]:
        """Yields the dialogues.

        Raises:
            ConfigError: If the file is neither JSON lines nor a JSON list.
        """
        for line in json_lines.read_lines(self.source, flag="--corpus.source"):
            name, number = None, f"#{line.number}"
            try:
                entry = json_lines.parse_line(line.raw, f"line {line.number} of {self.source}")
                fields = entry if isinstance(entry, dict) else {}
                number = records.id_of(entry) or number
                name = records.image_name(fields.get("filename"), "filename")
                boxes = _targets(fields.get("ann"), number)
                made = _dialogue(number, fields["ann"], list(boxes))
            except DataError as error:
                yield self.lost(name, number, error)
            else:
                yield Asked(name, made, boxes, {}, records.picked(fields, ("height", "width")))


def _targets(about: Any, number: str) -> dict[str, Box]:
    found = about.get("ref_bboxes") if isinstance(about, dict) else None
    boxes = found if isinstance(found, list) else []
    boxes = boxes if boxes and all(isinstance(box, list) for box in boxes) else [boxes]
    if not boxes[0] or len({records.compact_json(box) for box in boxes}) < len(boxes):
        fault = f"ref_bboxes are {found!r:.80}, expected a box or a list of different ones"
        raise DataError(fault, reason="annotation_targets")
    return {f"{number}-{place}": box for place, box in enumerate(boxes, start=1)}


def _dialogue(number: str, about: Record, mask_ids: list[str]) -> Annotation:
    questions, answers = (_listed(about.get(key), key) for key in ("questions", "answers"))
    if len(questions) != len(answers):
        fault = f"there are {len(questions)} questions and {len(answers)} answers, expected as many"
        raise DataError(fault, reason="dialogue")
    said = [about.get("ref_exp"), *(text for pair in zip(questions, answers, strict=True) for text in pair)]
    turns = []
    for place, value in enumerate(said):
        text = annotations.unmarked(annotations.text_of(value, f"turn {place}"), f"turn {place}")
        turns.append({"role": ("user", "assistant")[place % 2], "text": text})
    turns.append({"role": "assistant", "text": " ".join(f"<mask {i}>" for i in range(len(mask_ids)))})
    return annotations.annotation(number, "dialogue", mask_ids, payload={"turns": turns})


def _listed(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{key} are {value!r:.40}, expected a list", reason="dialogue")
    return value


def from_xywh(box: Box) -> Box:
    """Returns x0, y0, x1, y1; whatever is no box stays as it is, to be refused with its image."""
    if not all(map(records.is_coordinate, box)):
        return box
    x, y, width, height = box
    return [x, y, x + width, y + height]


def _inside(box: Box, height: int, width: int) -> Box:
    """Returns what a box has inside of its image, as x, y, width, height.

    Raises:
        DataError: ``bbox`` if it is none, ``box_outside`` if there is nothing.
    """
    if len(box) != 4 or not all(map(records.is_coordinate, box)):
        raise DataError(f"it is {box!r:.80}, expected four finite numbers of pixels", reason="bbox")
    x0, y0 = max(box[0], 0), max(box[1], 0)
    x1, y1 = min(box[2], width), min(box[3], height)
    if x1 <= x0 or y1 <= y0:
        fault = f"{box} has nothing inside of the image of {height}x{width} pixels"
        raise DataError(fault, reason="box_outside")
    return [x0, y0, x1 - x0, y1 - y0]
