"""Dialogues and descriptions of masks, as in Osprey-724K (family F8; CircleRadon/Osprey, dataset.md).

The file is a list of ``{file_name, height, width, annotation, conversations | description}``, and
``<region1>`` in a text is the first mask of ``annotation``. A description ``<region1>: text`` is the caption
of that mask; a conversation of one question and one answer is a region question, a longer one a dialogue. In
annotations a mask is named by its index, ``<mask 0>``. Records of one image become one row.
"""

import json
import re
from collections import defaultdict
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

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_REGION = re.compile(r"<region(\d{1,6})>")
_DESCRIPTION = re.compile(r"\s*<region(\d{1,6})>\s*:\s*(.*)", re.DOTALL)
_IMAGE_MARK = re.compile(r"<image>\s*")  # the image is a part of the dialogue, not a word of its text
_COCO_NAME = re.compile(r"COCO_[a-z]+\d{4}_\d+\.\w+")


@dataclass(frozen=True, kw_only=True)
class OspreyReader(FileReader):
    """Reads one file of Osprey.

    A name of an image with a prefix such as ``COCO_train2014_`` is also searched without it; the exact name
    wins.
    """

    def inputs(self) -> Iterator[Input | Reject]:
        """Yields rejects, then one input per image by ascending key. Holds the whole file meanwhile.

        Raises:
            DataError: If the file has another layout.
        """
        corpus = records.parse_json(storage.read_bytes(self.source), self.source)
        if not isinstance(corpus, list):
            raise DataError(
                f"{self.source} holds a {type(corpus).__name__}, expected a list of images with "
                "annotation and conversations or description (Osprey)",
                reason="osprey_layout",
            )
        by_image: dict[str, list[Record]] = defaultdict(list)
        rejects: list[Reject] = []
        for index, entry in enumerate(corpus):
            fields = entry if isinstance(entry, dict) else {}
            name, regions = fields.get("file_name"), fields.get("annotation")
            if isinstance(name, str) and name and records.is_utf8(name) and isinstance(regions, list):
                by_image[name].append(_reduced(fields))
            else:
                message = f"record at index {index} is {entry!r:.200}, expected a file_name and annotation"
                num_masks = len(regions) if isinstance(regions, list) else 0
                rejects.append(self.reject(f"#{index}", "image_record", message, num_masks=num_masks))
        for name, found in list(by_image.items()):
            if len({records.compact_json(record["image"]) for record in found}) > 1:
                num_masks = sum(len(record["regions"]) for record in by_image.pop(name))
                message = f"records of image {name} differ in its size"
                rejects.append(self.reject(name, "image_record", message, num_masks=num_masks))
        yield from sorted(rejects, key=records.compact_json)
        for name in sorted(by_image):
            found = sorted(by_image[name], key=records.compact_json)
            num_masks = sum(len(record["regions"]) for record in found)
            yield Input(key=name, payload=records.compact_json(found), num_masks=num_masks)

    def read(self, item: Input) -> ReadResult:
        """Reads one image's records; ``num_masks_in`` of the result equals ``item.num_masks``."""
        found = json.loads(item.payload)
        try:
            image_hw = records.size_hw(found[0]["image"], f"image {item.key}")
            image_uri, told = self._image_uri(item.key)
        except DataError as error:
            return ReadResult.refused(self.name, item.key, error, num_masks=item.num_masks or 0)
        result = records.make_row(
            self,
            item.key,
            image_uri,
            image_hw,
            [
                {**region, "mask_id": f"{number}-{place}"}
                for number, record in enumerate(found, start=1)
                for place, region in enumerate(record["regions"], start=1)
            ],
        )
        made: list[Annotation] = []
        rejects = told
        for number, record in enumerate(found, start=1):
            for name, text in _texts(record):
                try:
                    made.append(_annotation(number, name, text, len(record["regions"])))
                except DataError as error:
                    lost = annotations.annotation_reject(self.name, item.key, f"{number}-{name}", error)
                    rejects.append(lost)
        return annotations.attach(result, made, rejects)

    def _image_uri(self, name: str) -> tuple[str, list[Reject]]:
        """Returns where the image of that name is; raises as ``image_source.find_image``.

        That a name without its prefix is taken goes without saying only for COCO's, where the number is the
        image's; any other is told.
        """
        folder, slash, base = name.rpartition("/")
        short = base.rpartition("_")[2]
        if short in (base, ""):
            return self.image_uri(name), []
        uri = self.image_uri(name, folder + slash + short)
        if uri.endswith(f"/{base}") or _COCO_NAME.fullmatch(base):
            return uri, []
        message = f"there is no image {name}, and {uri} is taken for it"
        return uri, [self.reject(name, "image_fallback", message, mask_id="image")]


