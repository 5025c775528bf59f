"""What readers have in common that yield sentences about masks: typed annotations and what is lost of them.

An annotation is never dropped because one of its masks is: it keeps pointing at the mask, which then is among
the rejects of the image, so whoever composes dialogues can say why. What cannot be an annotation at all (no
text, no id) is a reject of no mask: ``num_masks`` is 0, and the annotation's name stands in ``mask_id``.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

from pipelines import schema
from pipelines.ingestion import records
from pipelines.ingestion.reader import STAGE, ReadResult, Reject
from samtok.errors import DataError

MAX_TEXT_CHARS = 100_000
"""Longest text of an annotation; the longest published captions have some thousand characters."""

Annotation = dict[str, Any]

_MARK = re.compile(r"<mask \d+>")


def annotation(
    annotation_id: str,
    task: str,
    mask_ids: Sequence[str],
    *,
    text: str | None = None,
    tags: Sequence[str] = (),
    payload: dict[str, Any] | None = None,
) -> Annotation:
    """Returns an annotation in the shape of ``pipelines.schema.IMAGE_ROW``; the payload becomes JSON."""
    assert task in schema.ANNOTATION_TASKS, task
    return {
        "annotation_id": annotation_id,
        "task": task,
        "mask_ids": list(mask_ids),
        "text": text,
        "tags": list(tags),
        "payload": None if payload is None else records.compact_json(payload),
    }


def annotation_reject(dataset: str, row_id: str, name: str, error: DataError) -> Reject:
    """Returns the reject of what cannot be an annotation; ``name`` says which, as ``ref 7``."""
    return schema.reject(STAGE, dataset, row_id, error.reason, str(error), mask_id=f"annotation {name}")


def attach(
    result: ReadResult, annotations: Iterable[Annotation], rejects: Iterable[Reject] = ()
) -> ReadResult:
    """Adds annotations to the row, in the order given, and a reject for each mask that is nowhere.

    Args:
        result: The row with its masks. Without a row its reject stands for the annotations as well.
        annotations: Of this image, with ids of their own.
        rejects: Further rejects of no masks.
    """
    if result.row is None:
        return result
    added = list(annotations)
    lost = [*result.rejects, *rejects]
    known = {mask["mask_id"] for mask in result.row["masks"]} | {entry["mask_id"] for entry in lost}
    for entry in added:
        for mask_id in entry["mask_ids"]:
            if mask_id not in known:
                known.add(mask_id)
                message = (
                    f"annotation {entry['annotation_id']} names mask {mask_id}, which no usable record of "
                )
                place = STAGE, result.row["dataset"], result.row["image_id"]
                message += "this image has"
                lost.append(schema.reject(*place, "unknown_mask", message, mask_id=mask_id))
    return dataclasses.replace(result, row={**result.row, "annotations": added}, rejects=lost)


def text_of(value: object, what: str) -> str:
    """Returns a text without white space around it.

    Raises:
        DataError: ``annotation_text`` if it is none, empty, not UTF-8 or longer than ``MAX_TEXT_CHARS``.
    """
    text = value.strip() if isinstance(value, str) else ""
    if not text or len(text) > MAX_TEXT_CHARS or not records.is_utf8(text):
        raise DataError(
            f"{what} is {value!r:.80}, expected a text of 1 to {MAX_TEXT_CHARS} characters in UTF-8",
            reason="annotation_text",
        )
    return text


def tags_of(value: object, what: str) -> list[str]:
    """Returns a list of tags; nothing gives none.

    Raises:
        DataError: ``annotation_tags`` for another type or a tag that is no text.
    """
    tags = [] if value is None else value
    if not isinstance(tags, list) or not all(isinstance(t, str) and t and records.is_utf8(t) for t in tags):
        raise DataError(f"{what} are {value!r:.80}, expected a list of texts", reason="annotation_tags")
    return tags


def unmarked(text: str, what: str) -> str:
    """Returns a text of a dialogue before masks are named in it; DataError ``dialogue`` if it has a mark of
    its own, as ``<mask 0>``, which would be taken for one."""
    if found := _MARK.search(text):
        raise DataError(f"{what} has {found[0]}, which would be a mask", reason="dialogue")
    return text
