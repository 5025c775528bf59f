"""Copies of folders of a store that all processes of a user on one machine share.

The first process that asks for a folder fetches it, those that ask meanwhile wait, and it stays until the
last of them has ended; a later one deletes what killed ones left. Locks are the system's, which gives a
killed process's back.
"""

import atexit
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from samtok.errors import StorageError

_FILLING, _USE = ".filling", ".use"  # locks: of the one that fetches, and shared by those that use a copy
_held: dict[Path, IO[bytes]] = {}  # copies of this process, with their locks


def shared(key: str, fill: Callable[[Path], None]) -> Path:
    """Returns the copy of what a key stands for, until this process ends.

    Args:
        key: Of these very contents; letters and digits.
        fill: Puts them into an empty folder; what it raises leaves nothing.
    """
    root = Path(tempfile.gettempdir()) / f"samtok-copies-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.lstat().st_uid != os.getuid():
        raise StorageError(f"{root} belongs to somebody else; set TMPDIR to a folder of your own.")
    place = root / key
    if place in _held:
        return place
    with (root / f"{key}{_FILLING}").open("wb") as filling:
        fcntl.flock(filling, fcntl.LOCK_EX)
        _sweep(root, but=key)
        use = (root / f"{key}{_USE}").open("wb")
        fcntl.flock(use, fcntl.LOCK_SH)
        try:
            if not place.exists():
                _fetch(place, fill)
        except BaseException:
            use.close()
            raise
        if not _held:
            atexit.register(_give_back)
        _held[place] = use
    return place


def _fetch(place: Path, fill: Callable[[Path], None]) -> None:
    half = place.with_name(f"{place.name}.half")
    shutil.rmtree(half, ignore_errors=True)  # a killed process's
    half.mkdir()
    try:
        fill(half)
        half.rename(place)
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _give_back() -> None:
    roots = {place.parent for place in _held}
    for use in _held.values():
        use.close()
    for root in roots:
        _sweep(root)


def _sweep(root: Path, *, but: str = "") -> None:
    """Deletes copies that no process uses or fetches."""
    for lock in root.glob(f"*{_USE}"):
        key = lock.name.removesuffix(_USE)
        if key == but:
            continue
        with (root / f"{key}{_FILLING}").open("wb") as filling, lock.open("wb") as use:
            try:
                fcntl.flock(filling, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            for left in (root / key, root / f"{key}.half"):
                shutil.rmtree(left, ignore_errors=True)
