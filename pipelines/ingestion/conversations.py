"""Conversations of LLaVA's form whose texts name masks, as annotations: Osprey, GAR and SegLLM.

A conversation is ``[{"from": "human" | "gpt", "value": text}]``, questions and answers in turn. In an
annotation a mask is named by its index in ``mask_ids``, ``<mask 0>``, in the order in which masks are first
named.
"""

import re
from collections.abc import Callable
from typing import Any

from pipelines.ingestion import annotations
from pipelines.ingestion.annotations import Annotation
from samtok.errors import DataError

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_IMAGE_MARK = re.compile(r"<image>\s*")  # the image is a part of the dialogue, not a word of its text


def annotation(
    annotation_id: str, conversation: Any, mark: re.Pattern[str], mask_id_of: Callable[[str], str]
) -> Annotation:
    """Returns a conversation of one question as ``region_qa``, a longer one as ``dialogue``.

    Args:
        annotation_id: Of the annotation.
        conversation: As it is in the file.
        mark: How texts name masks; its first group goes to ``mask_id_of``.
        mask_id_of: Returns the id of the mask that is named, or raises DataError.

    Raises:
        DataError: ``dialogue`` for what is none or has ``<mask 0>`` already; ``annotation_text``.
    """
    used: list[str] = []

    def by_index(match: re.Match[str]) -> str:
        mask_id = mask_id_of(match[1])
        if mask_id not in used:
            used.append(mask_id)
        return f"<mask {used.index(mask_id)}>"

    made = []
    for place, turn in enumerate(turns_of(conversation)):
        role, text = said(turn, place)
        made.append({"role": role, "text": mark.sub(by_index, text)})
    if len(made) == 2:
        payload = {"question": made[0]["text"], "answer": made[1]["text"]}
        return annotations.annotation(annotation_id, "region_qa", used, payload=payload)
    return annotations.annotation(annotation_id, "dialogue", used, payload={"turns": made})


def turns_of(conversation: Any) -> list[Any]:
    """Returns the turns, an even number of them; raises DataError ``dialogue`` for anything else."""
    if not isinstance(conversation, list) or not conversation or len(conversation) % 2:
        got = f"{len(conversation)} turns" if isinstance(conversation, list) else f"{conversation!r:.80}"
        raise DataError(f"conversations are {got}, expected questions with an answer each", reason="dialogue")
    return conversation


def said(turn: Any, place: int) -> tuple[str, str]:
    """Returns who must speak at a place, ``user`` or ``assistant``, and the text without ``<image>``.

    Raises:
        DataError: ``dialogue`` if somebody else speaks or the text names masks as annotations do;
            ``annotation_text`` as ``annotations.text_of``.
    """
    fields = turn if isinstance(turn, dict) else {}
    speaker, role = fields.get("from"), ("user", "assistant")[place % 2]
    if not isinstance(speaker, str) or _ROLES.get(speaker) != role:
        raise DataError(f"turn {place} is of {speaker!r:.40}, expected the {role}", reason="dialogue")
    text = fields.get("value")
    text = annotations.text_of(_IMAGE_MARK.sub("", text) if isinstance(text, str) else text, f"turn {place}")
    return role, annotations.unmarked(text, f"turn {place}")
