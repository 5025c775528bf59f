"""What a dataset reader is, and what it hands over.

Listing and reading are apart: ``inputs`` is cheap, runs once and fixes the order of the corpus; ``read`` runs
in many workers and opens no images. What can be listed apart (``parts``) is listed by many workers too. Both
report what they could not use instead of dropping it:

- masks counted in = masks in rows + masks in rejects, for every ``ReadResult`` (``ReadResult`` refuses to be
  built otherwise) and for a whole corpus: an annotation that ``inputs`` cannot give to an image is a reject
  that counts one mask, and every other one is in exactly one ``Input``;
- records in = inputs + whole-row rejects of ``inputs``. A record that cannot be parsed (a broken side-car)
  loses an unknown number of masks, which counts as 0.

A reject without ``mask_id`` loses a whole row, a reject with one loses one mask of a row that goes on.
Readers never decide policy: crowds, boxes without masks and empty masks are flagged, the pipeline filters.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

from pipelines import schema, storage
from pipelines.ingestion import apart
from pipelines.ingestion.external_sort import ExternalSort
from pipelines.ingestion.orientation import Orientation
from samtok.errors import DataError

STAGE = "read"
"""Stage of all rejects that a reader makes."""

MAX_NAMES = 1000
"""Names of images that a dry run lists."""

PROMPTS = ("box_only", "point_only")
"""Flags of entries that SAM2 can make masks of."""

WITHOUT_PIXELS = ("empty", *PROMPTS)
"""Flags of entries that no network can read as masks."""

Reject = dict[str, Any]
"""An entry of the reject table, made by ``pipelines.schema.reject``."""


class Input(NamedTuple):
    """One image to read."""

    key: str
    """Unique and stable in the dataset: the image id. Sorts the corpus, as text."""
    payload: str
    """JSON with all that ``read`` needs besides the reader; names no folder outside the dataset."""
    num_masks: int | None
    """Masks that the record claims; None where only reading can tell."""
    place: str = ""
    """Where in the dataset the record is, if a key can come more than once; of those the first place
    counts."""


@dataclass(frozen=True)
class ReadResult:
    """What became of one input: a row, or one reject of the whole row; and one reject per unusable mask."""

    row: dict[str, Any] | None
    """In the shape of ``pipelines.schema.IMAGE_ROW``; None if the record cannot be used."""
    rejects: list[Reject]
    num_masks_in: int
    """Masks that the record claims, so masks in the row plus ``num_masks`` of the rejects."""

    def __post_init__(self) -> None:
        kept = len(self.row["masks"]) if self.row is not None else 0
        lost = sum(entry["num_masks"] for entry in self.rejects)
        assert kept + lost == self.num_masks_in, f"{kept} masks kept + {lost} lost != {self.num_masks_in} in"

    @classmethod
    def refused(cls, dataset: str, row_id: str, error: DataError, *, num_masks: int = 0) -> "ReadResult":
        """Returns the result of a record that gives no row, with all of its masks lost."""
        entry = schema.reject(STAGE, dataset, row_id, error.reason, str(error), num_masks=num_masks)
        return cls(row=None, rejects=[entry], num_masks_in=num_masks)


class Head(NamedTuple):
    """The beginning of a corpus."""

    items: list[Input | Reject]
    """The first inputs, and what listing them could not use."""
    more: bool
    """There may be more images."""
    unlisted: int = 0
    """Images counted besides, in a file that is too large to be parsed."""


class Reader(Protocol):
    """A dataset, or one split of it. Readers are small and picklable; what they list is not kept in them."""

    @property
    def name(self) -> str:
        """Name of the dataset, as in the column ``dataset``."""
        ...

    @property
    def split(self) -> str:
        """Name of the split, as in the column ``split``."""
        ...

    @property
    def orientation(self) -> Orientation:
        """Which way up images are read."""
        ...

    def witness(self, inputs: Sequence[Input] = ()) -> dict[str, str]:
        """Returns what tells cheaply whether the dataset is still the same: a name of what was looked at ->
        size and SHA-256. Of large files and listings only samples are looked at, of a listing the files of
        these ``inputs`` of it.

        Neither absolute paths nor times of change are in it, so a copy elsewhere gives the same.
        """
        ...

    def parts(self) -> Sequence[str]:
        """Returns the names of what is listed apart: archives, sub-folders; one for a single file."""
        ...

    def inputs_of(self, part: str) -> Iterator[Input | Reject]:
        """Yields the images of a part by ascending key and place, and what cannot be used; raises as
        ``inputs``."""
        ...

    def inputs(self) -> Iterator[Input | Reject]:
        """Yields images by ascending key, and in any place what cannot be used; the same at each call.

        Raises:
            DataError: If the dataset as a whole has another layout than the reader expects.
            StorageError: If it cannot be listed or read.
        """
        ...

    def head(self, limit: int = MAX_NAMES) -> Head:
        """Lists the first images, ``limit`` at most, without going through all of a large corpus."""
        ...

    def read(self, item: Input) -> ReadResult:
        """Reads one image's record. Bad records and masks become rejects; only ``StorageError`` is raised."""
        ...


def in_order(dataset: str, items: Iterable[Input | Reject]) -> Iterator[Input | Reject]:
    """Yields the rejects among items of any order, then the inputs as ``unique``; sorted on the local disk if
    they do not fit into memory."""
    with ExternalSort[tuple[Any, ...]]() as found:
        for number, item in enumerate(items):
            if isinstance(item, Input):
                found.add((item.key, item.place, number, item), len(item.payload))
            else:
                yield item
        yield from unique(dataset, (item for *_, item in found))


def unique(dataset: str, items: Iterable[Input | Reject]) -> Iterator[Input | Reject]:
    """Yields inputs that ascend by key and place, and the rejects among them; of inputs with the same key
    only the first, and a reject for each other one."""
    previous = None
    for item in items:
        if isinstance(item, Input):
            if item.key == previous:
                message = f"{item.place} is a further image named {item.key}"
                lost = item.num_masks or 0
                yield schema.reject(STAGE, dataset, item.key, "duplicate_image_id", message, num_masks=lost)
                continue
            previous = item.key
        yield item


def read_record(reader: Reader, item: Input) -> ReadResult:
    """Reads one image's record as ``Reader.read``; one that cannot be read at all is a reject too.

    That is a file of it that ``storage.faults`` lists, such as a side-car without permission, and whatever
    ``apart.isolated`` finds. Raises StorageError if the storage fails.
    """
    try:
        return apart.isolated(partial(reader.read, item), f"record {item.key} of {reader.name}")
    except storage.ObjectError as error:
        fault = DataError(str(error), reason=f"record_{error.reason}")
    except DataError as error:
        fault = error
    return ReadResult.refused(reader.name, item.key, fault, num_masks=item.num_masks or 0)
