"""What the readers of one annotation file have in common, whose images lie in a folder elsewhere."""

import hashlib
import io
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, ClassVar

from pipelines import schema, storage
from pipelines.ingestion import image_source, records
from pipelines.ingestion.orientation import Orientation
from pipelines.ingestion.reader import MAX_NAMES, STAGE, Head, Input, Reject
from samtok.errors import DataError

_COUNTED_BYTES = 4 * 2**20
_WITNESS_WINDOWS, _WITNESS_BYTES = 16, 2**16
_NAMES = tuple(
    name.encode()
    for name in (
        *("file_name", "coco_url", "image_id", "image", "img_id", "img_file_name"),
        *("image_path", "image_name"),
    )
)


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """Options of a reader that has none."""


@dataclass(frozen=True, kw_only=True)
class ImageFolders:
    """For datasets whose names of images may lack their folder."""

    image_folders: tuple[str, ...] = ()
    """coco, granf, panoptic, coconut_parquet: folders below the images to search for names that are not found
    as they are, as entity_01_11580 entity_02_11598 (EntitySeg), train2017 val2017 (OpenPSG-GCG) or train2017
    unlabeled2017 (COCONut-B). Without any, names are used as they are."""


@dataclass(frozen=True, kw_only=True)
class FileReader(ABC):
    """Base of readers of one annotation file.

    Attributes:
        options: Class of the options that only this reader has; their fields are fields of the reader.
        max_head_bytes: Largest file that ``head`` parses.
        source: URI of the annotation file.
        images: Folder or prefix that the names of images are relative to and may not leave.
        link_root: Folders besides it that links below it may lead into.
        orientation: Which way up images are read.
    """

    options: ClassVar[type] = NoOptions
    max_head_bytes: ClassVar[int] = 64 * 2**20

    name: str
    split: str
    source: str
    images: str
    link_root: tuple[str, ...] = ()
    orientation: Orientation = "stored"

    @abstractmethod
    def inputs(self) -> Iterator[Input | Reject]:
        """Yields images by ascending key, and what cannot be used."""

    def head(self, limit: int = MAX_NAMES) -> Head:
        """Lists the first images; of a large file counts those that its first megabytes name."""
        if size_bytes(self.source) > self.max_head_bytes:
            return Head([], more=True, unlisted=min(limit, _count_names(self.source)))
        return first_of(self.inputs(), limit)

    def witness(self, inputs: Sequence[Input] = ()) -> dict[str, str]:
        """Returns ``{file name: "size:sha256"}`` of the annotation file, as ``witness_of``."""
        return witness_of(self.source)

    def parts(self) -> tuple[str, ...]:
        """Returns the name of the one part."""
        return (PurePosixPath(self.source).name,)

    def inputs_of(self, part: str) -> Iterator[Input | Reject]:
        """Yields all; see ``inputs``."""
        assert part in self.parts()
        return self.inputs()

    def reject(
        self, row_id: str, reason: str, message: str, *, mask_id: str | None = None, num_masks: int = 0
    ) -> Reject:
        """Returns the reject of what cannot be used of this dataset."""
        lost = {"mask_id": mask_id, "num_masks": num_masks}
        return schema.reject(STAGE, self.name, row_id, reason, message, **lost)

    def image_uri(self, name: str, *others: str) -> str:
        """Returns where the image of that name is, or of another name that datasets have for it; raises as
        ``image_source.find_image``."""
        folders = self.image_folders if isinstance(self, ImageFolders) else ()
        if not folders and not others:
            return self.below(self.images, name)
        inside = [f"{folder}/{one}" for one in (name, *others) for folder in folders]
        return image_source.find_image(self.images, name, [*others, *inside], link_roots=self.link_root)

    def below(self, root: str, name: str) -> str:
        """Returns where a file below a folder of the dataset is; raises as ``image_source.below_root``."""
        return image_source.below_root(root, name, link_roots=self.link_root)

    def size_of(self, image_uri: str) -> tuple[int, int]:
        """Returns height and width of an image as it will be read, of which no record states them; raises as
        ``image_source.stored_frame``."""
        (height, width), exif = image_source.stored_frame(image_uri)
        return (width, height) if self.orientation == "upright" and exif >= 5 else (height, width)

    def size_stated(self, height: Any, width: Any, image_uri: str, where: str) -> tuple[int, int]:
        """Returns the height and width that a record states, of one that states none ``size_of``; raises as
        ``records.size_hw``."""
        if height is None and width is None:
            return self.size_of(image_uri)
        return records.size_hw({"height": height, "width": width}, where)


def first_of(items: Iterator[Input | Reject], limit: int) -> Head:
    """Takes the first ``limit`` inputs and what is rejected before the next one."""
    taken: list[Input | Reject] = []
    images = 0
    for item in items:
        if isinstance(item, Input):
            if images == limit:
                return Head(taken, more=True)
            images += 1
        taken.append(item)
    return Head(taken, more=False)


def limited_bytes(uri: str, name: str, most: int) -> bytes:
    """Returns the bytes of an annotation file; DataError ``sidecar_too_large`` beyond so many."""
    raw = storage.read_bytes(uri, size=most + 1)
    if len(raw) > most:
        fault = f"{name} has over {most} bytes, more than an annotation file can have"
        raise DataError(fault, reason="sidecar_too_large")
    return raw


def no_split(source: str, what: str, split: str, splits: Mapping[str, int]) -> str:
    """Returns the message that a file has nothing of a split, with the splits that there are."""
    there = ", ".join(f"{one} ({count})" for one, count in sorted(splits.items())) or "none at all"
    return f"{source} has no {what} of the split {split!r}; it has {there}."


def witness_of(uri: str) -> dict[str, str]:
    """Returns ``{file name: "size:sha256"}`` of a file, wherever it lies: the hash of all of it if it is
    small, or else of ``_WITNESS_WINDOWS`` places spread over it, the first and last bytes among them."""
    with storage.open_input(uri, buffer_bytes=_WITNESS_BYTES) as stream:
        size = stream.seek(0, io.SEEK_END)
        whole = size <= _WITNESS_WINDOWS * _WITNESS_BYTES
        step = _WITNESS_BYTES if whole else (size - _WITNESS_BYTES) / (_WITNESS_WINDOWS - 1)
        digest = hashlib.sha256()
        for window in range(_WITNESS_WINDOWS):
            stream.seek(round(window * step))
            digest.update(stream.read(_WITNESS_BYTES))
    return {PurePosixPath(uri).name: f"{size}:{digest.hexdigest()}"}


def size_bytes(uri: str) -> int:
    """Returns the size of a file; raises as ``storage.open_input``."""
    with storage.open_input(uri) as stream:
        return stream.seek(0, io.SEEK_END)


def _count_names(uri: str) -> int:
    """Counts the images that the beginning of a JSON file names, of the keys that may name them by the
    one with most values."""
    beginning = storage.read_bytes(uri, size=_COUNTED_BYTES)
    found = (re.findall(rb'"%s"\s*:\s*("[^"]*"|\d+)' % name, beginning) for name in _NAMES)
    return max(len(set(values)) for values in found)
