"""KL estimates equal their formulas, and as losses have the gradients that the module promises."""

import numpy as np
import pytest
import torch

from samtok.rl.kl import kl_loss, kl_values, sequence_kl


def random_log_probs(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    now, reference = (-rng.exponential(1.0, 20) for _ in range(2))
    return torch.tensor(now, requires_grad=True), torch.tensor(reference)


def two_policies() -> tuple[torch.Tensor, torch.Tensor]:
    """Returns logits over 6 tokens of a policy, with gradient, and log-probabilities of a reference."""
    generator = torch.Generator().manual_seed(0)
    logits, reference = torch.randn(2, 6, dtype=torch.float64, generator=generator)
    return logits.requires_grad_(), reference.log_softmax(0)


def expected_gradient(kind: str) -> torch.Tensor:
    """Returns the gradient of a KL loss, averaged over all tokens as the policy samples them."""
    logits, reference = two_policies()
    log_probs = logits.log_softmax(0)
    loss = (log_probs.detach().exp() * kl_loss(log_probs, reference, kind)).sum()
    return torch.autograd.grad(loss, logits)[0]


def exact_gradient(*, opposite: bool = False) -> torch.Tensor:
    logits, reference = two_policies()
    log_probs = logits.log_softmax(0)
    if opposite:
        kl = (reference.exp() * (reference - log_probs)).sum()
    else:
        kl = (log_probs.exp() * (log_probs - reference)).sum()
    return torch.autograd.grad(kl, logits)[0]


def test_values_equal_their_formulas():
    now, reference = random_log_probs(0)
    d = (now - reference).detach().numpy()
    assert kl_values(now, reference, "k1").tolist() == pytest.approx(d.tolist())
    assert kl_values(now, reference, "k2").tolist() == pytest.approx((d**2 / 2).tolist())
    assert kl_values(now, reference, "k3").tolist() == pytest.approx((np.exp(-d) - 1 + d).tolist())
    assert kl_loss(now, reference, "k3_straight").tolist() == pytest.approx((np.exp(-d) - 1 + d).tolist())


def test_k1_and_k3_are_unbiased():
    logits, reference = two_policies()
    log_probs = logits.detach().log_softmax(0)
    exact = float((log_probs.exp() * (log_probs - reference)).sum())
    for kind in ("k1", "k3"):
        mean = float((log_probs.exp() * kl_values(log_probs, reference, kind)).sum())
        assert mean == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_gradients_equal_finite_differences(kind: str):
    now, reference = random_log_probs(1)
    assert torch.autograd.gradcheck(lambda x: kl_loss(x, reference, kind), [now])


def test_the_straight_form_has_the_value_of_k3_and_the_gradient_of_k2():
    now, reference = random_log_probs(2)
    (gradient,) = torch.autograd.grad(kl_loss(now, reference, "k3_straight").sum(), now)
    assert torch.allclose(gradient, (now - reference).detach())


def test_k2_in_the_loss_is_k1_in_the_reward():
    logits, reference = two_policies()
    log_probs = logits.log_softmax(0)
    penalty = sequence_kl(log_probs, reference, torch.arange(6), "k1")  # every token is a sequence of its own
    reinforce = -(log_probs.detach().exp() * -penalty * log_probs).sum()
    (in_reward,) = torch.autograd.grad(reinforce, logits)
    for kind in ("k2", "k3_straight"):
        assert torch.allclose(expected_gradient(kind), in_reward, atol=1e-12)
    assert torch.allclose(exact_gradient(), in_reward, atol=1e-12)


def test_k1_as_a_loss_teaches_nothing_and_k3_the_opposite_divergence():
    assert torch.allclose(expected_gradient("k1"), torch.zeros(6, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(expected_gradient("k3"), exact_gradient(opposite=True), atol=1e-12)
    assert not torch.allclose(expected_gradient("k3"), exact_gradient(), atol=1e-2)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3", "k3_straight"])
@pytest.mark.parametrize("distance", [-500.0, 500.0])
def test_far_references_give_numbers(kind: str, distance: float):
    now = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss = kl_loss(now, now + distance, kind)
    (gradient,) = torch.autograd.grad(loss.sum(), now)
    assert loss.isfinite().all() and gradient.isfinite().all()


def test_k3_of_close_policies_is_not_lost_in_rounding():
    value = kl_values(torch.tensor([0.0]), torch.tensor([-1e-4]), "k3")  # plain float32 has 0 or 6e-8
    assert float(value) == pytest.approx(5e-9, rel=1e-2)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3", "k3_straight"])
def test_no_gradient_flows_to_the_reference(kind: str):
    now, reference = random_log_probs(4)
    reference.requires_grad_()
    assert torch.autograd.grad(kl_loss(now, reference, kind).sum(), reference, allow_unused=True) == (None,)


def test_sequences_add_up_their_tokens_without_gradient():
    now, reference = random_log_probs(3)
    sequence = torch.tensor([0] * 5 + [1] + [2] * 14)
    sums = sequence_kl(now, reference, sequence, "k3")
    values = kl_values(now, reference, "k3").detach()
    assert sums.tolist() == pytest.approx([float(part.sum()) for part in values.split([5, 1, 14])])
    assert not sums.requires_grad
