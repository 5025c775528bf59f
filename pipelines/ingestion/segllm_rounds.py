"""SegLLM's conversations, whose texts name masks in brackets (berkeley-hipie/segllm, llava/train/train.py).

- The user's text has ``[IMAGE256:PATH]``, and ``[MASK-ENCODE:PATH|DATASET|ID]`` or ``[BOX-ENCODE:...]`` for a
  mask that it refers to, mostly one that was answered before;
- an answer has ``[MASK-DECODE:PATH|DATASET|ID]``, or ``[MASK-DECODE:TASK:REFERENCE:ID:PATH:DATASET]`` with
  one reference or two. An id that is empty, ``'`` or ``none`` is no mask;
- ``reason_seg`` has one mask for each image, which is meant by any id, and by none, but where a mask is
  referred to between colons.

The published files were never parsed by us, so anything else in brackets of this kind is refused.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipelines.ingestion import conversations
from pipelines.ingestion.records import Record
from samtok.errors import DataError

NO_TARGET = "There is no such object here."
"""Text of an answer that is a bracket without a mask, and nothing else."""

_BRACKET = re.compile(r"\[(IMAGE256|MASK-ENCODE|BOX-ENCODE|MASK-DECODE):([^\[\]]*)\]")
_LIKE = re.compile(r"\[[A-Z][A-Z0-9]*(?:-[A-Z0-9]+)*:")
_TWICE = re.compile(r"(<mask \d+>)(?:\s*\1)+")
_SPACES = re.compile(r"[ \t]{2,}")
_NO_IDS = ("", "'", "none")
_OF_IMAGE = {"reason_seg": "target"}
"""Datasets with one mask for each image, whatever id is given, and the id that it gets."""
_FORMS = {"MASK-ENCODE": "mask", "BOX-ENCODE": "box"}


class MaskKey(NamedTuple):
    """A mask of another dataset's file."""

    dataset: str
    mask_id: str

    @property
    def text(self) -> str:
        """Its id in rows: ids of different files may be the same number."""
        return f"{self.dataset}:{self.mask_id}"


@dataclass
class Rounds:
    """A conversation about one image.

    Attributes:
        image: Path of the image, as the brackets have it.
        masks: Masks in the order in which they are first named; texts name them by index, ``<mask 0>``.
        turns: ``{"role", "text"}`` of questions and answers in turn.
        rounds: Of each question and its answer ``targets``, indices of the masks that are answered, and
            ``references``: of each mask that is referred to its index as ``mask``, ``round`` in which it was
            answered last before, or None, and ``form``: as ``mask`` or ``box`` in the question, or by the
            ``answer``; with a ``task`` where the answer states one. Rounds are counted from 0.
    """

    image: str = ""
    masks: list[MaskKey] = field(default_factory=list)
    turns: list[Record] = field(default_factory=list)
    rounds: list[Record] = field(default_factory=list)
    _answered: dict[int, int] = field(default_factory=dict)

    def index(self, key: MaskKey) -> int:
        """Returns the index of a mask, which is added if it is new."""
        if key not in self.masks:
            self.masks.append(key)
        return self.masks.index(key)

    def see(self, image: str) -> None:
        """Takes note of an image; raises DataError ``several_images`` for a further one."""
        if self.image and self.image != image:
            raise DataError(
                f"it is about {self.image!r:.80} and {image!r:.80}, expected one image",
                reason="several_images",
            )
        self.image = image

    def refer(self, key: MaskKey, form: str) -> int:
        """Notes that the current round refers to a mask; returns its index."""
        mask = self.index(key)
        link = {"mask": mask, "round": self._answered.get(mask), "form": form}
        if link not in self.rounds[-1]["references"]:
            self.rounds[-1]["references"].append(link)
        return mask

    def answer(self, key: MaskKey) -> int:
        """Notes that the current round answers with a mask; returns its index."""
        mask = self.index(key)
        if mask not in self.rounds[-1]["targets"]:
            self.rounds[-1]["targets"].append(mask)
        return mask

    def end(self) -> None:
        """Ends a round, so that later ones can refer to its masks."""
        self._answered |= dict.fromkeys(self.rounds[-1]["targets"], len(self.rounds) - 1)


