"""A bounded look at a corpus, for dry runs: its first images, of which a few are read. Writes nothing."""

from collections import Counter
from dataclasses import dataclass

from pipelines import storage
from pipelines.ingestion.image_source import parse_image_uri
from pipelines.ingestion.reader import MAX_NAMES, Input, Reader

MAX_ITEMS = 8
"""Images that are read."""


@dataclass(frozen=True)
class Peek:
    """What the beginning of a corpus has.

    Attributes:
        masks: Masks that the records of the counted images claim; None where only reading shows it.
        rejects: What listing could not use.
        more: The corpus may have more than was counted.
        faults: What reading could not use, and images that are not there: message -> how often.
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


def peek(reader: Reader, limit: int = MAX_NAMES) -> Peek:
    """Lists at most ``limit`` images and reads at most ``MAX_ITEMS`` of them.

    Raises:
        DataError: If the dataset as a whole has another layout than the reader expects.
        StorageError: If it cannot be listed or read.
    """
    head = reader.head(limit)
    inputs = [item for item in head.items if isinstance(item, Input)]
    claimed = [item.num_masks for item in inputs]
    masks = None if head.unlisted or None in claimed else sum(count or 0 for count in claimed)
    faults = Counter[str]()
    for item in inputs[:MAX_ITEMS]:
        result = reader.read(item)
        faults.update(entry["message"] for entry in result.rejects)
        image = parse_image_uri(result.row["image_uri"]).uri if result.row else None
        if image is not None and not storage.exists(image):
            faults[f"{image} does not exist"] += 1
    return Peek(
        images=len(inputs) + head.unlisted,
        masks=masks,
        rejects=len(head.items) - len(inputs),
        more=head.more,
        read=len(inputs[:MAX_ITEMS]),
        faults=dict(faults),
    )
