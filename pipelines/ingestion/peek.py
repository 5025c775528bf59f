"""A bounded look at a corpus before anything runs: its first images, of which a few are opened."""

import contextlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TypeVar

from pipelines.ingestion import apart
from pipelines.ingestion.image_source import read_picture
from pipelines.ingestion.orientation import note
from pipelines.ingestion.reader import MAX_NAMES, Input, Reader, Reject, read_record
from samtok.errors import DataError
from samtok.masks import MAX_PIXELS

T = TypeVar("T")

MAX_ITEMS = 8
"""Images that are opened."""

_MISSING = {"image_missing", "missing_image"}


@dataclass(frozen=True)
class Peek:
    """What the beginning of a corpus has.

    Attributes:
        masks: Masks that the records of the counted images claim; None where only reading shows it.
        rejects: What listing could not use.
        more: The corpus may have more than was counted.
        faults: What could not be used of those that were opened: message -> how often.
    """

    images: int
    masks: int | None
    rejects: int
    more: bool
    read: int
    faults: dict[str, int]

    def __str__(self) -> str:
        least = "at least " if self.more else ""
        masks = f"{least}{self.masks} masks" if self.masks is not None else "masks known after reading"
        found = f"{least}{self.images} images, {masks}, {self.rejects} rejects when listing"
        faults = "".join(f"; {count} x {message}" for message, count in self.faults.items())
        return f"{found}; {self.read} read{faults}"


def peek(
    reader: Reader, limit: int = MAX_NAMES, *, careful: bool = False, max_pixels: int = MAX_PIXELS
) -> Peek:
    """Lists at most ``limit`` images and opens at most ``MAX_ITEMS`` of them; ``careful`` and
    ``max_pixels`` as in ``opened``.

    Raises:
        DataError: If the dataset as a whole has another layout than the reader expects, or as ``opened``.
        StorageError: If it cannot be listed or read.
    """
    head = reader.head(limit)
    inputs = [item for item in head.items if isinstance(item, Input)]
    claimed = [item.num_masks for item in inputs]
    masks = None if head.unlisted or None in claimed else sum(count or 0 for count in claimed)
    tried = some(inputs)
    faults = _faults_of(reader, tried, careful, max_pixels)
    return Peek(
        images=len(inputs) + head.unlisted,
        masks=masks,
        rejects=len(head.items) - len(inputs),
        more=head.more,
        read=len(tried),
        faults=dict(faults),
    )


def opened(
    reader: Reader,
    items: Iterable[Input | Reject],
    *,
    careful: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Input | Reject]:
    """Yields what a corpus lists once a few of its first images have been opened; the others as they come.
    With ``careful`` that is done in a process apart, which an image may kill; one of more than ``max_pixels``
    is not decoded.

    Raises:
        DataError: If none of these images is there, as where the folder of images is mistyped.
        StorageError: If the storage fails.
    """
    rest = iter(items)
    first = list(islice(rest, MAX_NAMES))
    _faults_of(reader, some([item for item in first if isinstance(item, Input)]), careful, max_pixels)
    yield from chain(first, rest)


def some(items: Sequence[T]) -> Sequence[T]:
    """Returns the first, the last, and others at random, always the same; ``MAX_ITEMS`` at most."""
    if len(items) <= MAX_ITEMS:
        return items
    inner = random.Random(0).sample(range(1, len(items) - 1), MAX_ITEMS - 2)
    return [items[index] for index in (0, *sorted(inner), -1)]


def require_some(name: str, found: Iterable[Sequence[tuple[str, str]]]) -> Counter[str]:
    """Returns the messages of what speaks against images that were tried.

    Args:
        name: Of what has these images.
        found: Reasons and messages against each of them.

    Raises:
        DataError: None of them is there.
    """
    faults, missing, tried = Counter[str](), 0, 0
    for one in found:
        faults.update(message for _, message in one)
        missing += bool(_MISSING & {reason.rpartition("/")[2] for reason, _ in one})
        tried += 1
    if tried and missing == tried:
        raise DataError(
            f"none of the {missing} images of {name} that were tried is there, such as: "
            f"{next(iter(faults)).rstrip('.')}. Is the folder of images right, and mounted?",
            reason="image_missing",
        )
    return faults


def _faults_of(reader: Reader, inputs: Sequence[Input], careful: bool, max_pixels: int) -> Counter[str]:
    """Opens images; returns what speaks against them. Raises as ``require_some``."""
    others = Counter[str]()
    with apart.in_own_process() if careful else contextlib.nullcontext():
        faults = require_some(reader.name, _tried(reader, inputs, others, max_pixels))
    return faults + others


def _tried(
    reader: Reader, inputs: Sequence[Input], others: Counter[str], max_pixels: int
) -> Iterator[list[tuple[str, str]]]:
    """Yields what speaks against each image that could be looked for; others get that of other records."""
    for item in inputs:
        result = read_record(reader, item)
        found = [(entry["reason"], entry["message"]) for entry in result.rejects]
        row = result.row
        if row is not None:
            try:
                size_hw = (row["height"], row["width"])
                picture = read_picture(row["image_uri"], expected_hw=size_hw, max_pixels=max_pixels)
            except DataError as error:
                found.append((error.reason, str(error)))
            else:
                found += [(entry["reason"], entry["message"]) for entry in note("decode", row, picture)]
        if row is not None or _MISSING & {reason.rpartition("/")[2] for reason, _ in found}:
            yield found
        else:
            others.update(message for _, message in found)
