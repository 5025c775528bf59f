"""Files and objects by URI: read, list, atomic write, put-if-absent. All retries of the system live here.

A URI is a local path (plain or ``file://``) or ``s3://bucket/key``. Writes are atomic: a reader sees the
old bytes or the new ones, whoever is killed in between. Faults that pass (no connection, timeouts, 5xx,
throttling) are waited out for ``SAMTOK_STORAGE_RETRY_S`` seconds, so a run survives a restart of the store;
faults that stay fail at once, those of one file or object apart from those of the store (``faults``). All
functions may be used from several threads and processes, forked ones too.

Single operations are in ``local`` and ``s3``, two modules with the same functions, but for how a folder takes
another's place; variables are in ``env``.
"""

import contextlib
import hashlib
import io
import json
import logging
import random
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

from pipelines import env
from pipelines.storage import local, node_copies
from pipelines.storage.faults import MISSING
from samtok import folders
from samtok.errors import ConfigError, DataError, StorageError

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_COPY_CHUNK = 64 << 20  # bytes per request of a local copy: what one broken connection costs
_READ_BUFFER = 1 << 20  # bytes fetched at least by ``open_input``
_READS = ("read", "open", "look up")  # what one object can be at fault for
_SHOWN_CHARS = 500  # of a URI in messages
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0

_down: dict[str, float] = {}
"""Places that do not answer, and since when; so that an outage is told once, not by every thread."""


class ObjectError(StorageError):
    """One file or object that cannot be read, though the store works. ``reason`` is one of ``faults``."""

    def __init__(self, message: str, *, reason: str = MISSING) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple:  # keeps the reason when Ray pickles the error
        return partial(type(self), reason=self.reason), (str(self),)


class NotFoundError(ObjectError, FileNotFoundError):
    """The file or object does not exist."""


class FileInfo(NamedTuple):
    """One listed file: its full URI and its size in bytes."""

    uri: str
    size: int


# ---------------------------------------------------------------- URIs


def is_remote(uri: str) -> bool:
    """Whether the URI names an object of a store and not a local file; raises ConfigError if the scheme is
    none that we know."""
    scheme, separator, _ = uri.partition("://")
    if not separator or scheme == "file":
        return False
    if scheme != "s3":
        raise ConfigError(f"Cannot use {uri}: {scheme}:// is unknown. Use a path, file:// or s3://.")
    return True


def is_anchored(uri: str) -> bool:
    """Whether the URI means the same in every working directory."""
    return is_remote(uri) or local.path_of(uri).is_absolute()


def join(uri: str, *parts: str) -> str:
    """Appends names to a folder URI: ``join("s3://b/run", "data", "x.parquet")``.

    A part may hold slashes. Parts may come from datasets, so one that would leave the folder is refused.
    Raises DataError if a part is absolute, climbs with ``..`` or holds a NUL; its reason is ``path``.
    """
    names = [name for part in parts for name in part.split("/") if name not in ("", ".")]
    if ".." in names or any(part.startswith("/") or "\0" in part for part in parts):
        given = "/".join(parts)
        raise DataError(f"Path {given!r} must stay inside {uri}; it is absolute or has '..'.", reason="path")
    if not names:
        return uri
    return "/".join([uri.rstrip("/"), *names]) if is_remote(uri) else local.named(uri, *names)


def absolute(uri: str) -> str:
    """Makes a local path independent of the working directory, which workers do not share with the driver."""
    return uri if "://" in uri else str(local.path_of(uri).absolute())


def _backend(uri: str) -> ModuleType:
    if not is_remote(uri):
        return local
    from pipelines.storage import s3  # its libraries take most of a second, which --help need not wait for

    return s3


# ---------------------------------------------------------------- faults and retries


def _failed(what: str, uri: str, error: Exception, tried_s: float | None = None) -> StorageError:
    backend, shown = _backend(uri), uri if len(uri) <= _SHOWN_CHARS else f"{uri[:_SHOWN_CHARS]}..."
    said = backend.describe(error)
    if tried_s is not None:
        said = f"still failing after {tried_s:.0f} s of retries ({env.STORAGE_RETRY_S}); last: {said}"
    reason = backend.fault_of(error) if what in _READS else None
    if reason == MISSING:
        return NotFoundError(
            f"Cannot {what} {shown}: it does not exist. Check the URI, and the step that writes it ({said})."
        )
    text = f"Cannot {what} {shown}: {said}. {backend.remedy(error)}"
    return StorageError(text) if reason is None else ObjectError(text, reason=reason)


