"""DLC-Bench as published: regions to be described, and the questions that judge a description.

``annotations.json`` is in COCO layout. Beside it lie ``qa.json``, ``{id: [{question, choices: [[text,
score]], type, subtype}]}``, and ``class_names.json``, ``{id: name}``; ids are those of annotations, as text.
Each mask gets an annotation ``region_caption`` without text, for no right caption is published, whose payload
has ``class_name`` and ``questions``. Source: NVlabs/describe-anything (DLC-Bench).

The authors' own packing of it is read by ``regions``, without questions.
"""

import json
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pipelines import storage
from pipelines.ingestion import annotations, records
from pipelines.ingestion.annotations import Annotation
from pipelines.ingestion.coco import CocoReader
from pipelines.ingestion.file_reader import NoOptions, witness_of
from pipelines.ingestion.reader import Input, ReadResult, Reject
from pipelines.ingestion.records import Record
from samtok.errors import DataError

QUESTIONS, NAMES = "qa.json", "class_names.json"
_TYPES = ("positive", "negative")
_NO_IMAGE = "?"  # row id of what is said of no region of the file


@dataclass(frozen=True, kw_only=True)
class DlcReader(CocoReader):
    """Reads ``annotations.json`` and the two files beside it."""

    options: ClassVar[type] = NoOptions

    def witness(self, inputs: Sequence[Input] = ()) -> dict[str, str]:
        """Returns ``{file name: "size:sha256"}`` of the three files."""
        beside = [witness_of(self._beside(name)) for name in (QUESTIONS, NAMES)]
        return super().witness(inputs) | beside[0] | beside[1]

    def inputs(self) -> Iterator[Input | Reject]:
        """Yields rejects, then one input per image by ascending key; raises as ``CocoReader.inputs``, also
        where one of the files beside is not there or no object."""
        questions, names = self._object(QUESTIONS), self._object(NAMES)
        unused = questions.keys() | names.keys()
        items: list[Input] = []
        for found in self.listing():
            if isinstance(found, dict):
                yield found
                continue
            ids = [one["mask_id"] for one in found.record["annotations"]]
            unused -= set(ids)
            asked = {one: {"name": names.get(one), "questions": questions.get(one)} for one in ids}
            payload = records.compact_json({**found.record, "asked": asked})
            items.append(Input(key=found.image_id, payload=payload, num_masks=len(ids)))
        for name in sorted(unused):
            shown = name.encode(errors="backslashreplace").decode()
            error = DataError(f"no annotation has the id {shown:.80}", reason="unknown_mask")
            yield annotations.annotation_reject(self.name, _NO_IMAGE, shown, error)
        yield from items

    def read(self, item: Input) -> ReadResult:
        """Reads one image's regions; questions that cannot be used are rejects, one for each."""
        record = json.loads(item.payload)
        made, lost = list[Annotation](), list[Reject]()
        for mask_id, asked in record["asked"].items():
            questions = asked["questions"] if isinstance(asked["questions"], list) else []
            if not questions:
                error = DataError(f"{QUESTIONS} has no questions about it", reason="question")
                lost.append(annotations.annotation_reject(self.name, item.key, mask_id, error))
            kept = []
            for number, question in enumerate(questions, start=1):
                try:
                    kept.append(_question(question))
                except DataError as error:
                    name = f"{mask_id} question {number}"
                    lost.append(annotations.annotation_reject(self.name, item.key, name, error))
            payload = {"questions": kept}
            if isinstance(asked["name"], str) and records.is_utf8(asked["name"]):
                payload["class_name"] = asked["name"]
            made.append(annotations.annotation(mask_id, "region_caption", [mask_id], payload=payload))
        return annotations.attach(self.row_of(item.key, record), made, lost)

    def _beside(self, name: str) -> str:
        return posixpath.join(posixpath.dirname(self.source), name)

    def _object(self, name: str) -> dict[str, Any]:
        uri = self._beside(name)
        found = records.parse_json(storage.read_bytes(uri), uri)
        if not isinstance(found, dict):
            raise DataError(
                f"{uri} holds a {type(found).__name__}, expected an object by the ids of annotations",
                reason="dlc_layout",
            )
        return found


def _question(value: Any) -> Record:
    """Returns a question with its choices; raises DataError ``question`` for anything else."""
    fields = value if isinstance(value, dict) else {}
    choices, subtype = fields.get("choices"), fields.get("subtype")
    if (
        not isinstance(choices, list)
        or not choices
        or not all(map(_is_choice, choices))
        or fields.get("type") not in _TYPES
        or not (subtype is None or (isinstance(subtype, str) and records.is_utf8(subtype)))
    ):
        raise DataError(
            f"it is {value!r:.200}, expected question, choices [text, score] and a type of {_TYPES}",
            reason="question",
        )
    text = annotations.text_of(fields.get("question"), "question")
    made = {"question": text, "choices": choices, "type": fields["type"]}
    return made | ({} if subtype is None else {"subtype": subtype})


def _is_choice(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and records.is_utf8(value[0])
        and records.is_coordinate(value[1])  # a finite number
    )
