"""What quantizers of mask embeddings share: the interface, buffers in float32, the check of codes.

Where torch.distributed is initialised, ``start`` and ``update`` are collective: every rank calls them, with
as many masks as it has, and all ranks end with equal buffers. They work on the default process group.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn


class Quantized(NamedTuple):
    """What quantization gives; ``embeddings`` passes gradients straight through to z."""

    embeddings: Float[Tensor, "mask dim"]
    codes: Int[Tensor, "mask level"]
    commitment: Float[Tensor, ""]


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


class Quantizer(Float32Buffers, ABC):
    """Turns mask embeddings into one code per level, and codes into embeddings."""

    num_codes: int
    num_levels: int
    cluster_size: Float[Tensor, "book num_codes"]
    """Averaged share of each code in the use of its codebook; it follows ``update``."""

    @abstractmethod
    def encode(self, z: Float[Tensor, "mask dim"]) -> Int[Tensor, "mask level"]:
        """Returns the code of every level, each in ``[0, num_codes)``."""

    @abstractmethod
    def decode(self, codes: Integer[Tensor, "mask level"]) -> Float[Tensor, "mask dim"]:
        """Returns the embedding that the mask decoder reads; fewer levels give a coarser one."""

    @abstractmethod
    def code_vectors(self) -> Float[Tensor, "level num_codes dim"]:
        """Returns what each code adds to an embedding: those of a mask's codes sum up to ``decode``'s."""

    @abstractmethod
    def forward(self, z: Float[Tensor, "mask dim"]) -> Quantized:
        """Quantizes with straight-through gradients and the commitment loss."""

    @abstractmethod
    def start(self, z: Float[Tensor, "sample dim"], generator: torch.Generator) -> None:
        """Fits the quantizer to embeddings, before quantized training begins."""

    @abstractmethod
    def update(
        self, z: Float[Tensor, "mask dim"], codes: Int[Tensor, "mask level"], generator: torch.Generator
    ) -> int:
        """Follows the embeddings of one step and their codes; returns how many dead codes restarted."""


def checked_codes(
    codes: Integer[Tensor, "mask level"], num_codes: int, num_levels: int
) -> Int[Tensor, "mask level"]:
    """Returns codes as int64, by which tensors are indexed; bytes would select like a mask.

    Raises:
        ValueError: If there are no levels, more than ``num_levels``, or a code out of range.
    """
    levels = codes.shape[1]
    if not 1 <= levels <= num_levels:
        raise ValueError(f"codes must have 1 to {num_levels} levels, got {levels}.")
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= num_codes):
        raise ValueError(f"codes must be in [0, {num_codes}), got {int(codes.min())} to {int(codes.max())}.")
    return codes.long()
