"""SA-1B: an image and beside it a JSON file with its masks (family F2).

Source: facebookresearch/segment-anything, README. The dataset is a folder, flat or with sub-folders, of
``sa_<id>.jpg`` and ``sa_<id>.json``, or the uncompressed ``.tar`` archives as published, which are read in
place. The image id of a row is the stem (``sa_223750``), unique in SA-1B, so rows of all three are equal but
for ``image_uri``.

``inputs`` lists names only: a JSON without image, an image without JSON and a stem that was there before are
rejects of a row each, with no masks counted, since none was read. The listing is held in memory, about a
kilobyte per image. The headers of an archive lie between its images, so listing archives in an object store
reads most of their bytes once; on a disk it only seeks. Archives are untrusted: only regular members count,
their names may not leave the folder they would be unpacked to, and of one without its end mark nothing is
taken.
"""

import hashlib
import json
import logging
import posixpath
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, NamedTuple

from pipelines import schema, storage
from pipelines.ingestion import records
from pipelines.ingestion.file_reader import NoOptions, size_bytes
from pipelines.ingestion.image_source import member_uri
from pipelines.ingestion.orientation import Orientation
from pipelines.ingestion.reader import MAX_NAMES, STAGE, Head, Input, ReadResult, Reject
from samtok.errors import DataError
from samtok.images import safe_join

log = logging.getLogger(__name__)

MAX_SIDECAR_BYTES = 256 * 2**20
"""Largest side-car that is parsed. SA-1B's have under 1 MB; an upper bound against giant files."""

_ANNOTATION, _IMAGE = ".json", ".jpg"
_KINDS = {".json": _ANNOTATION, ".jpg": _IMAGE, ".jpeg": _IMAGE}
"""Suffixes, in whatever case, of the two files of a pair."""
_INCOMPLETE = ("missing_image", "missing_annotation")
_HEAD_MEMBERS = 64  # names of a head: between them lie the images, which an object store reads too
_ARCHIVES_AT_ONCE = 16  # threads: finding the headers of an archive is waiting for the storage


class Member(NamedTuple):
    """One file of an archive."""

    name: str
    """Path in the archive, without a leading ``./``."""
    offset: int
    """First byte of its content in the archive."""
    size_bytes: int
    fault: str | None
    """Why it must not be read; None if it can be."""


class _File(NamedTuple):
    name: str  # relative to the source, or in its archive
    size_bytes: int
    offset: int = 0
    archive: str | None = None  # relative to the source; None for a file of its own


