"""Files of a mounted disk: one operation per call, atomic writes. The twin of ``s3``."""

import contextlib
import ctypes
import errno
import itertools
import os
import stat
import urllib.parse
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipelines.storage.faults import MISSING, OBJECT_ON_DISK, PASSING_ON_DISK
from samtok.errors import ConfigError

FAULTS: tuple[type[Exception], ...] = (OSError,)

_TEMPORARY = ".tmp-"  # start of the names of files that are being written
_HERE, _RENAME_EXCHANGE = -100, 2  # AT_FDCWD and the flag, from Linux's fcntl.h and fs.h
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
_REMEDIES = {
    errno.ENOSPC: "Free space on that disk or write elsewhere.",
    errno.EDQUOT: "Free space in your quota or write elsewhere.",
    errno.EFBIG: "The file is larger than this disk or `ulimit -f` allows; write elsewhere.",
    errno.EROFS: "That disk is read-only; write elsewhere.",
    errno.EACCES: "Check the permissions of the file and its folders.",
    errno.EPERM: "Check the permissions of the file and its folders.",
    errno.EMFILE: "Raise the limit of open files: `ulimit -n 65536`.",
    errno.ENXIO: "Name a regular file.",
    **dict.fromkeys(
        (errno.EEXIST, errno.ENOTDIR), "A file stands where a folder is needed; correct the URI."
    ),
}


def path_of(uri: str) -> Path:
    """Turns a plain path or a ``file://`` URI into a path. Raises ConfigError if the URI names another host,
    or is empty."""
    if not uri.startswith("file://"):
        if not uri:
            raise ConfigError("A path or URI must not be empty.")
        return Path(uri)
    address = urllib.parse.urlsplit(uri)
    if address.netloc not in ("", "localhost"):
        raise ConfigError(f"Cannot use {uri}: it names a host. Local files are file:///folder/name.")
    return Path(urllib.parse.unquote(address.path))


def named(uri: str, *names: str) -> str:
    """Appends names to a folder; in a ``file://`` URI special characters are escaped."""
    if uri.startswith("file://"):
        names = tuple(urllib.parse.quote(name) for name in names)
    return "/".join([uri.rstrip("/"), *names])


def open_file(uri: str) -> BinaryIO:
    """Opens a regular file; never waits, as opening a pipe would."""
    try:
        descriptor = os.open(path_of(uri), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except ConfigError:
        raise
    except ValueError as error:  # a NUL, or half a surrogate pair
        raise FileNotFoundError(errno.ENOENT, str(error)) from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        raise OSError(errno.ENXIO, "it is a pipe, a socket or a device")
    return os.fdopen(descriptor, "rb")


def get(uri: str, *, start: int = 0, stop: int | None = None) -> bytes:
    """Reads bytes ``[start, stop)`` of a file; what lies behind its end is left out."""
    with open_file(uri) as file:
        file.seek(start)
        return file.read(-1 if stop is None else stop - start)


def put(uri: str, data: bytes) -> None:
    """Writes a file whole, beside its place first; makes missing folders."""
    path = path_of(uri)
    with _temporary(path, data) as temporary:
        temporary.replace(path)
        _sync_folder(path.parent)


def create(uri: str, data: bytes, _writer: str) -> bool:
    """Writes a file unless it exists; False if it does. A link is what a disk makes only once."""
    path = path_of(uri)
    with _temporary(path, data) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return temporary.stat().st_nlink > 1  # over NFS a repeated request can meet its own link
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return create_without_links(path, data)
        _sync_folder(path.parent)
    return True


def create_without_links(path: Path, data: bytes) -> bool:
    """Does ``create`` where there are no hard links: one winner, but readers may see a part of the file."""
    try:
        file = path.open("xb")
    except FileExistsError:
        return False
    try:
        with file:
            _write_through(file, data)
    except OSError:
        path.unlink(missing_ok=True)  # ours, and incomplete
        raise
    _sync_folder(path.parent)
    return True


def exists(uri: str) -> bool:
    try:
        return path_of(uri).is_file()
    except OSError as error:
        if fault_of(error) == MISSING:
            return False
        raise


def exchange(uri: str, aside: str) -> None:
    """Puts a folder in the place of another, if there is one, which gets its name."""
    new, old = path_of(aside), path_of(uri)
    if not old.exists():
        new.rename(old)
    else:
        swap = getattr(ctypes.CDLL(None), "renameat2", None)
        if swap is None or swap(_HERE, os.fsencode(new), _HERE, os.fsencode(old), _RENAME_EXCHANGE) != 0:
            exchange_by_turns(new, old)
    _sync_folder(old.parent)


def exchange_by_turns(new: Path, old: Path) -> None:
    """Does ``exchange`` where the system cannot, as on network disks: for a moment no folder has the name."""
    before = old.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
    old.rename(before)
    new.rename(old)
    before.rename(new)


def delete(uri: str) -> None:
    path_of(uri).unlink(missing_ok=True)


def list_page(
    folder: str, beginning: str, _after: str | None, limit: int | None
) -> tuple[list[tuple[str, int]], None]:
    """Lists (URI, size in bytes) of the files below a folder or a sub-folder of it, all or so many, in one
    page."""
    root, place = path_of(folder), folder + beginning
    above = (
        frozenset({_identity(root.stat())}) if beginning and root.is_dir() else frozenset[tuple[int, int]]()
    )
    return list(itertools.islice(_walk(place, path_of(place), above), limit)), None


def beginnings(folder: str, _at_least: int) -> list[str]:
    """Splits the names below a folder by its sub-folders, if there is nothing else in it; see ``s3``."""
    try:
        entries = sorted(os.scandir(path_of(folder)), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return [""]
    if len(entries) < 2 or not all(entry.is_dir() for entry in entries):
        return [""]
    return [f"{entry.name}/" for entry in entries]


def _identity(folder: os.stat_result) -> tuple[int, int]:
    return folder.st_dev, folder.st_ino


def _walk(uri: str, folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, int]]:
    try:
        here = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    identity = _identity(here)
    if identity in above:  # a link that leads back up
        return
    for entry in entries:
        with contextlib.suppress(FileNotFoundError):  # deleted since, or a dead link
            if entry.is_dir():
                yield from _walk(named(uri, entry.name), Path(entry.path), above | {identity})
            elif entry.is_file() and not entry.name.startswith(_TEMPORARY):
                yield named(uri, entry.name), entry.stat().st_size


@contextlib.contextmanager
def _temporary(target: Path, data: bytes) -> Iterator[Path]:
    """A file with the data beside the target, safely on disk; it is gone at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
    try:
        with path.open("xb") as file:
            _write_through(file, data)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _write_through(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Makes a new name survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def place(uri: str) -> str:
    """Names what has an outage when this file has one: its folder."""
    return str(path_of(uri).parent)


def is_transient(error: OSError) -> bool:
    """Whether the same operation may succeed later."""
    return error.errno in PASSING_ON_DISK


def fault_of(error: OSError) -> str | None:
    """Returns what is wrong with this one file, as in ``faults``; None if it is the disk."""
    return OBJECT_ON_DISK.get(error.errno)


def describe(error: OSError) -> str:
    """Says in one line what happened; the name of the file is said besides."""
    return error.strerror or str(error)


def remedy(error: OSError) -> str:
    """Says what the user can do about it."""
    return _REMEDIES.get(error.errno or 0, "Check the path and the disk.")
