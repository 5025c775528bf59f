"""SA-1B: an image and beside it a JSON file with its masks (family F2), and the base of readers of pairs.

Source: facebookresearch/segment-anything, README. The dataset is a folder, flat or with sub-folders, of
``sa_<id>.jpg`` and ``sa_<id>.json``, or the uncompressed ``.tar`` archives as published, which are read in
place. The image id of a row is the stem (``sa_223750``), unique in SA-1B, so rows of all three are equal but
for ``image_uri``.

Listing takes names only: a JSON without image, an image without JSON and a stem that was there before are
rejects of a row each, with no masks counted, since none was read. Each archive is a part of the listing; of
loose files, those whose names begin alike (``storage.beginnings``).
"""

import hashlib
import json
import logging
import posixpath
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice
from typing import Any, ClassVar, NamedTuple, NoReturn

from pipelines import schema, storage
from pipelines.ingestion import records
from pipelines.ingestion.archives import Member, check_uncompressed, list_members, name_fault
from pipelines.ingestion.external_sort import ExternalSort
from pipelines.ingestion.file_reader import NoOptions, size_bytes
from pipelines.ingestion.image_source import member_uri
from pipelines.ingestion.orientation import Orientation
from pipelines.ingestion.reader import MAX_NAMES, STAGE, Head, Input, ReadResult, Reject, in_order
from pipelines.storage.threads import map_ahead
from samtok.errors import DataError
from samtok.images import safe_join

log = logging.getLogger(__name__)

MAX_SIDECAR_BYTES = 256 * 2**20
"""Largest side-car that is parsed. SA-1B's have under 1 MB; an upper bound against giant files."""

_ANNOTATION, _IMAGE = ".json", ".jpg"
_IMAGES = (".jpg", ".jpeg")
"""Suffixes of images, in whatever case."""
_INCOMPLETE = ("missing_image", "missing_annotation")
_HEAD_MEMBERS = 64  # names of a head: each costs an object store a request
_PARTS = 64  # of a large listing, at least
_TAR = ".tar"


class _File(NamedTuple):
    name: str  # relative to the source, or in its archive
    size_bytes: int
    offset: int = 0
    archive: str | None = None  # relative to the source; None for a file of its own


