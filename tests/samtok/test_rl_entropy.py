"""Log-probabilities and entropies equal torch's own, also where tokens are suppressed, in little memory."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from samtok.rl.entropy import chosen_log_probs, entropies


def random_logits(*, tokens: int = 7, vocab: int = 11, suppressed: bool = True) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(tokens, vocab, dtype=torch.float64, generator=generator) * 2
    if suppressed:
        logits[:, [2, 5]] = float("-inf")
        logits[0, 1:] = float("-inf")  # a token without a choice
    return logits.requires_grad_()


TARGETS = torch.tensor([0, 1, 3, 4, 6, 10, 0])


class Widest(TorchDispatchMode):
    """Watches for the largest tensor that an operation makes anew."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not result._is_view():
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("chunk_elements", [1, 25, 10**6])
def test_log_probs_equal_log_softmax_with_their_gradient(temperature: float, chunk_elements: int):
    logits, upstream = random_logits(), torch.linspace(-1, 2, 7, dtype=torch.float64)
    ours = chosen_log_probs(logits, TARGETS, temperature, chunk_elements=chunk_elements)
    theirs = (logits / temperature).log_softmax(1).gather(1, TARGETS[:, None])[:, 0]
    assert torch.allclose(ours, theirs, atol=1e-12)
    (gradient,) = torch.autograd.grad(ours, logits, upstream)
    (expected,) = torch.autograd.grad(theirs, logits, upstream)
    assert torch.allclose(gradient, expected, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("chunk_elements", [1, 25, 10**6])
def test_entropy_equals_that_of_the_allowed_tokens(temperature: float, chunk_elements: int):
    logits, upstream = random_logits(), torch.linspace(-1, 2, 7, dtype=torch.float64)
    ours = entropies(logits, temperature, chunk_elements=chunk_elements)
    rows = []
    for row in logits:
        log_probs = (row[row.isfinite()] / temperature).log_softmax(0)
        rows.append(-(log_probs.exp() * log_probs).sum())
    theirs = torch.stack(rows)
    assert torch.allclose(ours, theirs, atol=1e-12) and float(ours[0].detach()) == 0
    (gradient,) = torch.autograd.grad(ours, logits, upstream)
    (expected,) = torch.autograd.grad(theirs, logits, upstream)
    assert torch.allclose(gradient, expected, atol=1e-12)


def test_gradients_equal_finite_differences():
    logits = random_logits(suppressed=False)
    assert torch.autograd.gradcheck(lambda x: entropies(x, 0.7, chunk_elements=25), [logits])
    assert torch.autograd.gradcheck(lambda x: chosen_log_probs(x, TARGETS, 0.7, chunk_elements=25), [logits])


def test_half_precision_logits_are_worked_on_in_float32():
    logits = random_logits().detach().bfloat16().requires_grad_()
    for values in (entropies(logits), chosen_log_probs(logits, TARGETS)):
        assert values.dtype == torch.float32
        assert torch.autograd.grad(values.sum(), logits)[0].dtype == torch.bfloat16
    exact = logits.detach().double()
    assert torch.allclose(entropies(logits).double(), entropies(exact), atol=1e-6)
    assert torch.allclose(
        chosen_log_probs(logits, TARGETS).double(), chosen_log_probs(exact, TARGETS), atol=1e-6
    )


@pytest.mark.parametrize(
    "function", [entropies, lambda x, **to: chosen_log_probs(x, TARGETS[:0].new_zeros(64), **to)]
)
def test_nothing_as_wide_as_the_logits_is_made_but_their_gradient(function: Any):
    logits = torch.randn(64, 500, requires_grad=True)
    kept = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x),
        Widest() as forward,
    ):
        values = function(logits, chunk_elements=2000)
    assert forward.elements <= 2000
    assert all(x.numel() <= 64 or x.data_ptr() == logits.data_ptr() for x in kept) and kept
    with Widest() as backward:
        values.backward(torch.ones(64))
    assert backward.elements == logits.numel()


def test_no_tokens_give_nothing():
    logits = torch.zeros(0, 5, requires_grad=True)
    (entropies(logits).sum() + chosen_log_probs(logits, TARGETS[:0]).sum()).backward()
    assert logits.grad is not None and logits.grad.shape == (0, 5)


def test_a_target_that_was_suppressed_is_named():
    with pytest.raises(ValueError, match="target 5 of token 3 has probability 0, as 1 of 7"):
        chosen_log_probs(random_logits(), TARGETS.clone().index_fill(0, torch.tensor([3]), 5))


def test_greedy_sampling_has_no_probabilities():
    for call in (
        lambda: entropies(random_logits(), 0.0),
        lambda: chosen_log_probs(random_logits(), TARGETS, 0.0),
    ):
        with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
            call()