def _patiently(what: str, uri: str, call: Callable[[], _T]) -> _T:
    """Calls until it works, a fault stays, or the time for retries is over."""
    backend = _backend(uri)
    since: float | None = None
    pause = _FIRST_PAUSE_S
    while True:
        try:
            result = call()
        except backend.FAULTS as error:
            if not backend.is_transient(error):
                raise _failed(what, uri, error) from error
            now, budget = time.monotonic(), env.storage_retry_s()
            since = now if since is None else since
            left = since + budget - now
            if left <= 0:
                raise _failed(what, uri, error, tried_s=now - since) from error
            place, said = backend.place(uri), backend.describe(error)
            if _down.setdefault(place, now) == now:
                log.warning(
                    "Storage %s does not answer (%s); trying again for up to %g s.", place, said, budget
                )
        else:
            if since is not None and (down := _down.pop(backend.place(uri), None)) is not None:
                took = time.monotonic() - down
                log.info("Storage %s answers again after %.0f s.", backend.place(uri), took)
            return result
        time.sleep(min(pause * random.uniform(0.5, 1.0), left))
        pause = min(pause * 2, _LONGEST_PAUSE_S)


# ---------------------------------------------------------------- reading


def read_bytes(uri: str, *, offset: int = 0, size: int | None = None) -> bytes:
    """Reads a file or object, or ``size`` bytes of it from ``offset``; fewer if it ends before. Raises
    NotFoundError if it does not exist, ObjectError if only this one cannot be read; StorageError if the store
    fails, after retries."""
    if offset < 0 or (size is not None and size < 0):
        raise ValueError(f"offset and size must be 0 or more, got {offset} and {size}")
    stop = None if size is None else offset + size
    return _patiently("read", uri, lambda: _backend(uri).get(uri, start=offset, stop=stop))


def read_json(uri: str) -> Any:
    """Reads a JSON document; raises DataError (reason ``json``) if it is none, and as ``read_bytes``."""
    try:
        return json.loads(read_bytes(uri))
    except (ValueError, RecursionError) as error:
        message = f"{uri} must be a JSON document: {error}. Restore it, or run the step that wrote it again."
        raise DataError(message, reason="json") from error


def exists(uri: str) -> bool:
    """Whether there is a file or object of that name; a folder or prefix does not count."""
    return _patiently("look up", uri, lambda: _backend(uri).exists(uri))


def list_files(prefix_uri: str, *, suffix: str = "", limit: int | None = None) -> list[FileInfo]:
    """Lists all files below a folder, however deep, whose names end with ``suffix``; sorted by URI.

    A folder that does not exist has no files, since S3 knows no folders. Links to folders are followed.
    Files that are just being written are left out. With a limit only the first so many are
    listed, at the cost of as many.
    """
    listed = iter_files(prefix_uri, limit=None if suffix else limit)
    found = (file for file in listed if file.uri.endswith(suffix))
    return sorted(islice(found, limit), key=lambda file: file.uri)


def iter_files(prefix_uri: str, *, beginning: str = "", limit: int | None = None) -> Iterator[FileInfo]:
    """Yields the files of ``list_files`` as they come, without holding them: those whose path below the
    folder has a beginning that ``beginnings`` gave. ``limit`` is how many will be taken, if that is known."""
    folder = prefix_uri.rstrip("/") + "/"
    backend, after = _backend(folder), None
    while True:
        page, after = _patiently(
            "list", folder, lambda token=after: backend.list_page(folder, beginning, token, limit)
        )
        yield from (FileInfo(uri, size) for uri, size in page if uri[-1] != "/")
        if after is None:
            return


def beginnings(prefix_uri: str, at_least: int) -> list[str]:
    """Returns how the paths of files below a folder begin, so that parts of a large listing can be made at
    once: at least so many of a store with many names, the sub-folders on a disk. A path that has a dot in its
    last part begins with exactly one of them; paths that differ behind that dot only, with the same."""
    folder = prefix_uri.rstrip("/") + "/"
    return _patiently("list", folder, lambda: _backend(folder).beginnings(folder, at_least))