@dataclass(frozen=True, kw_only=True)
class PairsReader(ABC):
    """Base of readers of pairs of an image and a file of annotations, loose or in archives.

    Attributes:
        annotation: Suffix of files of annotations.
        layout: Reason of the error for a source that has another layout.
        split: Of the rows; SA-1B itself has none.
        source: A folder or prefix with side-cars, a folder or prefix with ``.tar`` archives, or one archive.
        link_root: Folders besides the source that links below it may lead into.
        orientation: Which way up images are read.
        max_sidecar_bytes: Largest side-car that is parsed.
    """

    options: ClassVar[type] = NoOptions
    annotation: ClassVar[str] = _ANNOTATION
    layout: ClassVar[str] = "sa1b_layout"

    name: str
    split: str
    source: str
    link_root: tuple[str, ...] = ()
    orientation: Orientation = "stored"
    max_sidecar_bytes: int = MAX_SIDECAR_BYTES

    def witness(self, inputs: Sequence[Input] = ()) -> dict[str, str]:
        """Returns ``{name: size}`` of the files or archives that these images are in, ``missing`` for those
        that are not there; without images ``{kind: "count:total size:sha256"}``, with the hash of the names
        and sizes of all archives or of the first loose files."""
        if inputs:
            located = [_File(*values) for item in inputs for values in json.loads(item.payload).values()]
            names = sorted({file.archive or file.name for file in located})
            sizes = map_ahead(self._size_now, names)
            return {
                name: "missing" if size is None else str(size)
                for name, size in zip(names, sizes, strict=True)
            }
        listed = [(file.name, file.size_bytes) for file in self._beginning()]
        kind = "archives" if listed[0][0].endswith(_TAR) else "first side-cars and images"
        digest = hashlib.sha256(records.compact_json(listed).encode()).hexdigest()
        return {kind: f"{len(listed)}:{sum(size for _, size in listed)}:{digest}"}

    def _size_now(self, name: str) -> int | None:
        try:
            return size_bytes(self._archive_uri(name) if name.endswith(_TAR) else self._below(name))
        except (storage.ObjectError, DataError):
            return None

    def parts(self) -> list[str]:
        """Returns the names of the archives, or beginnings of the names of loose files.

        Raises:
            DataError: If there are neither side-cars nor archives, or both, or an archive is compressed.
            StorageError: If the source cannot be listed.
        """
        first = self._beginning()
        if first[0].name.endswith(_TAR):
            return [file.name for file in first]
        return storage.beginnings(self.source, _PARTS)

    def inputs_of(self, part: str) -> Iterator[Input | Reject]:
        """Yields images and rejects of a part, sorted by stem. An archive that is one of several and cannot
        be read is a reject; raises as ``inputs``."""
        if not part.endswith(_TAR):
            yield from self._paired(map(self._loose, self._listed(part)))
            return
        try:
            members = list(self._members(part))
        except DataError as error:
            if self._is_archive:
                raise
            yield self._row_reject(part, error.reason, str(error))
            return
        yield from self._paired(self._in_archive(part, members))

    def inputs(self) -> Iterator[Input | Reject]:
        """Yields rejects, then images by ascending stem. Holds the whole listing meanwhile.

        Raises:
            DataError: As ``parts``, or if all archives are cut off; of some, those are rejected.
            StorageError: If the source cannot be listed.
        """
        parts = self.parts()
        items = list(chain.from_iterable(map(self.inputs_of, parts)))
        self._check_archives(parts, items)
        yield from in_order(self.name, items)

    def head(self, limit: int = MAX_NAMES) -> Head:
        """Lists the first images among ``limit`` names; of archives, the first members of the first one."""
        first = self._beginning(limit + 1)
        more = len(first) > limit
        if first[0].name.endswith(_TAR):
            members = list(islice(self._members(first[0].name), _HEAD_MEMBERS + 1))
            files = self._in_archive(first[0].name, members[:_HEAD_MEMBERS])
            more = len(first) > 1 or len(members) > _HEAD_MEMBERS
        else:
            files = map(self._loose, first[:limit])
        items = in_order(self.name, self._paired(files))
        if more:  # the last pair may be cut in two
            items = (one for one in items if isinstance(one, Input) or one["reason"] not in _INCOMPLETE)
        return Head(list(items), more)

    def _paired(self, files: Iterable[_File | Reject]) -> Iterator[Input | Reject]:
        """Makes images of side-cars and images of the same name, in whatever order they come."""
        with ExternalSort[tuple[Any, ...]]() as found:
            for number, file in enumerate(files):
                if isinstance(file, dict):
                    yield file
                    continue
                path = posixpath.splitext(file.name)[0]
                archive = file.archive or ""
                row = (self._key_of(path, archive), archive, path, number, self._kind_of(file.name), file)
                found.add(row, 4 * len(path))
            for (key, archive, path), rows in groupby(found, lambda row: row[:3]):
                place = f"{archive}: {path}" if archive else path
                pair: dict[str, _File] = {}
                for *_, kind, file in rows:
                    if kind in pair:  # unpacking the archive would leave the later one
                        earlier, where = pair[kind].name, archive or "the folder"
                        message = f"{earlier} is replaced later by {file.name} in {where}"
                        yield self._row_reject(earlier, "duplicate_member", message)
                    pair[kind] = file
                if len(pair) < 2:
                    present, missing = _IMAGE, self.annotation
                    if _IMAGE not in pair:
                        present, missing = missing, present
                    reason = "missing_image" if missing == _IMAGE else "missing_annotation"
                    stem = path.rpartition("/")[2]
                    message = f"{place}{present} has no {stem}{missing} beside it"
                    yield self._row_reject(key, reason, message)
                else:
                    located = {"annotation": pair[self.annotation], "image": pair[_IMAGE]}
                    payload = records.compact_json(located)
                    yield Input(key, payload, num_masks=None, place=place)

    @abstractmethod
    def read(self, item: Input) -> ReadResult:
        """Reads the annotations of one image."""

    def _located(self, item: Input) -> dict[str, _File]:
        """Returns where ``annotation`` and ``image`` of an input are."""
        return {key: _File(*values) for key, values in json.loads(item.payload).items()}

    def _key_of(self, path: str, archive: str) -> str:
        """Returns the image id of a path without its suffix; the archive is empty for loose files."""
        return path.rpartition("/")[2]

    def _kind_of(self, name: str) -> str:
        """Returns the suffix that stands for the kind of a file; nothing for another one."""
        suffix = posixpath.splitext(name)[1].lower()
        return _IMAGE if suffix in _IMAGES else suffix if suffix == self.annotation else ""

    @property
    def _is_archive(self) -> bool:
        return self.source.endswith(_TAR)

    def _beginning(self, limit: int = MAX_NAMES) -> list[_File]:
        """Returns the first loose files among so many names, or all archives."""
        check_uncompressed(self.source)
        if self._is_archive:
            return [_File(self.source.rpartition("/")[2], size_bytes(self.source))]
        listed = self._below_source(storage.list_files(self.source, limit=limit))
        undecided = not any(self._kind_of(one.name) for one in listed)  # or archives, which are needed whole
        if undecided and len(listed) == limit:
            listed = self._below_source(storage.list_files(self.source))
        for file in listed:
            check_uncompressed(file.name)
        archives = [file for file in listed if file.name.endswith(_TAR)]
        loose = [file for file in listed if self._kind_of(file.name)]
        if bool(archives) == bool(loose):
            self._refuse(f"{len(archives)} .tar archives and {len(loose)}", f"among {len(listed)} files")
        return archives or loose

    def _refuse(self, has: str, among: str) -> NoReturn:
        raise DataError(
            f"{self.source} has {has} {self.annotation} and {_IMAGE} files {among}, expected exactly one of "
            "the two kinds; let --corpus.source name the folder of either the archives or what was "
            "unpacked from "
            "them",
            reason=self.layout,
        )

    def _below_source(self, files: Iterable[storage.FileInfo]) -> list[_File]:
        root = self.source.rstrip("/") + "/"
        return [_File(found.uri.removeprefix(root), found.size) for found in files]

    def _listed(self, part: str) -> Iterator[_File]:
        root = len(self.source.rstrip("/")) + 1
        for uri, size in storage.iter_files(self.source, beginning=part):
            if self._kind_of(uri):
                yield _File(uri[root:], size)
                continue
            check_uncompressed(uri)
            if uri.endswith(_TAR):
                self._refuse(f"the archive {uri[root:]} and", "besides")

    def _loose(self, file: _File) -> _File | Reject:
        fault = name_fault(file.name)
        return self._unsafe(file.name, fault) if fault else file

    def _members(self, archive: str) -> Iterator[Member]:
        return list_members(self._archive_uri(archive), (self.annotation, *_IMAGES))

    def _check_archives(self, parts: list[str], items: Iterable[Input | Reject]) -> None:
        """Says which archives are left out; raises DataError if all are."""
        names = set(parts)
        bad = [one for one in items if isinstance(one, dict) and one["row_id"] in names]
        if not bad:
            return
        text = "; ".join(entry["message"] for entry in bad)
        if len(bad) == len(parts):
            raise DataError(text, reason=bad[0]["reason"])
        log.warning("%d of %d archives are left out: %s", len(bad), len(parts), text)

    def _in_archive(self, archive: str, members: Iterable[Member]) -> Iterator[_File | Reject]:
        for member in members:
            if member.fault:
                yield self._unsafe(f"{archive}: {member.name}", member.fault)
            else:
                yield _File(member.name, member.size_bytes, member.offset, archive)

    def _unsafe(self, name: str, fault: str) -> Reject:
        shown = name.encode(errors="backslashreplace").decode()
        return self._row_reject(shown, "unsafe_path", f"{shown!r} {fault}")

    def _row_reject(self, row_id: str, reason: str, message: str) -> Reject:
        return schema.reject(STAGE, self.name, row_id, reason, f"{message} ({self.source})")

    def _archive_uri(self, archive: str) -> str:
        return self.source if self._is_archive else self._below(archive)

    def _below(self, name: str) -> str:
        return safe_join(self.source, name, link_roots=self.link_root)

    def _uri(self, file: _File) -> str:
        if file.archive is None:
            return self._below(file.name)
        return member_uri(self._archive_uri(file.archive), file.offset, file.size_bytes, file.name)

    def _sidecar_bytes(self, file: _File) -> bytes:
        if file.archive is None:  # to its end, whatever its size was when it was listed
            raw = storage.read_bytes(self._uri(file), size=self.max_sidecar_bytes + 1)
        else:
            size = min(file.size_bytes, self.max_sidecar_bytes + 1)
            raw = storage.read_bytes(self._archive_uri(file.archive), offset=file.offset, size=size)
        if len(raw) > self.max_sidecar_bytes:
            raise DataError(
                f"{file.name} has over {self.max_sidecar_bytes} bytes, more than a side-car can have",
                reason="sidecar_too_large",
            )
        return raw


