"""What the readers of a folder of annotation files have in common, whose images lie in a folder too.

Files belong to images by their stem: the path below the folder without its suffix, so ``train/a.png`` to
``train/a.jpg``. The stem is the image id of a row. Both folders are listed once, by one process, and joined
by sorting, so memory does not grow with them (``external_sort``). Names come from whoever filled the folders:
those that leave a folder are rejected, and so are links that do, but where ``link_root`` allows it.
"""

import hashlib
import json
import posixpath
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, ClassVar, NamedTuple

from pipelines import storage
from pipelines.ingestion import legends, records
from pipelines.ingestion.archives import name_fault
from pipelines.ingestion.external_sort import ExternalSort
from pipelines.ingestion.file_reader import FileReader, first_of, limited_bytes, size_bytes, witness_of
from pipelines.ingestion.reader import MAX_NAMES, Head, Input, Reject, in_order
from pipelines.storage.threads import map_ahead
from samtok.errors import DataError

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Suffixes of images, in whatever case."""

_HEAD_FILES = 16  # annotation files that a head lists for each image

ParseNames = Callable[[bytes, str], dict[int, str]]
"""Reads names of classes by their number from the bytes of a file, whose place is for errors."""

Belongs = Callable[[str, str], bool]
"""Tells whether a file belongs to an image whose stem is the beginning of its own; gets both stems."""


class Group(NamedTuple):
    """The images of one stem, and their annotation files; without an image one file that belongs to none."""

    stem: str
    images: list[str]
    files: list[str]


def same_stem(image: str, file: str) -> bool:
    """The rule of one annotation file per image."""
    return image == file


@dataclass(frozen=True, kw_only=True)
class FolderReader(FileReader):
    """Base of readers of a folder of annotation files.

    Attributes:
        suffix: Of annotation files, in lower case; any case counts.
        files_are: How annotation files are named, if the suffix does not say it all; for errors.
        lists_images: Images are found by stem; otherwise annotation files say where they are.
        parse_names: Reads the names of classes, where there can be any.
        source: Folder or prefix of the annotation files.
    """

    suffix: ClassVar[str]
    files_are: ClassVar[str] = ""
    lists_images: ClassVar[bool] = True
    parse_names: ClassVar[ParseNames]

    @abstractmethod
    def item_of(self, group: Group, names: dict[str, str]) -> Input | Reject:
        """Returns what becomes of one image and its files, which may be none; ``names`` is for the payload:
        the digest of the names of classes, if there are any."""

    @abstractmethod
    def alone(self, stem: str, name: str) -> Input | Reject:
        """Returns what becomes of a file that belongs to no image."""

    def resolved(self) -> "FolderReader":
        """Returns the reader with what only the names in its folders tell; raises as ``inputs``."""
        return self

    def belongs(self) -> Belongs:
        """Returns which files belong to an image."""
        return same_stem

    def masks_of(self, files: Sequence[str]) -> int | None:
        """Returns how many masks these files are, if that is known without reading them."""
        return None if files else 0

    def names_uri(self) -> str | None:
        """Returns where names of classes are; None if there are none."""
        return None

    def inputs(self) -> Iterator[Input | Reject]:
        """Yields one input per image by ascending stem, and what cannot be used.

        Raises:
            DataError: ``folder_layout`` if there are no annotation files or no images, or their layout is
                another one.
            StorageError: If a folder cannot be listed.
        """
        pictures = self._some(self.pictures(), self.images) if self.lists_images else ()
        yield from self.resolved()._items(pictures, self._some(self.files(), self.source))

    def head(self, limit: int = MAX_NAMES) -> Head:
        """Lists the first images; of folders with more names only those that have annotation files."""
        pictures, more = self.first_pictures(limit) if self.lists_images else ([], False)
        files, cut = self.first_files(_HEAD_FILES * limit)
        if not more and not cut:
            return first_of(self.inputs(), limit)
        listed = self.resolved()._items(pictures, files)
        found = [one for one in listed if isinstance(one, Input) and json.loads(one.payload)["files"]]
        found = found[:-1] if cut else found  # the last may lack files
        if not found:  # the folders begin with other names
            return first_of(self.inputs(), limit)
        return Head([*found[:limit]], more=more or cut or len(found) > limit)

    def witness(self, inputs: Sequence[Input] = ()) -> dict[str, str]:
        """Returns ``{name: size}`` of the files of these images, ``missing`` for those that are not there;
        without images number, total size and hash of the first files of both folders. Names of classes are
        witnessed as ``witness_of``."""
        uri = self.names_uri()
        found = {} if uri is None else witness_of(uri)
        if not inputs:
            folders = {"annotations": self.source} | ({"images": self.images} if self.lists_images else {})
            return found | {f"first {kind}": _digest(root) for kind, root in folders.items()}
        places = [json.loads(item.payload) for item in inputs]
        files = sorted({name for place in places for name in place["files"]})
        images = sorted({place["image"] for place in places if place["image"] is not None})
        asked = [(self.source, name) for name in files] + [(self.images, name) for name in images]
        labels = [*files, *(f"images: {name}" for name in images)]
        return found | dict(zip(labels, map_ahead(self._size_now, asked), strict=True))

    def _size_now(self, place: tuple[str, str]) -> str:
        try:
            return str(size_bytes(self.below(*place)))
        except (storage.ObjectError, DataError):
            return "missing"

    def pictures(self) -> Iterator[str]:
        """Yields the names of all images below their folder as they come."""
        return self._kept(storage.iter_files(self.images), self.images, PICTURES)

    def is_annotation(self, name: str) -> bool:
        """Returns whether a file of the suffix is an annotation file."""
        return True

    def files(self) -> Iterator[str]:
        """Yields the names of all annotation files below their folder as they come."""
        found = self._kept(storage.iter_files(self.source), self.source, (self.suffix,))
        return filter(self.is_annotation, found)

    def first_pictures(self, limit: int) -> tuple[list[str], bool]:
        """Returns the images among the first so many files, and whether there are more files."""
        return self._beginning(self.images, PICTURES, limit)

    def first_files(self, limit: int) -> tuple[list[str], bool]:
        """Returns the annotation files among the first so many files, and whether there are more files."""
        names, more = self._beginning(self.source, (self.suffix,), limit)
        return list(filter(self.is_annotation, names)), more

    def _beginning(self, root: str, suffixes: tuple[str, ...], limit: int) -> tuple[list[str], bool]:
        listed = list(islice(storage.iter_files(root, limit=limit + 1), limit + 1))
        return list(self._kept(listed[:limit], root, suffixes)), len(listed) > limit

    def _kept(self, files: Iterable[storage.FileInfo], root: str, suffixes: tuple[str, ...]) -> Iterator[str]:
        """Yields names of these suffixes. Where annotation files are images themselves, what lies in the
        other folder, if that is in this one, is left out."""
        start = root.rstrip("/") + "/"
        others = [one.rstrip("/") + "/" for one in (self.source, self.images) if self.suffix in PICTURES]
        inner = tuple(one for one in others if one != start and one.startswith(start))
        for found in files:
            if posixpath.splitext(found.uri)[1].lower() in suffixes and not found.uri.startswith(inner):
                yield found.uri[len(start) :]

    def _some(self, names: Iterable[str], root: str) -> Iterator[str]:
        """Raises DataError if there are no names."""
        empty = True
        for name in names:
            empty = False
            yield name
        if empty:
            kinds = f"a {self.files_are or self.suffix} file" if root == self.source else "an image"
            raise DataError(
                f"there is not {kinds} below {root}; --corpus.source is the folder of the annotation files "
                f"({self.files_are or self.suffix}), --corpus.images that of the images",
                reason="folder_layout",
            )

    def _items(self, pictures: Iterable[str], files: Iterable[str]) -> Iterator[Input | Reject]:
        names = self._names()
        groups = self.groups(pictures, files, self.belongs())
        made = (one if isinstance(one, dict) else self._made(one, names) for one in groups)
        yield from in_order(self.name, made)

    def _names(self) -> dict[str, str]:
        """Returns the digest of the names, having read them; raises as ``names_of``."""
        uri = self.names_uri()
        if uri is None:
            return {}
        digest = hashlib.sha256(legends.file_bytes(uri)).hexdigest()[:16]
        names_of(uri, digest, self.parse_names)
        return {"names": digest}

    def _made(self, group: Group, names: dict[str, str]) -> Input | Reject:
        if not group.images:
            return self.alone(group.stem, group.files[0])
        if len(group.images) == 1:
            return self.item_of(group, names)
        message = f"there are {len(group.images)} images {group.stem}: {', '.join(sorted(group.images))}"
        message += ", and which of them the annotations are of cannot be told"
        return self.reject(group.stem, "ambiguous_image", message, num_masks=self.masks_of(group.files) or 0)

    def missing_image(self, stem: str, name: str, **lost: Any) -> Reject:
        """Returns the reject of a file that belongs to no image."""
        message = f"{name} in {self.source} belongs to no image of that name in {self.images}"
        return self.reject(stem, "missing_image", message, **lost)

    def missing_annotation(self, stem: str, name: str) -> Reject:
        """Returns the reject of an image without files."""
        message = f"image {name} has no {self.suffix} file of its name in {self.source}"
        return self.reject(stem, "missing_annotation", message)

    def groups(
        self, pictures: Iterable[str], files: Iterable[str], belongs: Belongs
    ) -> Iterator[Group | Reject]:
        """Yields images with their files, files without an image, and rejects of names that leave a folder.

        An image comes before the files whose stems begin with its own, and these come one after the other; so
        the images that may still get files are those whose stems are the beginning of the current one, and of
        several the longest counts.
        """
        with ExternalSort[tuple[str, int, str]]() as rows:
            for is_file, names in enumerate((pictures, files)):
                for name in names:
                    if fault := name_fault(name):
                        yield self._unsafe(name, fault)
                        continue
                    rows.add((posixpath.splitext(name)[0], is_file, name), 2 * len(name))
            waiting: list[Group] = []
            for stem, is_file, name in rows:
                while waiting and not stem.startswith(waiting[-1].stem):
                    yield waiting.pop()
                if is_file:
                    owner = next((one for one in reversed(waiting) if belongs(one.stem, stem)), None)
                    if owner is None:
                        yield Group(stem, [], [name])
                    else:
                        owner.files.append(name)
                elif waiting and waiting[-1].stem == stem:
                    waiting[-1].images.append(name)
                else:
                    waiting.append(Group(stem, [name], []))
            yield from reversed(waiting)

    def _unsafe(self, name: str, fault: str) -> Reject:
        shown = name.encode(errors="backslashreplace").decode()
        return self.reject(shown, "unsafe_path", f"{shown!r} {fault} ({self.source})")

    def ambiguous_annotation(self, group: Group) -> Reject:
        """Returns the reject of an image with several files where one belongs."""
        message = f"{' and '.join(sorted(group.files))} are annotations of one image"
        return self.reject(group.stem, "ambiguous_annotation", message)

    def input_of(self, group: Group, **more: Any) -> Input:
        """Returns the input of an image with its files."""
        image, files = (group.images or [None])[0], sorted(group.files)
        payload = records.compact_json({"image": image, "files": files, **more})
        return Input(group.stem, payload, self.masks_of(files), image or files[0])

    def content(self, name: str, most: int) -> bytes:
        """Returns the bytes of an annotation file; DataError ``sidecar_too_large`` beyond so many."""
        return limited_bytes(self.below(self.source, name), name, most)

    def json_record(self, name: str, kind: str, most: int, *lists: str) -> dict[str, Any]:
        """Returns the object of a JSON file of at most so many bytes below the source; raises as ``content``
        and ``records.parse_object``."""
        return records.parse_object(self.content(name, most), name, kind, *lists)


def _digest(root: str) -> str:
    start = len(root.rstrip("/")) + 1
    listed = [(found.uri[start:], found.size) for found in storage.list_files(root, limit=MAX_NAMES)]
    digest = hashlib.sha256(records.compact_json(listed).encode()).hexdigest()
    return f"{len(listed)}:{sum(size for _, size in listed)}:{digest}"


# ---------------------------------------------------------------- names of classes


@lru_cache(maxsize=8)
def names_of(uri: str, digest: str, parse: ParseNames) -> dict[int, str]:
    """Returns the names of classes by their number, as ``parse`` reads a file that has the digest.

    Raises:
        DataError: ``names_changed`` for another digest than when the corpus was listed, and what ``parse``
            raises.
    """
    raw = legends.file_bytes(uri)
    if hashlib.sha256(raw).hexdigest()[:16] != digest:
        raise DataError(f"{uri} has changed since the corpus was listed", reason="names_changed")
    return parse(raw, uri)