class _ObjectFile(io.RawIOBase):
    """A read-only file of one version of an object; every read is one request with retries."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._info = _patiently("open", uri, lambda: _backend(uri).head(uri))
        self._position = 0

    @property
    def version(self) -> tuple[Any, ...]:
        """Size and the store's own mark of the contents."""
        return self._info.size, self._info.etag

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._info.size}[whence]
        if start + offset < 0:
            raise ValueError(f"cannot seek to {start + offset} in {self._uri}")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self._fetch(min(self._position + len(view), self._info.size))
        view[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return self._fetch(self._info.size)

    def _fetch(self, stop: int) -> bytes:
        uri, start, etag = self._uri, self._position, self._info.etag
        if start >= stop:
            return b""
        data = _patiently("read", uri, lambda: _backend(uri).get(uri, start=start, stop=stop, etag=etag))
        self._position += len(data)
        return data


def open_input(uri: str, *, buffer_bytes: int = _READ_BUFFER) -> BinaryIO:
    """Opens a file or object as a seekable binary file, for pyarrow, tarfile or PIL. Close it after use.

    An object is read in ranges of at least ``buffer_bytes``, each with retries; one that is replaced
    meanwhile gives an error, not a mix.
    """
    if not is_remote(uri):
        return _patiently("open", uri, lambda: local.open_file(uri))
    return cast(BinaryIO, io.BufferedReader(_ObjectFile(uri), buffer_bytes))


def file_sha256(uri: str) -> str:
    """Returns the SHA-256 of a file or object, without holding it in memory."""
    with open_input(uri) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


@contextlib.contextmanager
def local_folder(uri: str) -> Iterator[Path]:
    """Gives a local folder with the files below ``uri``: itself, or a copy that is deleted at the end, but
    not ``.pt`` and ``.pth`` (mask tokenizers beside a model). Raises NotFoundError if there is no file,
    StorageError if the folder is replaced meanwhile (on a store)."""
    if not is_remote(uri):
        yield _own_folder(uri)
        return
    versions = _versions_below(uri)
    with tempfile.TemporaryDirectory(prefix="samtok-") as folder:
        _download_all(versions, Path(folder))
        yield Path(folder)


def node_folder(uri: str) -> Path:
    """As ``local_folder``; a copy is shared with all processes of this machine that ask for the same files,
    is fetched once, and stays until they have ended (``node_copies``)."""
    if not is_remote(uri):
        return _own_folder(uri)
    return _shared(uri, _versions_below(uri))


def node_file(uri: str) -> Path:
    """Returns a local path with the content: the path itself, or a copy, shared as those of ``node_folder``
    are."""
    if not is_remote(uri):
        open_input(uri).close()
        return local.path_of(uri)
    name = uri.rpartition("/")[2]
    return _shared(uri, {name: _ObjectFile(uri)}) / name


def _shared(uri: str, versions: Mapping[str, _ObjectFile]) -> Path:
    parts = [part for name, file in sorted(versions.items()) for part in (name, *map(str, file.version))]
    key = hashlib.sha256("\0".join([uri, *parts]).encode()).hexdigest()[:32]
    return node_copies.shared(key, partial(_download_all, versions))


def _own_folder(uri: str) -> Path:
    if not local.path_of(uri).is_dir():
        raise NotFoundError(f"there is no folder {uri}; check the path, and that the disk is mounted.")
    return local.path_of(uri)


def _versions_below(uri: str) -> dict[str, _ObjectFile]:
    """Returns the files below a folder of a store by their names in it, of each one version."""
    uri = uri.rstrip("/")
    names = [file.uri.removeprefix(uri + "/") for file in list_files(uri)]
    if not names:
        raise NotFoundError(f"there is nothing below {uri}; check the name.")
    found = {name: _ObjectFile(f"{uri}/{name}") for name in names if not name.endswith((".pt", ".pth"))}
    if folders.resolve(uri, read=read_bytes) != uri:
        raise StorageError(f"{uri} was replaced while it was read; read it again.")
    return found


def _download_all(versions: Mapping[str, _ObjectFile], folder: Path) -> None:
    for name, source in versions.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        _download(source, target)


def put_folder(folder: Path, uri: str, *, last: str | None = None) -> None:
    """Writes all files of a local folder below ``uri``, in the order of their names, ``last`` after them."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for name in sorted(names, key=lambda name: name == last):
        write_bytes(join(uri, name), (folder / name).read_bytes())


def replace_folder(folder: Path, uri: str) -> None:
    """Gives the files of a local folder the place of those below ``uri``, all at once: a reader finds the old
    ones or the new ones, whoever is killed in between.

    All goes beside its place first. A disk then exchanges the folders. A store copies file by file, and until
    it is done readers look beside the place: ``folders.resolve``.
    """
    uri = uri.rstrip("/")
    aside = uri + folders.ASIDE
    if is_remote(uri):
        _move_in(aside, uri)  # what a killed writer had made complete
    delete_folder(aside)
    put_folder(folder, aside)
    if is_remote(uri):
        write_bytes(join(aside, folders.COMPLETE), b"")
        _move_in(aside, uri)
    else:
        try:
            local.exchange(uri, aside)
        except OSError as error:  # a repetition could exchange them back
            raise _failed("replace", uri, error) from error
    delete_folder(aside)


def _move_in(aside: str, uri: str) -> None:
    """Copies what is complete beside a folder into it, and deletes what else was there."""
    mark, backend = join(aside, folders.COMPLETE), _backend(uri)
    if not exists(mark):
        return
    names = {file.uri.removeprefix(aside + "/") for file in list_files(aside)} - {folders.COMPLETE}
    for name in sorted(names):
        source, target = join(aside, name), join(uri, name)
        _patiently("write", target, lambda source=source, target=target: backend.copy(source, target))
    for file in list_files(uri):
        if file.uri.removeprefix(uri + "/") not in names:
            delete(file.uri)
    delete(mark)


def _download(source: _ObjectFile, target: Path) -> None:
    with source:
        try:
            with target.open("wb") as file:
                shutil.copyfileobj(source, file, _COPY_CHUNK)
        except OSError as error:  # the store's faults are StorageErrors by now
            raise _failed("write the local copy", str(target), error) from error


# ---------------------------------------------------------------- writing


def write_bytes(uri: str, data: bytes) -> None:
    """Writes a file or object whole: a reader sees the old content or the new, never a part.

    Missing local folders are made. A killed local writer can leave a file ``.tmp-*``, which nothing reads.
    Raises StorageError if it cannot be written, after retries; what was there before is still there.
    """
    _patiently("write", uri, lambda: _backend(uri).put(uri, data))


def put_if_absent(uri: str, data: bytes) -> bool:
    """Writes a file or object unless it exists; of several writers at once exactly one gets True.

    Returns:
        True if this call made it, also when the store's answer was lost and the request was repeated.

    On a local disk without hard links (some FUSE and FAT mounts) the file is made under its final name at
    once: there is still one winner, but a reader may see a part of it, and a killed winner leaves a part.
    On S3 there is one winner if the store's ``If-None-Match: *`` holds between racing writers, as AWS
    promises (Swift does not); ``check`` finds a store that ignores it.
    """
    writer = uuid.uuid4().hex
    return _patiently("create", uri, lambda: _backend(uri).create(uri, data, writer))


def delete(uri: str) -> None:
    """Deletes a file or object; that it does not exist is no error."""
    _patiently("delete", uri, lambda: _backend(uri).delete(uri))


def delete_folder(uri: str) -> None:
    """Deletes all files below a folder, and a local folder itself; that there is none is no error."""
    for file in list_files(uri):
        delete(file.uri)
    if not is_remote(uri):
        shutil.rmtree(local.path_of(uri), ignore_errors=True)


def check(folder_uri: str) -> None:
    """Makes sure that a run can write, create exclusively, read, list and delete below a folder. Raises
    StorageError if one of these fails; for a store without exclusive writes too."""
    probe = join(folder_uri, f"probe-{uuid.uuid4().hex}")
    try:
        created, again = put_if_absent(probe, b"first"), put_if_absent(probe, b"second")
        if (created, again, read_bytes(probe)) != (True, False, b"first"):
            raise StorageError(
                f"{folder_uri} does not create files exclusively: the second of two writers was not refused. "
                "Commit records need that; use a store that honours If-None-Match."
            )
        if probe not in [file.uri for file in list_files(folder_uri)]:
            raise StorageError(
                f"{folder_uri} does not list a file that was just written; use a consistent store."
            )
    finally:
        delete(probe)
