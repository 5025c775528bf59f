"""Checkpoints of a run: complete, committed last, and free of how many workers made them.

A checkpoint is a folder of pieces, each worker's own, and a ``state.json`` that says which elements of which
tensors each piece holds, one after the other, and its SHA-256; a checkpoint exists once that last file does.
Tensors go by parameter name, so any engine and any number of workers can go on from it: a worker reads the
pieces that have elements of its own. There is no state of a random generator: all draws follow from seed and
step.

The loss curve is kept in segments beside the checkpoints. A segment is written before the checkpoint that
ends it, and counts only if a checkpoint names it.
"""

import hashlib
import json
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipelines import storage
from pipelines.storage import NotFoundError
from pipelines.training import world
from pipelines.training.parts import EXTRA, Part, key_of, wholes
from pipelines.training.resume import STATE_FILE, steps
from samtok.errors import CheckpointError, SamtokError

FORMAT_VERSION = 3


@dataclass(frozen=True)
class Checkpoint:
    """One that is read.

    Attributes:
        body: ``step`` (steps done), ``draws`` (the sampler's cursor), ``seed``, ``bad_in_a_row``,
            ``skipped``, ``workers``, ``fingerprint``, ``lineage`` (with the MLflow run), what was gathered so
            far (validations, rejects, times, the curve's segments), ``optimizer_steps``; and what the pieces
            hold: ``tensors`` (type and shape by key) and ``files`` (SHA-256 and ``[key, start, count]``).
    """

    folder: str
    body: dict[str, Any]

    def check(self, shapes: Mapping[str, torch.Size]) -> None:
        """Makes sure that it holds tensors of these keys and shapes, and no others but extra ones. Raises
        CheckpointError, which names the first that differs."""
        there = {
            key: tuple(shape)
            for key, (_, shape) in self.body["tensors"].items()
            if not key.startswith(f"{EXTRA}/")
        }
        for key in sorted(there.keys() | shapes.keys()):
            own = tuple(shapes[key]) if key in shapes else "missing"
            if there.get(key, "missing") != own:
                raise CheckpointError(
                    f"{key} of the checkpoint is {there.get(key, 'missing')}, in the model it is {own}. The "
                    "checkpoint is of another architecture, or other parts were trained: use the settings in "
                    "config.json of its run, or another --out."
                )

    def fill(self, parts: Iterable[Part]) -> None:
        """Reads the values of parts; raises CheckpointError if a file is missing or is not the one that was
        written, or elements are in none."""
        wanted: dict[str, list[Part]] = defaultdict(list)
        for part in parts:
            wanted[part.key].append(part)
        filled = 0
        for name, entry in self.body["files"].items():
            if any(len(own.values) for own in _asked_for(wanted, entry["parts"])):
                data, at = self._piece(name, entry["sha256"]), 0
                for key, start, count in entry["parts"]:
                    values = _tensor(data, self.body["tensors"][key][0], count, at)
                    at += values.nbytes
                    for own in _asked_for(wanted, [(key, start, count)]):
                        own.values.copy_(values[own.start - start :][: len(own.values)])
                        filled += len(own.values)
        lacking = sum(len(part.values) for found in wanted.values() for part in found) - filled
        if lacking:
            raise CheckpointError(
                f"{self.folder} lacks {lacking} numbers of the model's state. {self._remedy}"
            )

    def fill_together(self, parts: Iterable[Part]) -> None:
        """As ``fill``; raises on all workers what one of them has met."""
        error = None
        try:
            self.fill(parts)
        except SamtokError as found:
            error = found
        world.raise_together(error)

    def extra(self) -> dict[str, Tensor]:
        """Reads the other tensors that the kind of training keeps, in the order of their names."""
        found = {
            key.removeprefix(f"{EXTRA}/"): torch.empty(shape, dtype=getattr(torch, dtype))
            for key, (dtype, shape) in sorted(self.body["tensors"].items())
            if key.startswith(key_of(EXTRA, ""))
        }
        self.fill(wholes(EXTRA, found))
        return found

    @property
    def _remedy(self) -> str:
        return f"Delete {self.folder} to go on from the checkpoint before it, or choose another --out."

    def _piece(self, name: str, digest: str) -> bytes:
        uri = storage.join(self.folder, name)
        try:
            data = storage.read_bytes(uri)
        except NotFoundError as error:
            raise CheckpointError(f"the checkpoint lacks {uri}. {self._remedy}") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise CheckpointError(
                f"{uri} is not the file that the checkpoint names ({len(data)} bytes). {self._remedy}"
            )
        return data


def _tensor(data: bytes, dtype: str, count: int, offset: int) -> Tensor:
    """Returns numbers of a piece, without a copy."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # it is only read
        return torch.frombuffer(data, dtype=getattr(torch, dtype), count=count, offset=offset)


def _asked_for(wanted: Mapping[str, list[Part]], stored: Sequence[Sequence[Any]]) -> Iterable[Part]:
    """Yields what stored elements have of the parts that are wanted; may be empty."""
    for key, start, count in stored:
        for part in wanted.get(key, ()):
            yield part.cut(start, start + count)


def load(out: str, step: int) -> Checkpoint:
    """Opens a checkpoint; raises CheckpointError if another release wrote it."""
    folder = folder_of(out, step)
    body = storage.read_json(storage.join(folder, STATE_FILE))
    if body.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} has format version {body.get('format_version')!r}, this release reads "
            f"{FORMAT_VERSION}. Go on with the release that wrote it, or choose another --out."
        )
    return Checkpoint(folder, body)


def commit(folder: str, body: Mapping[str, Any]) -> None:
    """Writes the file that makes a checkpoint one."""
    text = json.dumps({**body, "format_version": FORMAT_VERSION})
    storage.write_bytes(storage.join(folder, STATE_FILE), text.encode())


def drop(folder: str) -> None:
    """Deletes a checkpoint, or what a killed writer left of one; the file that makes it one goes first."""
    storage.delete(storage.join(folder, STATE_FILE))
    storage.delete_folder(folder)


def drop_old(out: str, keep: int) -> None:
    """Deletes all but the newest checkpoints."""
    for step in steps(out)[:-keep]:
        drop(folder_of(out, step))


def folder_of(out: str, step: int) -> str:
    """Returns where a checkpoint is."""
    return storage.join(out, "checkpoints", f"step-{step:08d}")


# ---------------------------------------------------------------- the curve


def save_segment(out: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes the metrics of consecutive steps as JSON lines and returns the segment's name."""
    name = f"history/{int(rows[0]['step']):08d}-{int(rows[-1]['step']) + 1:08d}.jsonl"
    text = "".join(json.dumps(row) + "\n" for row in rows)
    storage.write_bytes(storage.join(out, name), text.encode())
    return name


def load_history(out: str, segments: Sequence[str]) -> list[dict[str, Any]]:
    """Reads the metrics of all steps in the segments that a checkpoint names."""
    texts = [storage.read_bytes(storage.join(out, name)).decode() for name in segments]
    return [json.loads(line) for text in texts for line in text.splitlines()]
