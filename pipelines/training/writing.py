"""Writes checkpoints while training goes on; ``checkpoints`` says what they are.

Each worker copies its parts to a temporary file, which is all that training waits for: the system keeps the
file in memory while there is room, and ``TMPDIR`` says on which disk it is. A thread then writes it out piece
by piece. A worker that has written all its pieces says so in a file, and the first worker's thread commits
the checkpoint when all have.
"""

import contextlib
import hashlib
import json
import logging
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any

import torch

from pipelines import storage
from pipelines.training import checkpoints, world
from pipelines.training.parts import Part
from samtok.errors import SamtokError, StorageError

log = logging.getLogger(__name__)

PIECE_BYTES = 64 << 20
"""Most bytes of a file of a checkpoint, which is also what is held in memory at a time."""
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 2.0  # between looks for what other workers have written
_GRACE_S = 60.0


class CheckpointWriter:
    """Writes the checkpoints of a run, one at a time. Every worker has one; all calls but ``check`` and
    ``settle`` are collective.

    What goes wrong in the thread is raised by ``check`` on that worker, or by the next other call on all.
    """

    def __init__(self, out: str, keep: int) -> None:
        self.out, self.keep = out, keep
        self._thread: threading.Thread | None = None
        self._written = threading.Event()  # are this worker's pieces, unless there is an error
        self._error: Exception | None = None

    def save(
        self, parts: Iterable[Part], body: Mapping[str, Any], *, committed: Callable[[], None] = lambda: None
    ) -> None:
        """Begins a checkpoint once the one before is committed, and deletes older ones when it is.

        Args:
            parts: What this worker is to write; those of all workers make whole tensors.
            body: See ``checkpoints.Checkpoint``; the first worker's counts.
            committed: Is called by the first worker's thread.
        """
        self.wait()
        folder, rank, size = checkpoints.folder_of(self.out, body["step"]), world.rank(), world.size()
        attempt = world.from_first(uuid.uuid4().hex[:8])  # a dead run's worker may still write below another
        name, copied, error = f"{attempt}-{rank:05d}", None, None
        try:
            if rank == 0:
                checkpoints.drop(folder)
            copied = _copied(parts, name)
        except SamtokError as cause:
            error = cause
        except OSError as cause:
            error = StorageError(
                f"the copy of a checkpoint could not be written to {tempfile.gettempdir()}: {cause}. Free "
                "space there, or set TMPDIR to a folder of this machine with more."
            )
        world.raise_together(error)  # no worker has begun to write before
        assert copied is not None
        file, index = copied

        def write() -> None:
            try:
                with file:
                    _write_pieces(folder, file, index["files"])
                storage.write_bytes(storage.join(folder, f"{name}.json"), json.dumps(index).encode())
                self._written.set()
                if rank == 0:
                    checkpoints.commit(folder, {**body, **_indices(folder, attempt, size)})
                    checkpoints.drop_old(self.out, self.keep)
                    committed()
            except Exception as error:  # noqa: BLE001 raised by the next call
                self._error = error
            finally:
                self._written.set()

        self._written.clear()
        self._thread = threading.Thread(target=write, name="checkpoint", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises what has gone wrong on this worker."""
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        """Waits until the checkpoint that was begun is committed."""
        if self._thread is None:
            return
        self._written.wait()
        world.raise_together(self._error)  # else the first worker would wait for what never comes
        self._thread.join()
        world.raise_together(self._error)
        self._thread = None

    def settle(self) -> None:
        """Gives a checkpoint that was begun a minute, before a run ends with an error of something else."""
        if self._thread is not None:
            self._thread.join(_GRACE_S)
            if self._error is not None:
                log.warning("the last checkpoint was not written: %s", self._error)


def _copied(parts: Iterable[Part], name: str) -> tuple[IO[bytes], dict[str, Any]]:
    """Copies parts one after the other; returns the copy, and type and shape by key and what is in which
    piece."""
    tensors: dict[str, Any] = {}
    files: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(tempfile.TemporaryFile())
        for number, piece in enumerate(_pieces(parts)):
            size = 0
            for part in piece:
                values = part.values.cpu()
                size += file.write(values.view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]
                tensors[part.key] = (str(values.dtype).removeprefix("torch."), list(part.shape))
            held = [(part.key, part.start, len(part.values)) for part in piece if len(part.values)]
            files[f"{name}-{number:05d}.bin"] = {"bytes": size, "parts": held}
        file.flush()
        stack.pop_all()  # the thread closes it
    return file, {"tensors": tensors, "files": files}


def _pieces(parts: Iterable[Part]) -> Iterator[list[Part]]:
    """Cuts parts into groups of at most ``PIECE_BYTES``."""
    piece: list[Part] = []
    room = PIECE_BYTES
    for part in parts:
        start, stop = part.start, part.start + len(part.values)
        while True:
            fits = part.cut(start, start + room // part.values.itemsize)
            piece.append(fits)
            room -= fits.values.nbytes
            start += len(fits.values)
            if start == stop:
                break
            yield piece
            piece, room = [], PIECE_BYTES
    if piece:
        yield piece


def _write_pieces(folder: str, file: IO[bytes], files: dict[str, Any]) -> None:
    file.seek(0)
    for name, entry in files.items():
        data = file.read(entry["bytes"])
        entry["sha256"] = hashlib.sha256(data).hexdigest()
        storage.write_bytes(storage.join(folder, name), data)
        del data  # else there would be two while the next one is read


def _indices(folder: str, attempt: str, size: int) -> dict[str, Any]:
    """Waits for what all workers say that they have written, and returns it as one."""
    pause = _SHORTEST_PAUSE_S
    while True:
        listed = storage.list_files(folder, suffix=".json")
        found = [one.uri for one in listed if one.uri.rpartition("/")[2].startswith(f"{attempt}-")]
        if len(found) == size:
            break
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)
    bodies = [storage.read_json(uri) for uri in found]
    return {name: {k: v for body in bodies for k, v in body[name].items()} for name in ("tensors", "files")}
