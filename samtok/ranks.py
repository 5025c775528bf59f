"""Tensors of all ranks of torch.distributed: sums, gathers and draws; alone, a process has its own.

All functions are collective and work on the default process group.
"""

import torch
from jaxtyping import Float
from torch import Tensor, distributed


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
