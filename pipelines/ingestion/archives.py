"""Members of plain tar archives, which are read in place: their names, offsets and sizes.

The headers of an archive lie between its contents, so finding them takes a request to an object store for
each member. An index as DALI's ``wds2idx`` writes it (``sa_000000.idx`` beside ``sa_000000.tar``, version
1.2: a line with the number of samples, then one per sample with extension, offset, size and name of each
file) is read instead where it fits the archive. Archives are untrusted: only regular members count, their
names may not leave the folder they would be unpacked to, and of an archive without its end mark nothing is
taken.
"""

import logging
import posixpath
import re
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from pipelines import storage
from pipelines.ingestion import records
from samtok.errors import DataError

log = logging.getLogger(__name__)

_PLAIN = re.compile(r"\w+(?:/\w+)*\.\w+", re.ASCII)  # as all of SA-1B
_INDEX_VERSION = "v1.2"
_INDEX_FIELDS = 4  # extension, offset, size, name
_HEADER_BYTES = 2**13  # of a request that reads one: what follows it is the content


class Member(NamedTuple):
    """One file of an archive."""

    name: str
    """Path in the archive, without a leading ``./``."""
    offset: int
    """First byte of its content in the archive."""
    size_bytes: int
    fault: str | None
    """Why it must not be read; None if it can be."""


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
    the index beside the archive, or else its headers, no contents.

    Raises:
        DataError: ``compressed_archive`` if it is compressed, ``archive`` if it is no tar or was cut off.
        StorageError: If it cannot be opened.
    """
    check_uncompressed(archive_uri)
    with storage.open_input(archive_uri, buffer_bytes=_HEADER_BYTES) as stream:
        members = _from_index(archive_uri, stream)
        if members is None:
            stream.seek(0)
            members = _from_headers(archive_uri, stream)
        yield from (member for member in members if member.name.lower().endswith(suffixes))


def _from_headers(archive_uri: str, stream: BinaryIO) -> Iterator[Member]:
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for info in archive:
                name = info.name.removeprefix("./")
                if not info.isdir():
                    yield Member(name, info.offset_data, info.size, _fault(info, name))
            end = archive.offset
    except (tarfile.TarError, ValueError, OverflowError) as error:  # ValueError: extended headers
        raise DataError(
            f"{archive_uri} cannot be read as an uncompressed tar ({error}); fetch it again, or unpack "
            "it if it is compressed",
            reason="archive",
        ) from error
    if not _ends_at(stream, end):
        raise DataError(
            f"{archive_uri} has no end mark at byte {end}, behind its last member: it was cut off or is "
            "damaged; fetch it again",
            reason="archive",
        )


def _ends_at(stream: BinaryIO, offset: int) -> bool:
    stream.seek(offset)
    return stream.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _from_index(archive_uri: str, stream: BinaryIO) -> list[Member] | None:
    """Returns the members that the index beside an archive names; None without one that fits the archive."""
    index_uri = archive_uri.removesuffix(".tar") + ".idx"
    try:
        text = storage.read_bytes(index_uri).decode()
    except storage.ObjectError:
        return None
    except UnicodeDecodeError:
        text = ""
    members = _parsed(text)
    if members and _first_is_there(stream, members[0]):
        last = max(members, key=lambda member: member.offset)
        blocks = -(-last.size_bytes // tarfile.BLOCKSIZE)
        if _ends_at(stream, last.offset + blocks * tarfile.BLOCKSIZE):
            return members
    log.warning("%s does not fit its archive, whose headers are read instead", index_uri)
    return None


def _parsed(text: str) -> list[Member]:
    """Returns the members of an index that does not contradict itself; none of another one, such as one with
    white space in names."""
    first, *lines = text.splitlines() or [""]
    if first.split() != [_INDEX_VERSION, str(len(lines))]:
        return []
    members = []
    for line in lines:
        fields = line.split(" ")
        if len(fields) % _INDEX_FIELDS:
            return []
        for start in range(0, len(fields), _INDEX_FIELDS):
            extension, offset, size, name = fields[start : start + _INDEX_FIELDS]
            whole = offset.isascii() and offset.isdigit() and size.isascii() and size.isdigit()
            if not whole or posixpath.basename(name).partition(".")[2] != extension:
                return []
            name = name.removeprefix("./")
            members.append(Member(name, int(offset), int(size), name_fault(name)))
    return sorted(members, key=lambda member: member.offset)


def _first_is_there(stream: BinaryIO, member: Member) -> bool:
    if member.offset < tarfile.BLOCKSIZE:
        return False
    stream.seek(member.offset - tarfile.BLOCKSIZE)
    try:
        info = tarfile.TarInfo.frombuf(stream.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return (
        info.isreg() and info.size == member.size_bytes and member.name.endswith(info.name.removeprefix("./"))
    )


def name_fault(name: str) -> str | None:
    """Returns why a relative name must not be used; None for a plain one below its folder."""
    if _PLAIN.fullmatch(name):
        return None
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