def _reduced(entry: Record) -> Record:
    """Keeps what ``read`` uses; a region that is no object becomes one whose mask cannot be read."""
    regions = [
        {key: region[key] for key in ("segmentation", "bbox") if key in region}
        if isinstance(region, dict)
        else {"segmentation": repr(region)[:80]}
        for region in entry["annotation"]
    ]
    image = {key: entry.get(key) for key in ("height", "width")}
    texts = {key: entry[key] for key in ("description", "conversations") if entry.get(key) is not None}
    return {"image": image, "regions": regions, **texts}


def _texts(record: Record) -> Iterator[tuple[str, Any]]:
    described = record.get("description", [])
    for place, text in enumerate(described if isinstance(described, list) else [described], start=1):
        yield f"description-{place}", text
    if "conversations" in record:
        yield "dialogue", record["conversations"]


def _annotation(number: int, name: str, text: Any, num_regions: int) -> Annotation:
    annotation_id = f"{number}-{name}"
    if name != "dialogue":
        match = _DESCRIPTION.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise DataError(f"description is {text!r:.80}, expected <regionN>: text", reason="description")
        mask_id = f"{number}-{_region(match[1], num_regions)}"
        caption = annotations.text_of(match[2], "description")
        return annotations.annotation(annotation_id, "region_caption", [mask_id], text=caption)
    used: list[int] = []
    turns = [_turn(turn, place, used, num_regions) for place, turn in enumerate(_turns(text))]
    mask_ids = [f"{number}-{region}" for region in used]
    if len(turns) == 2:
        payload = {"question": turns[0]["text"], "answer": turns[1]["text"]}
        return annotations.annotation(annotation_id, "region_qa", mask_ids, payload=payload)
    return annotations.annotation(annotation_id, "dialogue", mask_ids, payload={"turns": turns})


def _turns(text: Any) -> list[Any]:
    if not isinstance(text, list) or not text or len(text) % 2:
        got = f"{len(text)} turns" if isinstance(text, list) else f"{text!r:.80}"
        raise DataError(f"conversations are {got}, expected questions with an answer each", reason="dialogue")
    return text


def _turn(turn: Any, place: int, used: list[int], num_regions: int) -> dict[str, str]:
    """Returns role and text with masks by index; notes regions in the order in which they are first named."""
    fields = turn if isinstance(turn, dict) else {}
    speaker, role = fields.get("from"), ("user", "assistant")[place % 2]
    if not isinstance(speaker, str) or _ROLES.get(speaker) != role:
        raise DataError(f"turn {place} is of {speaker!r:.40}, expected the {role}", reason="dialogue")
    text = fields.get("value")
    text = annotations.text_of(_IMAGE_MARK.sub("", text) if isinstance(text, str) else text, f"turn {place}")
    text = annotations.unmarked(text, f"turn {place}")

    def by_index(match: re.Match[str]) -> str:
        region = _region(match[1], num_regions)
        if region not in used:
            used.append(region)
        return f"<mask {used.index(region)}>"

    return {"role": role, "text": _REGION.sub(by_index, text)}


def _region(digits: str, num_regions: int) -> int:
    if not 1 <= int(digits) <= num_regions:
        raise DataError(f"<region{digits}> is named, but there are {num_regions}", reason="unknown_region")
    return int(digits)
