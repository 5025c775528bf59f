"""How weights get from learners to samplers: in pieces with a version and a checksum.

Learners publish the trained weights after every step, in the samplers' precision, and gather, round and store
them piece by piece. A sampler takes new weights in only once all pieces have come to its node and are whole,
so a fetch that fails half-way leaves weights and version as they were; it copies them out of the store, again
piece by piece. Ray's object store needs no group of processes that would have to be built anew after a death,
and samplers on one node share one copy. A faster path between GPUs (NCCL, IPC) is another
``WeightTransport``.
"""

import hashlib
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.config import Precision
from pipelines.grpo.config import GrpoConfig
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

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Shapes by name."""
        return {name: torch.Size(shape) for piece in self.pieces for name, _, shape in piece.entries}


@dataclass(frozen=True)
class _Packed:
    name: str
    kind: str
    shape: tuple[int, ...]
    data: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.data.nbytes


class WeightTransport:
    """Through an object store.

    Args:
        put: Stores an array of bytes and returns a reference (``ray.put``).
        get: Returns what a reference means (``ray.get``); read only.
        piece_bytes: Most bytes of a piece; a larger tensor is a piece of its own.
        precision: Type that weights are rounded to; None leaves them as they are.
    """

    def __init__(
        self,
        put: Callable[[np.ndarray], Any],
        get: Callable[[Any], np.ndarray],
        *,
        piece_bytes: int,
        checksum: bool = True,
        precision: Precision | None = None,
    ) -> None:
        self.put, self.get, self.piece_bytes, self.checksum = put, get, piece_bytes, checksum
        self.dtype: torch.dtype | None = precision and getattr(torch, precision)

    def publish(self, weights: Iterable[tuple[str, Tensor]], version: int) -> Weights:
        """Puts weights where samplers find them; of those that are given one by one, no more are held than
        make two pieces."""
        packed = (self._packed(name, tensor) for name, tensor in weights)
        return Weights(version, tuple(map(self._piece, buckets(packed, self.piece_bytes))))

    def _packed(self, name: str, tensor: Tensor) -> _Packed:
        if self.dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(self.dtype)
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return _Packed(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), data)

    def _piece(self, group: list[_Packed]) -> Piece:
        data = np.concatenate([one.data for one in group])
        entries = tuple((one.name, one.kind, one.shape) for one in group)
        return Piece(entries, _sha256(data) if self.checksum else None, self.put(data))

    def fetch(self, weights: Weights) -> Iterator[tuple[str, Tensor]]:
        """Gets all weights to this node and checks them; then gives them one by one, each as a view of the
        store's memory, which is read only and may be given up when the next one is asked for.

        Raises:
            CheckpointError: A piece is not what was published.
        """
        found = deque(self.get(piece.ref) for piece in weights.pieces)
        for number, (piece, data) in enumerate(zip(weights.pieces, found, strict=True)):
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
        return _one_by_one(weights.pieces, found)


def _one_by_one(pieces: Sequence[Piece], found: deque[np.ndarray]) -> Iterator[tuple[str, Tensor]]:
    for piece in pieces:
        yield from _tensors(piece, found.popleft())


def object_store(config: GrpoConfig) -> WeightTransport:
    """Returns the transport of a run through Ray's object store; inside a Ray process."""
    import ray

    sync, precision = config.sync, config.rollout.precision
    settings = {"piece_bytes": sync.bucket_mb * MB, "checksum": sync.checksum, "precision": precision}
    return WeightTransport(ray.put, ray.get, **settings)


def _size_bytes(kind: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * getattr(torch, kind).itemsize


def _tensors(piece: Piece, data: np.ndarray) -> Iterator[tuple[str, Tensor]]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # it is only read
        whole = torch.from_numpy(data)
    first = 0
    for name, kind, shape in piece.entries:
        dtype, size = getattr(torch, kind), _size_bytes(kind, shape)
        part = whole[first : first + size]
        if first % dtype.itemsize:  # a view needs its alignment
            part = part.clone()
        yield name, part.view(dtype).reshape(shape)
        first += size


def _sha256(data: np.ndarray) -> str:
    return hashlib.sha256(memoryview(data)).hexdigest()  # type: ignore[arg-type]