@dataclass(frozen=True, kw_only=True)
class Sa1bReader:
    """Reads SA-1B, whole or in part.

    Attributes:
        split: Of the rows; SA-1B itself has none.
        source: A folder or prefix with side-cars, a folder or prefix with ``.tar`` archives, or one archive.
        link_root: Folders besides the source that links below it may lead into.
        orientation: Which way up images are read.
        max_sidecar_bytes: Largest side-car that is parsed.
    """

    options: ClassVar[type] = NoOptions

    name: str
    split: str
    source: str
    link_root: tuple[str, ...] = ()
    orientation: Orientation = "stored"
    max_sidecar_bytes: int = MAX_SIDECAR_BYTES

    def sources(self) -> dict[str, str]:
        """Returns ``{kind: "count:total size:sha256"}``, with the hash of sorted names and sizes."""
        files = sorted((file.name, file.size_bytes) for file in self._either(self._found()))
        digest = hashlib.sha256()
        for named in files:
            digest.update(records.compact_json(named).encode() + b"\n")
        kind = "archives" if files[0][0].endswith(".tar") else "side-cars and images"
        return {kind: f"{len(files)}:{sum(size for _, size in files)}:{digest.hexdigest()}"}

    def inputs(self) -> Iterator[Input | Reject]:
        """Yields images and rejects, sorted by stem.

        Raises:
            DataError: If there are neither side-cars nor archives, or both, an archive is compressed, or all
                are cut off; of some, those are rejected.
            StorageError: If the source cannot be listed.
        """
        yield from self._inputs(self._files(self._either(self._found())))

    def head(self, limit: int = MAX_NAMES) -> Head:
        """Lists the first images among ``limit`` names; of archives, the first members of the first one."""
        found = self._found(limit + 1)
        listing, more = self._either(found[:limit]), len(found) > limit
        if listing[0].name.endswith(".tar"):
            members = list(islice(self._members(listing[0]), _HEAD_MEMBERS + 1))
            files = self._in_archive(listing[0], members[:_HEAD_MEMBERS])
            more = more or len(listing) > 1 or len(members) > _HEAD_MEMBERS
        else:
            files = self._files(listing)
        items = self._inputs(files)
        if more:  # the last pair may be cut in two
            items = (one for one in items if isinstance(one, Input) or one["reason"] not in _INCOMPLETE)
        return Head(list(items), more)

    def _inputs(self, files: Iterable[_File | Reject]) -> Iterator[Input | Reject]:
        pairs, rejects = self._pairs(files)
        yield from rejects
        previous = None
        for (stem, archive, path), pair in sorted(pairs.items()):
            where = f"{archive}: {path}" if archive else path
            if len(pair) < 2:
                present, missing = (_IMAGE, _ANNOTATION) if _IMAGE in pair else (_ANNOTATION, _IMAGE)
                reason = "missing_image" if missing == _IMAGE else "missing_annotation"
                yield self._row_reject(stem, reason, f"{where}{present} has no {stem}{missing} beside it")
            elif stem == previous:
                yield self._row_reject(stem, "duplicate_image_id", f"{where} is a further image named {stem}")
            else:
                previous = stem
                located = {"annotation": pair[_ANNOTATION], "image": pair[_IMAGE]}
                yield Input(key=stem, payload=records.compact_json(located), num_masks=None)

    def read(self, item: Input) -> ReadResult:
        """Reads one side-car. If it cannot be parsed no masks are counted, else all of its annotations."""
        located = {key: _File(*values) for key, values in json.loads(item.payload).items()}
        num_masks = 0
        try:
            record = _parse_sidecar(self._sidecar_bytes(located["annotation"]), item.key)
            num_masks = len(record["annotations"])
            image_hw = _checked_size(record["image"], item.key)
            image_uri = self._uri(located["image"])
        except DataError as error:
            return ReadResult.refused(self.name, item.key, error, num_masks=num_masks)
        annotations, rejects = records.identify(
            self.name, record["annotations"], lambda _: item.key, _fields_of
        )
        return records.make_row(
            self,
            item.key,
            image_uri,
            image_hw,
            [{**_fields_of(entry), "mask_id": mask_id} for (_, mask_id), entry in annotations.items()],
            rejects,
        )

    def _found(self, limit: int | None = None) -> list[_File]:
        check_uncompressed(self.source)
        if self.source.endswith(".tar"):
            return [_File(self.source.rpartition("/")[2], size_bytes(self.source))]
        listed = storage.list_files(self.source, limit=limit)
        root = self.source.rstrip("/") + "/"
        return [_File(found.uri.removeprefix(root), found.size) for found in listed]

    def _either(self, files: list[_File]) -> list[_File]:
        for file in files:
            check_uncompressed(file.name)
        archives = [file for file in files if file.name.endswith(".tar")]
        loose = [file for file in files if _kind_of(file.name)]
        if bool(archives) == bool(loose):
            raise DataError(
                f"{self.source} has {len(archives)} .tar archives and {len(loose)} {_ANNOTATION} and "
                f"{_IMAGE} files among {len(files)} files, expected exactly one of the two kinds; let "
                "--source name the folder of either the archives or what was unpacked from them",
                reason="sa1b_layout",
            )
        return archives or loose

    def _pairs(
        self, files: Iterable[_File | Reject]
    ) -> tuple[dict[tuple[str, str, str], dict[str, _File]], list[Reject]]:
        """Returns files by suffix for each (stem, archive, path without suffix), and what cannot be one."""
        pairs: dict[tuple[str, str, str], dict[str, _File]] = {}
        rejects: list[Reject] = []
        for file in files:
            if isinstance(file, dict):
                rejects.append(file)
                continue
            path, kind = posixpath.splitext(file.name)[0], _kind_of(file.name)
            pair = pairs.setdefault((posixpath.basename(path), file.archive or "", path), {})
            if (earlier := pair.get(kind)) is not None:  # unpacking the archive would leave the later one
                message = f"{earlier.name} is replaced later by {file.name} in {file.archive or 'the folder'}"
                rejects.append(self._row_reject(earlier.name, "duplicate_member", message))
            pair[kind] = file
        return pairs, rejects

    def _files(self, listing: list[_File]) -> Iterator[_File | Reject]:
        if not listing[0].name.endswith(".tar"):
            for file in listing:
                fault = name_fault(file.name)
                yield self._unsafe(file.name, fault) if fault else file
            return
        bad: list[DataError] = []
        with ThreadPoolExecutor(_ARCHIVES_AT_ONCE) as pool:
            for archive, members in zip(listing, pool.map(self._members_or_fault, listing), strict=True):
                if isinstance(members, DataError):
                    bad.append(members)
                    yield self._row_reject(archive.name, members.reason, str(members))
                else:
                    yield from self._in_archive(archive, members)
        if bad:
            text = "; ".join(map(str, bad))
            if len(bad) == len(listing):
                raise DataError(text, reason=bad[0].reason)
            log.warning("%d of %d archives are left out: %s", len(bad), len(listing), text)

    def _members(self, archive: _File) -> Iterator[Member]:
        return list_members(self._archive_uri(archive.name), tuple(_KINDS))

    def _members_or_fault(self, archive: _File) -> list[Member] | DataError:
        try:
            return list(self._members(archive))
        except DataError as error:
            return error

    def _in_archive(self, archive: _File, members: list[Member]) -> Iterator[_File | Reject]:
        for member in members:
            if member.fault:
                yield self._unsafe(f"{archive.name}: {member.name}", member.fault)
            else:
                yield _File(member.name, member.size_bytes, member.offset, archive.name)

    def _unsafe(self, name: str, fault: str) -> Reject:
        shown = name.encode(errors="backslashreplace").decode()
        return self._row_reject(shown, "unsafe_path", f"{shown!r} {fault}")

    def _row_reject(self, row_id: str, reason: str, message: str) -> Reject:
        return schema.reject(STAGE, self.name, row_id, reason, f"{message} ({self.source})")

    def _archive_uri(self, archive: str) -> str:
        return self.source if self.source.endswith(".tar") else self._below(archive)

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


