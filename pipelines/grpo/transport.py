"""How weights get from learners to samplers: in pieces with a version and a checksum.

Learners publish the trained weights after every step, samplers fetch them. A sampler takes new weights in
only once all pieces have come and are whole, so a fetch that fails half-way leaves weights and version as
they were. Ray's object store needs no group of processes that would have to be built anew after a death, and
samplers on one node share one copy. A faster path between GPUs (NCCL, IPC) is another ``WeightTransport``.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.grpo.config import SyncConfig
from pipelines.training.engine import buckets
from samtok.errors import CheckpointError

MB = 2**20


@dataclass(frozen=True)
class Piece:
    """Some weights, one after the other, as bytes."""

    entries: tuple[tuple[str, str, tuple[int, ...]], ...]  # name, type and shape of each
    sha256: str | None  # of the bytes; None if it was not asked for
    ref: Any  # where the bytes are: whatever the transport makes of them


@dataclass(frozen=True)
class Weights:
    """All trained weights of one version."""

    version: int
    pieces: tuple[Piece, ...]

    @property
    def digest(self) -> str:
        """One hash over all pieces: what samplers and learners compare."""
        parts = [f"{self.version}", *(piece.sha256 or "" for piece in self.pieces)]
        return hashlib.sha256("/".join(parts).encode()).hexdigest()


class WeightTransport:
    """Through an object store.

    Args:
        put: Stores an array of bytes and returns a reference (``ray.put``).
        get: Returns what a reference means (``ray.get``); read only.
        piece_bytes: Most bytes of a piece; a larger tensor is a piece of its own.
    """

    def __init__(
        self,
        put: Callable[[np.ndarray], Any],
        get: Callable[[Any], np.ndarray],
        *,
        piece_bytes: int,
        checksum: bool = True,
    ) -> None:
        self.put, self.get, self.piece_bytes, self.checksum = put, get, piece_bytes, checksum

    def publish(self, state: Mapping[str, Tensor], version: int) -> Weights:
        """Puts weights where samplers find them."""
        names = iter(state)  # in the order of the buckets
        pieces = [self._piece(names, group) for group in buckets(list(state.values()), self.piece_bytes)]
        return Weights(version, tuple(pieces))

    def _piece(self, names: Iterator[str], group: list[Tensor]) -> Piece:
        data = np.concatenate([_bytes(tensor) for tensor in group])
        entries = tuple((next(names), str(t.dtype).removeprefix("torch."), tuple(t.shape)) for t in group)
        return Piece(entries, _sha256(data) if self.checksum else None, self.put(data))

    def fetch(self, weights: Weights) -> dict[str, Tensor]:
        """Gets all weights; they stay valid whatever becomes of the store.

        Raises:
            CheckpointError: A piece is not what was published.
        """
        state: dict[str, Tensor] = {}
        for number, piece in enumerate(weights.pieces):
            data = self.get(piece.ref)
            expected = sum(_size_bytes(kind, shape) for _, kind, shape in piece.entries)
            wrong = None
            if data.nbytes != expected:
                wrong = f"it has {data.nbytes} bytes, expected {expected}"
            elif piece.sha256 is not None and piece.sha256 != _sha256(data):
                wrong = f"the checksum of its {data.nbytes} bytes differs"
            if wrong:
                raise CheckpointError(
                    f"piece {number} of {len(weights.pieces)} of weights version {weights.version} is not "
                    f"what was published: {wrong}. The sampler keeps its old weights; if it happens again, "
                    "look at the memory and disks of the nodes."
                )
            state |= _tensors(piece, data)
        return state


def object_store(sync: SyncConfig) -> WeightTransport:
    """Returns the transport through Ray's object store; inside a Ray process."""
    import ray

    return WeightTransport(ray.put, ray.get, piece_bytes=sync.bucket_mb * MB, checksum=sync.checksum)


def _bytes(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _size_bytes(kind: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * getattr(torch, kind).itemsize


def _tensors(piece: Piece, data: np.ndarray) -> Iterator[tuple[str, Tensor]]:
    """Yields tensors that own their memory: the store's is read only, and may be given up."""
    own = torch.from_numpy(data.copy())
    first = 0
    for name, kind, shape in piece.entries:
        dtype, size = getattr(torch, kind), _size_bytes(kind, shape)
        part = own[first : first + size]
        if first % dtype.itemsize:  # a view needs its alignment
            part = part.clone()
        yield name, part.view(dtype).reshape(shape)
        first += size


def _sha256(data: np.ndarray) -> str:
    return hashlib.sha256(memoryview(data)).hexdigest()  # type: ignore[arg-type]
