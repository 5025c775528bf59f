"""What every quantizer of mask embeddings shares: the interface, the builder, sums over ranks.

``residual`` holds residual and plain vector quantization (paper, Eq. 2), ``fsq`` finite scalar
quantization (paper, section D). Where torch.distributed is initialised, ``start`` and ``update`` are
collective: every rank calls them, with as many masks as it has, and all ranks end with equal buffers. They
work on the default process group.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, distributed, nn

from samtok.config import QuantizerConfig


class Quantized(NamedTuple):
    """What quantization gives; ``embeddings`` passes gradients straight through to z."""

    embeddings: Float[Tensor, "mask dim"]
    codes: Int[Tensor, "mask level"]
    commitment: Float[Tensor, ""]


@runtime_checkable
class Quantizer(Protocol):
    """Turns mask embeddings into one code per level, and codes into embeddings."""

    num_codes: int
    num_levels: int
    cluster_size: Float[Tensor, "book num_codes"]
    """Averaged share of each code in the use of its codebook; it follows ``update``."""

    def encode(self, z: Float[Tensor, "mask dim"]) -> Int[Tensor, "mask level"]:
        """Returns the code of every level, each in ``[0, num_codes)``."""
        ...

    def decode(self, codes: Int[Tensor, "mask level"]) -> Float[Tensor, "mask dim"]:
        """Returns the embedding that the mask decoder reads; fewer levels give a coarser one."""
        ...

    def code_vectors(self) -> Float[Tensor, "level num_codes dim"]:
        """Returns what each code adds to an embedding: those of a mask's codes sum up to ``decode``'s."""
        ...

    def __call__(self, z: Float[Tensor, "mask dim"]) -> Quantized:
        """Quantizes with straight-through gradients and the commitment loss."""
        ...

    def start(self, z: Float[Tensor, "sample dim"], generator: torch.Generator) -> None:
        """Fits the quantizer to embeddings, before quantized training begins."""
        ...

    def update(
        self, z: Float[Tensor, "mask dim"], codes: Int[Tensor, "mask level"], generator: torch.Generator
    ) -> int:
        """Follows the embeddings of one step and their codes; returns how many dead codes restarted."""
        ...


class Float32Buffers(nn.Module):
    """A module whose buffers stay in float32 when a model is cast, as bf16 training engines do.

    Averages that move by a hundredth per step would stand still in eight bits.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Float32Buffers":
        kept = {id(buffer) for buffer in self._buffers.values()}

        def apply(tensor: Tensor) -> Tensor:
            if id(tensor) not in kept:
                return fn(tensor)
            probe = fn(tensor[:0])
            return fn(tensor) if probe.dtype == tensor.dtype else tensor.to(probe.device)

        super()._apply(apply, recurse)
        return self


def build_quantizer(config: QuantizerConfig, dim: int) -> Quantizer:
    """Builds the quantizer of a config, an ``nn.Module``, for embeddings of width ``dim``."""
    from samtok.model.fsq import FiniteScalarQuantizer  # late: both files need the interface above
    from samtok.model.residual import ResidualQuantizer

    if config.kind == "fsq":
        return FiniteScalarQuantizer(dim, grid=config.grid, num_levels=config.num_levels)
    return ResidualQuantizer(  # vq is one level of it
        dim, num_codes=config.num_codes, num_levels=config.num_levels, shared=config.shared
    )


def check_codes(codes: Int[Tensor, "mask level"], num_codes: int, num_levels: int) -> None:
    """Refuses what cannot be decoded.

    Raises:
        ValueError: If there are no levels, more than ``num_levels``, or a code out of range.
    """
    levels = codes.shape[1]
    if not 1 <= levels <= num_levels:
        raise ValueError(f"codes must have 1 to {num_levels} levels, got {levels}")
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= num_codes):
        raise ValueError(f"codes must lie in [0, {num_codes}), got {int(codes.min())} to {int(codes.max())}")


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sums in place over all ranks, with the same bits on each; alone it changes nothing."""
    if _distributed():
        distributed.all_reduce(tensor)
    return tensor


def from_first_rank(tensor: Tensor) -> Tensor:
    """Overwrites in place with what the first rank has; alone it changes nothing."""
    if _distributed():
        distributed.broadcast(tensor, src=0)
    return tensor


def gather_rows(rows: Float[Tensor, "row dim"]) -> Float[Tensor, "all dim"]:
    """Returns the rows of all ranks in the order of ranks, which may have different numbers of them."""
    if not _distributed():
        return rows
    counts = _row_counts(rows)
    padded = rows.new_zeros(max(counts), rows.shape[1])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def pick_rows(
    rows: Float[Tensor, "row dim"], count: int, generator: torch.Generator
) -> Float[Tensor, "count dim"]:
    """Draws rows of all ranks with replacement; every rank gets the same ones, those that the first drew.

    Only what is drawn travels. At least one rank must have rows.
    """
    counts = _row_counts(rows) if _distributed() else [len(rows)]
    picks = torch.randint(sum(counts), (count,), generator=generator).to(rows.device)
    if not _distributed():
        return rows[picks]
    own = from_first_rank(picks) - sum(counts[: distributed.get_rank()])
    here = (own >= 0) & (own < len(rows))
    picked = rows.new_zeros(count, rows.shape[1])
    picked[here] = rows[own[here]]
    return sum_over_ranks(picked)  # one rank adds a row, the others zeros


def _row_counts(rows: Tensor) -> list[int]:
    counts = torch.zeros(distributed.get_world_size(), dtype=torch.int64, device=rows.device)
    counts[distributed.get_rank()] = len(rows)
    return sum_over_ranks(counts).tolist()


def _distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()
