"""One image of a corpus of words, as composers see it: masks by id, their order, and what can be asked."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from samtok import words
from samtok.errors import DataError

_NOWHERE = [float("inf"), float("inf")]


@dataclass(frozen=True)
class Item:
    """What one question is about: an annotation, a class of masks, or a relation."""

    item_id: str  # unique in the task and the image
    targets: tuple[str, ...] = ()  # masks that the answer names
    mentions: tuple[str, ...] = ()  # masks that the question or an earlier message names
    text: str | None = None  # expression, caption or class
    payload: Mapping[str, Any] = field(default_factory=dict)  # what only this task has
    tags: tuple[str, ...] = ()  # of the annotation
    annotation_id: str | None = None  # the annotation that it is made of, if any
    problem: DataError | None = None  # why it cannot be used, if that is known before it is composed

    @property
    def mask_ids(self) -> tuple[str, ...]:
        """All masks that it needs, each once."""
        return tuple(dict.fromkeys((*self.mentions, *self.targets)))


class Scene:
    """The masks of a row of ``pipelines.schema.CODE_ROW`` by id."""

    def __init__(self, row: Mapping[str, Any], *, num_codes: int, num_levels: int) -> None:
        self.row, self.num_codes, self.num_levels = row, num_codes, num_levels
        self.masks = {mask["mask_id"]: mask for mask in row["masks"]}

    def check(self, mask_ids: Iterable[str]) -> None:
        """Makes sure that masks are there and have words.

        Raises:
            DataError: ``missing_mask`` for one that the row does not have, ``no_words`` for one whose codes
                are none of the vocabulary, or are not those of its words.
        """
        for mask_id in mask_ids:
            if mask_id not in self.masks:
                raise DataError(
                    f"mask {mask_id!r} has no words in this corpus: it was rejected or filtered when masks "
                    "were tokenized, or the annotation names a mask that never was",
                    reason="missing_mask",
                )
            self._check_words(self.masks[mask_id])

    def _check_words(self, mask: Mapping[str, Any]) -> None:
        codes = list(mask["codes"])
        valid = len(codes) == self.num_levels and all(0 <= code < self.num_codes for code in codes)
        if not valid or words.format_words(codes, num_codes=self.num_codes) != mask["words"]:
            raise DataError(
                f"mask {mask['mask_id']!r} has the codes {codes} and the words {mask['words']!r}; expected "
                f"{self.num_levels} codes in [0, {self.num_codes}) and their words",
                reason="no_words",
            )

    def in_order(self, mask_ids: Iterable[str]) -> tuple[str, ...]:
        """Returns masks from left to right: by their box's left side, then its top, then as they came.

        An answer that names several masks has them in this order, so there is one right answer.
        """
        boxes = {mask_id: self.masks[mask_id]["box_xyxy"] for mask_id in mask_ids}
        return tuple(sorted(boxes, key=lambda mask_id: (boxes[mask_id] or _NOWHERE)[:2]))

    def label(self, mask_id: str) -> str | None:
        """Returns the name of a mask's class, if it has one."""
        return self.masks[mask_id]["label"]

    def labels(self) -> dict[str, tuple[str, ...]]:
        """Returns the masks of each class, classes by name."""
        found: dict[str, list[str]] = {}
        for mask in self.row["masks"]:
            if mask["label"]:
                found.setdefault(mask["label"], []).append(mask["mask_id"])
        return {label: tuple(found[label]) for label in sorted(found)}

    def annotations(self, task: str) -> list[dict[str, Any]]:
        """Returns the annotations of one task, as they are in the row."""
        return [annotation for annotation in self.row["annotations"] if annotation["task"] == task]

    def items(self, task: str, *, targets: bool = True) -> list[Item]:
        """Makes an item of each annotation; its masks are the answer's, else those of the question."""
        return [_item(annotation, targets) for annotation in self.annotations(task)]


def _item(annotation: Mapping[str, Any], targets: bool) -> Item:
    mask_ids = tuple(annotation["mask_ids"])
    payload, problem = {}, None
    try:
        payload = payload_of(annotation)
    except DataError as error:
        problem = error
    return Item(
        annotation["annotation_id"],
        mask_ids if targets else (),
        () if targets else mask_ids,
        annotation["text"],
        payload,
        tuple(annotation["tags"]),
        annotation["annotation_id"],
        problem,
    )


def payload_of(annotation: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the payload of an annotation; none is an empty one.

    Raises:
        DataError: ``payload`` if it is no JSON object.
    """
    if not annotation["payload"]:
        return {}
    try:
        body = json.loads(annotation["payload"])
    except ValueError as error:
        raise bad_payload(annotation["annotation_id"], f"is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise bad_payload(annotation["annotation_id"], f"must be an object, got {type(body).__name__}")
    return body


def bad_payload(annotation_id: str, message: str) -> DataError:
    """Returns the error of a payload that is not what its task needs."""
    return DataError(f"the payload of annotation {annotation_id!r} {message}", reason="payload")


def triplets_of(
    payload: Mapping[str, Any], mask_ids: Sequence[str], where: str
) -> list[tuple[str, str, str]]:
    """Reads the triplets of a scene graph: mask, predicate, mask; one that is repeated counts once.

    Raises:
        DataError: ``payload`` if one is no [index, text, index] into ``mask_ids``.
    """
    triplets = payload.get("triplets")
    if not isinstance(triplets, list):
        raise bad_payload(where, "needs a list of triplets")
    found: dict[tuple[str, str, str], None] = {}  # a set that keeps its order
    for triplet in triplets:
        if not isinstance(triplet, list) or len(triplet) != 3 or not isinstance(triplet[1], str):
            raise bad_payload(where, f"has the triplet {triplet!r}, expected [index, predicate, index]")
        subject, thing = (_mask_at(index, mask_ids, where) for index in (triplet[0], triplet[2]))
        found[subject, triplet[1], thing] = None
    return list(found)


def masks_at(indices: Any, mask_ids: Sequence[str], where: str) -> tuple[str, ...]:
    """Returns the masks that a payload names by a list of indices; raises DataError ``payload`` for anything
    else."""
    if not isinstance(indices, list):
        raise bad_payload(where, f"has {indices!r}, expected a list of indices of masks")
    return tuple(_mask_at(index, mask_ids, where) for index in indices)


def _mask_at(index: Any, mask_ids: Sequence[str], where: str) -> str:
    if type(index) is not int or not 0 <= index < len(mask_ids):
        raise bad_payload(where, f"names mask {index!r}, the annotation has {len(mask_ids)}")
    return mask_ids[index]