@dataclass(frozen=True, kw_only=True)
class Sa1bReader(PairsReader):
    """Reads SA-1B, whole or in part."""

    def read(self, item: Input) -> ReadResult:
        """Reads one side-car. If it cannot be parsed no masks are counted, else all of its annotations."""
        located = self._located(item)
        num_masks = 0
        try:
            record = _parse_sidecar(self._sidecar_bytes(located["annotation"]), item.key)
            num_masks = len(record["annotations"])
            image_hw = _checked_size(record["image"], item.key)
            image_uri = self._uri(located["image"])
        except DataError as error:
            return ReadResult.refused(self.name, item.key, error, num_masks=num_masks)
        entries = record["annotations"]
        annotations, rejects = records.identify(
            self.name,
            enumerate(entries),
            lambda _: item.key,
            _fields_of,
            numbered=not any(map(records.has_id, entries)),
        )
        return records.make_row(
            self,
            item.key,
            image_uri,
            image_hw,
            [{**_fields_of(entry), "mask_id": mask_id} for (_, mask_id), entry in annotations.items()],
            rejects,
        )


def _fields_of(annotation: dict[str, Any]) -> dict[str, Any]:
    return records.picked(annotation, records.MASK_FIELDS)


def _parse_sidecar(raw: bytes, stem: str) -> dict[str, Any]:
    record = records.parse_json(raw, f"side-car {stem}{_ANNOTATION}")
    fields = record if isinstance(record, dict) else {}
    if not isinstance(fields.get("image"), dict) or not isinstance(fields.get("annotations"), list):
        raise DataError(
            f"side-car {stem}{_ANNOTATION} is {record!r:.80}, expected an object with the object 'image' and "
            "the list 'annotations' (SA-1B)",
            reason="sidecar_layout",
        )
    return fields


def _checked_size(image: dict[str, Any], stem: str) -> tuple[int, int]:
    """The name in the JSON is compared and never used: a side-car beside the wrong image would go unseen."""
    name = image.get("file_name")
    own, suffix = posixpath.splitext(name) if isinstance(name, str) else ("", "")
    if not isinstance(name, str) or own != stem or suffix.lower() not in _IMAGES:
        raise DataError(
            f"side-car {stem}{_ANNOTATION} names {image.get('file_name')!r:.200}, expected {stem}{_IMAGE}",
            reason="file_name",
        )
    return records.size_hw(image, f"side-car {stem}{_ANNOTATION}")
