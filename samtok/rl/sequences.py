"""Sums over the tokens of each sequence, where a micro-batch's tokens lie one after another."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def sequence_sums(
    values: Float[Tensor, " token"], sequence: Int[Tensor, " token"]
) -> Float[Tensor, " sequence"]:
    """Adds up the tokens of each sequence, with gradient; sequences count from 0 to the largest."""
    count = int(sequence.max()) + 1 if len(sequence) else 0
    return values.new_zeros(count).index_add(0, sequence, values)


def sequence_means(
    values: Float[Tensor, " token"], sequence: Int[Tensor, " token"]
) -> Float[Tensor, " token"]:
    """Gives every token the mean over its sequence, with gradient."""
    means = sequence_sums(values, sequence) / sequence_sums(torch.ones_like(values), sequence)
    return means[sequence]
