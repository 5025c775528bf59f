"""LISA++: questions about objects of COCO, and its siblings with answers (Senqiao/LISA_Plus_*).

``data.json`` is a list of ``{"English Question", "img_path", "ID": [ids]}``; each is a ``referring``
annotation. Masks are those of ``instances_train2017.json`` with these ids; the polygons that an entry repeats
of them (``points``) are not read. A row has the objects that are named, no others. An id that no object of
its image has is told as ``unknown_mask``.

The siblings have the same masks and other text. Of them that much is stated and read:

- ``_Conversations``: ``{"img_pth", "output"}``, turns behind ``<person>:`` and ``<robot>:``;
- ``_COT`` and ``_Caption``: ``{"image_path", "English Question", "English Answer"}``.

A text names objects as ``<id|label>``, ``《id|label》`` or ``word <id>``; what names none is rejected as
``annotation_targets``. ``info`` is not read. Entries have no id, so annotations are named by their number in
the file, from 1. The end of an image's name is its COCO id; the file is the one that the objects' file names.
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, ClassVar

from pipelines.ingestion import annotations, json_lines, records
from pipelines.ingestion.annotations import Annotation
from pipelines.ingestion.expressions import ExpressionReader, InstancesOption
from pipelines.ingestion.reader import Reject
from samtok.errors import DataError

_IMAGE_KEYS = ("img_path", "image_path", "img_pth")  # the last one as it is published
_QUESTION, _ANSWER = "English Question", "English Answer"
_IMAGE_ID = re.compile(r"(?:.*[/\\_])?([0-9]{1,18})\.[A-Za-z]+", re.DOTALL)  # 000000000139.jpg
_REFERENCE = re.compile(r"<([0-9]{1,18})(?:\|([^<>|]*))?>|《([0-9]{1,18})(?:\|([^《》|]*))?》")
_SPEAKER = re.compile(r"<(person|robot)>\s*:")
_ROLES = {"person": "user", "robot": "assistant"}


@dataclass(frozen=True, kw_only=True)
class LisaReader(ExpressionReader):
    """Reads one file of LISA++ or of a sibling; ``instances`` holds the objects."""

    options: ClassVar[type] = InstancesOption
    beside: ClassVar[str] = "instances_train2017.json"
    takes_all: ClassVar[bool] = False

    def expressions(self) -> tuple[dict[str, list[Annotation]], list[Reject]]:
        """Returns annotations by image in the order of the file, and what cannot be one.

        Raises:
            DataError: ``lisa_layout`` if no entry names an image.
            ConfigError: If the file is no JSON list, or cut off.
        """
        by_image: dict[str, list[Annotation]] = defaultdict(list)
        rejects: list[Reject] = []
        images = entries = 0
        for entries, line in enumerate(json_lines.read_lines(self.source, flag="--corpus.source"), start=1):
            image_id = None
            try:
                entry = json_lines.parse_line(line.raw, f"entry {entries} of {self.source}")
                name = _image_name(entry)
                images += name is not None
                image_id = _image_id(name)
                by_image[image_id].append(_annotation(str(entries), entry))
            except DataError as error:
                rejects.append(self.lost(image_id, str(entries), error))
        if not images:
            raise DataError(
                f"{self.source} has {entries} entries, none of which names an image under "
                f"{' or '.join(_IMAGE_KEYS)} (LISA++). Check that --corpus.source names the questions and "
                "--corpus.instances the objects.",
                reason="lisa_layout",
            )
        return {image_id: made for image_id, made in by_image.items() if made}, rejects


def _image_name(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return None
    return next((entry[key] for key in _IMAGE_KEYS if entry.get(key) is not None), None)


def _image_id(name: Any) -> str:
    match = _IMAGE_ID.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise DataError(
            f"the image is {name!r:.80}, expected a name with its COCO id, as 000000000139.jpg",
            reason="image_id",
        )
    return str(int(match[1]))


def _annotation(name: str, entry: dict[str, Any]) -> Annotation:
    """Returns what an entry says, by the keys that it has."""
    if "output" in entry:
        return _dialogue(name, _turns(entry["output"]))
    if _ANSWER in entry:
        return _dialogue(name, [("user", entry.get(_QUESTION)), ("assistant", entry[_ANSWER])])
    text = annotations.text_of(entry.get(_QUESTION), f'"{_QUESTION}"')
    return annotations.annotation(name, "referring", _targets(entry.get("ID")), text=text)


def _targets(value: Any) -> list[str]:
    entries = value if isinstance(value, list) else [value]
    targets = [records.id_text(entry) for entry in entries]
    numbers = [target for target in targets if target and re.fullmatch("[0-9]{1,18}", target)]
    if not entries or len(numbers) < len(entries):
        raise DataError(f"ID is {value!r:.80}, expected ids of COCO", reason="annotation_targets")
    return list(dict.fromkeys(str(int(number)) for number in numbers))


def _turns(output: Any) -> list[tuple[str, str]]:
    before, *parts = _SPEAKER.split(output) if isinstance(output, str) else [""]
    if before.strip() or not parts:
        fault = f"output is {output!r:.80}, expected turns behind <person>: and <robot>:"
        raise DataError(fault, reason="dialogue")
    turns = [(_ROLES[who], text) for who, text in zip(parts[::2], parts[1::2], strict=True)]
    if [role for role, _ in turns] != ["user", "assistant"] * (len(turns) // 2):
        fault = f"output has the turns {[role for role, _ in turns]!r:.80}, expected questions with an answer"
        raise DataError(f"{fault} each", reason="dialogue")
    return turns


def _dialogue(name: str, turns: list[tuple[str, Any]]) -> Annotation:
    """Returns turns as an annotation of the objects that they name."""
    named: list[str] = []

    def by_index(match: re.Match[str]) -> str:
        mask_id, label = str(int(match[1] or match[3])), (match[2] or match[4] or "").strip()
        if mask_id not in named:
            named.append(mask_id)
        return f"{label} <mask {named.index(mask_id)}>".strip()

    said = []
    for place, (role, value) in enumerate(turns):
        text = annotations.unmarked(annotations.text_of(value, f"turn {place}"), f"turn {place}")
        said.append({"role": role, "text": _REFERENCE.sub(by_index, text)})
    if not named:
        fault = "no text names an object, as <id|label> does, and what else would is not stated"
        raise DataError(fault, reason="annotation_targets")
    if len(said) == 2:
        payload = {"question": said[0]["text"], "answer": said[1]["text"]}
        return annotations.annotation(name, "region_qa", named, payload=payload)
    return annotations.annotation(name, "dialogue", named, payload={"turns": said})
