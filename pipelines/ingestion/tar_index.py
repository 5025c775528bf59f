"""Where the files in an uncompressed tar lie, so that each is one ranged read and nothing is unpacked.

Archives are untrusted: only regular members count, their names may not leave the folder they would be
unpacked to, and an archive without its end mark was cut off and is refused as a whole.
"""

import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from pipelines import storage
from pipelines.ingestion.records import is_utf8
from samtok.errors import DataError

COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")


class Member(NamedTuple):
    """One file of an archive."""

    name: str
    """Path in the archive, without a leading ``./``."""
    offset: int
    """First byte of its content in the archive."""
    size_bytes: int
    fault: str | None
    """Why it must not be read; None if it can be."""


def check_uncompressed(uri: str) -> None:
    """Refuses the names of compressed archives (DataError): their members have no place of their own."""
    if uri.lower().endswith(COMPRESSED_SUFFIXES):
        raise DataError(
            f"{uri} is a compressed archive, in which single images cannot be reached; unpack it to a folder "
            "or to a plain .tar (SA-1B is published as plain .tar)",
            reason="compressed_archive",
        )


def list_members(archive_uri: str, suffixes: tuple[str, ...]) -> Iterator[Member]:
    """Yields members whose names end in one of the suffixes, in archive order. Reads headers, no contents.

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
                    if name.endswith(suffixes) and not info.isdir():
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
    if not is_utf8(name):
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