def rounds_of(entry: Any) -> Rounds:
    """Returns the conversation of an entry of a file.

    Raises:
        DataError: ``bracket`` for one that is none of the forms above or not where it may be, ``mask_id``,
            ``several_images``, ``no_image``, or as ``conversations.said``.
    """
    found = Rounds()
    conversation = entry.get("conversations") if isinstance(entry, dict) else None
    for place, turn in enumerate(conversations.turns_of(conversation)):
        role, text = conversations.said(turn, place)
        if role == "user":
            found.rounds.append({"targets": [], "references": []})
        read = _question_part if role == "user" else _answer_part
        text = _BRACKET.sub(_reading(read, found), text)
        if rest := _LIKE.search(text):
            raise _fault(text[rest.start() : rest.start() + 80], "is not known")
        text = _SPACES.sub(" ", _TWICE.sub(r"\1", text)).strip()
        if role == "assistant":
            text = text if text.strip(" .") or found.rounds[-1]["targets"] else NO_TARGET
            found.end()
        if not text:
            raise DataError(f"turn {place} has brackets only, expected a question", reason="annotation_text")
        found.turns.append({"role": role, "text": text})
    if not found.image:
        raise DataError("no bracket names its image", reason="no_image")
    return found


def _reading(read: Callable[[Rounds, str, str], str], found: Rounds) -> Callable[[re.Match[str]], str]:
    return lambda match: read(found, match[1], match[2])


def _question_part(found: Rounds, kind: str, body: str) -> str:
    """Returns what stands in a question for a bracket."""
    if kind == "IMAGE256":
        if not body.strip():
            raise _fault(f"[{kind}:{body}]", "names no image")
        found.see(body.strip())
        return ""
    if kind not in _FORMS:
        raise _fault(f"[{kind}:{body}]", "is in a question")
    key = _key(found, body.split("|"), body)
    if key is None:
        raise _fault(f"[{kind}:{body}]", "refers to no mask")
    return f"<mask {found.refer(key, _FORMS[kind])}>"


def _answer_part(found: Rounds, kind: str, body: str) -> str:
    """Returns what stands in an answer for a bracket."""
    if kind != "MASK-DECODE":
        raise _fault(f"[{kind}:{body}]", "is in an answer")
    if "|" in body:
        key = _key(found, body.split("|"), body)
        return "" if key is None else f"<mask {found.answer(key)}>"
    parts = body.split(":")
    if len(parts) not in (5, 6):
        raise _fault(f"[{kind}:{body}]", "has neither | nor five or six parts between colons")
    task, *references, mask_id, image, dataset = parts
    key = _key(found, [image, dataset, mask_id], body)
    for reference in references:
        is_none = reference.strip() in _NO_IDS
        if not is_none and (referred := _key(found, [image, dataset, reference], body)) is not None:
            found.refer(referred, "answer")
    found.rounds[-1]["task"] = task
    return "" if key is None else f"<mask {found.answer(key)}>"


def _key(found: Rounds, parts: list[str], body: str) -> MaskKey | None:
    """Returns the mask of path, dataset and id; None for the id of no mask, where the dataset has several.

    Raises:
        DataError: ``bracket`` for another number of parts or an empty one, ``mask_id`` for an id that is
            neither a number nor has a dash or underscore.
    """
    if len(parts) != 3 or not parts[0] or not parts[1]:
        raise _fault(f"[...:{body}]", "has other parts than path, dataset and id")
    image, dataset, mask_id = (part.strip() for part in parts)
    found.see(image)
    if dataset in _OF_IMAGE:
        return MaskKey(dataset, _OF_IMAGE[dataset])
    if mask_id in _NO_IDS:
        return None
    if "_" in mask_id or "-" in mask_id:
        return MaskKey(dataset, mask_id)
    if not mask_id.isascii() or not mask_id.isdigit() or len(mask_id) > 18:
        raise DataError(
            f"the id of a mask is {mask_id!r:.40}, expected a number, a text with _ or -, or none",
            reason="mask_id",
        )
    return MaskKey(dataset, str(int(mask_id)))


def _fault(bracket: str, problem: str) -> DataError:
    return DataError(
        f"the bracket {bracket!r:.120} {problem}; known are IMAGE256, MASK-ENCODE and BOX-ENCODE of "
        "questions and MASK-DECODE of answers",
        reason="bracket",
    )