def _kind_of(name: str) -> str:
    return _KINDS.get(posixpath.splitext(name)[1].lower(), "")


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
    if not isinstance(name, str) or posixpath.splitext(name)[0] != stem or _kind_of(name) != _IMAGE:
        raise DataError(
            f"side-car {stem}{_ANNOTATION} names {image.get('file_name')!r:.200}, expected {stem}{_IMAGE}",
            reason="file_name",
        )
    return records.size_hw(image, f"side-car {stem}{_ANNOTATION}")


# ---------------------------------------------------------------- archives

COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")


def check_uncompressed(uri: str) -> None:
    """Refuses the names of compressed archives (DataError): their members have no place of their own."""
    if uri.lower().endswith(COMPRESSED_SUFFIXES):
        raise DataError(
            f"{uri} is a compressed archive, in which single images cannot be reached; unpack it to a folder "
            "or to a plain .tar (SA-1B is published as plain .tar)",
            reason="compressed_archive",
        )


def list_members(archive_uri: str, suffixes: tuple[str, ...]) -> Iterator[Member]:
    """Yields members whose names end in one of the suffixes, which are in lower case, in archive order. Reads
    headers, no contents.

    Raises:
        DataError: ``compressed_archive`` if it is compressed, ``archive`` if it is no tar or was cut off.
        StorageError: If it cannot be opened.
    """
    check_uncompressed(archive_uri)
    with storage.open_input(archive_uri) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                for info in archive:
                    name = info.name.removeprefix("./")
                    if name.lower().endswith(suffixes) and not info.isdir():
                        yield Member(name, info.offset_data, info.size, _fault(info, name))
                end = archive.offset
        except (tarfile.TarError, ValueError, OverflowError) as error:  # ValueError: extended headers
            raise DataError(
                f"{archive_uri} cannot be read as an uncompressed tar ({error}); fetch it again, or unpack "
                "it if it is compressed",
                reason="archive",
            ) from error
        stream.seek(end)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise DataError(
                f"{archive_uri} has no end mark at byte {end}, behind its last member: it was cut off or is "
                "damaged; fetch it again",
                reason="archive",
            )


def name_fault(name: str) -> str | None:
    """Returns why a relative name must not be used; None for a plain one below its folder."""
    if not records.is_utf8(name):
        return "is not UTF-8"
    if not name.isprintable():
        return "has control characters"
    if name.startswith("/") or "\\" in name or ".." in name.split("/"):
        return "leaves the folder"
    return None


def _fault(info: tarfile.TarInfo, name: str) -> str | None:
    if not info.isreg() or info.issparse():
        return "is a link, a device or a sparse file"
    if info.size < 0:
        return "has a negative size"
    return name_fault(name)
