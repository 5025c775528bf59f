"""Log-probabilities and entropies out of logits that are 150,000 wide.

The usual log-softmax keeps several copies of all logits for the backward pass. Here only the logits and two
numbers per token are kept, and what is as wide as the vocabulary is made for a few tokens at a time, forward
and backward. Work is in float32 (float64 for float64). Entries of minus infinity, by which tokens were
suppressed, have probability 0 and no gradient.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 2**24
"""Logits worked on at a time; a temporary of them takes 64 MB in float32."""


def chosen_log_probs(
    logits: Float[Tensor, "token vocab"],
    targets: Int[Tensor, " token"],
    temperature: float = 1.0,
    *,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Float[Tensor, " token"]:
    """Returns the log-probability of each target under ``softmax(logits / temperature)``, with gradient.

    Args:
        logits: Of the position before each target, suppressed entries at minus infinity.
        targets: Token ids below the width of the logits.
        temperature: That of the sampling, above 0.
        chunk_elements: Logits worked on at a time; the result does not depend on it.

    Raises:
        ValueError: A target is suppressed, or the temperature is not above 0.
    """
    _check_temperature(temperature)
    chosen = _ChosenLogProbs.apply(logits, targets, temperature, chunk_elements)
    impossible = chosen.detach().isneginf().nonzero()
    if len(impossible):
        token = int(impossible[0])
        raise ValueError(
            f"target {int(targets[token])} of token {token} has probability 0, as {len(impossible)} of "
            f"{len(targets)} have: it was sampled, so it must not be suppressed here. Restrict sampling and "
            "learning to the same tokens."
        )
    return chosen


def entropies(
    logits: Float[Tensor, "token vocab"], temperature: float = 1.0, *, chunk_elements: int = CHUNK_ELEMENTS
) -> Float[Tensor, " token"]:
    """Returns the entropy of ``softmax(logits / temperature)`` in nats, with gradient, in [0, log vocab].

    As ``chosen_log_probs``; a token with nothing but suppressed entries has no entropy (NaN).
    """
    _check_temperature(temperature)
    return _Entropies.apply(logits, temperature, chunk_elements)


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}; greedy sampling has no probabilities.")


def _chunks(logits: Float[Tensor, "token vocab"], chunk_elements: int) -> Iterator[slice]:
    tokens, width = logits.shape
    step = max(1, chunk_elements // max(width, 1))
    return (slice(start, start + step) for start in range(0, tokens, step))


def _scaled(logits: Float[Tensor, "token vocab"], temperature: float) -> Float[Tensor, "token vocab"]:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature


def _per_token(logits: Float[Tensor, "token vocab"]) -> Float[Tensor, " token"]:
    return logits.new_empty(len(logits), dtype=torch.promote_types(logits.dtype, torch.float32))


class _ChosenLogProbs(torch.autograd.Function):
    """``x[target] - logsumexp(x)`` for ``x = logits / T``; its gradient is ``(one-hot - p) / T``."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float, chunk_elements: int) -> Tensor:
        normaliser, chosen = _per_token(logits), _per_token(logits)
        for rows in _chunks(logits, chunk_elements):
            scaled = _scaled(logits[rows], temperature)
            normaliser[rows] = scaled.logsumexp(dim=1)
            chosen[rows] = scaled.gather(1, targets[rows, None])[:, 0] - normaliser[rows]
        ctx.save_for_backward(logits, targets, normaliser)
        ctx.temperature, ctx.chunk_elements = temperature, chunk_elements
        return chosen

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        logits, targets, normaliser = ctx.saved_tensors
        result = torch.empty_like(logits)
        for rows in _chunks(logits, ctx.chunk_elements):
            factor = gradient[rows, None] / ctx.temperature
            probs = (_scaled(logits[rows], ctx.temperature) - normaliser[rows, None]).exp()
            result[rows] = (probs * -factor).scatter_add_(1, targets[rows, None], factor)
        return result, None, None, None


class _Entropies(torch.autograd.Function):
    """``H = -sum p log p``; its gradient is ``-p (log p + H) / T``, which is 0 where p is."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, temperature: float, chunk_elements: int) -> Tensor:
        normaliser, entropy = _per_token(logits), _per_token(logits)
        for rows in _chunks(logits, chunk_elements):
            scaled = _scaled(logits[rows], temperature)
            normaliser[rows] = scaled.logsumexp(dim=1)
            probs = (scaled - normaliser[rows, None]).exp()
            entropy[rows] = torch.special.entr(probs).sum(dim=1)
        ctx.save_for_backward(logits, normaliser, entropy)
        ctx.temperature, ctx.chunk_elements = temperature, chunk_elements
        return entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        logits, normaliser, entropy = ctx.saved_tensors
        result = torch.empty_like(logits)
        for rows in _chunks(logits, ctx.chunk_elements):
            probs = (_scaled(logits[rows], ctx.temperature) - normaliser[rows, None]).exp()
            slope = torch.special.entr(probs) - probs * entropy[rows, None]
            result[rows] = slope * (gradient[rows, None] / ctx.temperature)
        return result, None, None
