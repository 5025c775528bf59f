"""How far the policy has gone from a reference, estimated from sampled tokens (Schulman 2020).

With ``d = log p - log q`` for policy p and reference q: k1 is ``d``, unbiased and noisy; k2 is ``d^2 / 2``,
biased and calm; k3 is ``exp(-d) - 1 + d``, unbiased and never negative (GRPO, arXiv 2402.03300, eq. 4).

As a loss the gradient matters, not the value. That of k2 is ``d`` times the gradient of log p, in expectation
the gradient of KL(p || q), and the same as of k1 subtracted from the reward. That of k1 is 0 in expectation,
and that of k3 is the gradient of the opposite KL(q || p).
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from samtok.rl.sequences import sequence_sums

KlKind = Literal["k1", "k2", "k3"]
KlLossKind = Literal["k1", "k2", "k3", "k3_straight"]
EXPONENT_LIMIT = 20.0
"""Largest exponent of k3; beyond it the value stays and the gradient is 0."""


def kl_values(
    log_probs: Float[Tensor, " token"], reference: Float[Tensor, " token"], kind: KlKind
) -> Float[Tensor, " token"]:
    """Returns the estimate of every sampled token; k2 and k3 are at least 0. No gradient to the reference."""
    difference = log_probs - reference.detach()
    if kind == "k1":
        return difference
    if kind == "k2":
        return difference.square() / 2
    exponent = (-difference).clamp(max=EXPONENT_LIMIT)
    return exponent.expm1() - exponent


def kl_loss(
    log_probs: Float[Tensor, " token"], reference: Float[Tensor, " token"], kind: KlLossKind
) -> Float[Tensor, " token"]:
    """Returns a loss per token, to be weighted like the policy's; "k3_straight" is k3 with k2's gradient.

    "k1" has a gradient of 0 in expectation and serves comparison only; "k3" is what GRPO and EasyR1 use
    (there "low_var_kl"); "k2" and "k3_straight" have the gradient of the KL divergence.
    """
    if kind != "k3_straight":
        return kl_values(log_probs, reference, kind)
    gradient = kl_values(log_probs, reference, "k2")
    return kl_values(log_probs, reference, "k3").detach() + gradient - gradient.detach()


@torch.no_grad()
def sequence_kl(
    log_probs: Float[Tensor, " token"],
    reference: Float[Tensor, " token"],
    sequence: Int[Tensor, " token"],
    kind: KlKind,
) -> Float[Tensor, " sequence"]:
    """Returns the sum over each sequence, without gradient, to be subtracted from its reward.

    "k1" under the policy that drew the tokens makes the expected gradient exact; sequences count from 0.
    """
    return sequence_sums(kl_values(log_probs, reference, kind), sequence)
