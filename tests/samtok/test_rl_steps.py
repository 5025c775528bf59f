"""Advantages, weights and losses together: one optimizer step however it is split, and bandits that learn."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch

from samtok.rl.advantages import advantages
from samtok.rl.entropy import chosen_log_probs
from samtok.rl.kl import kl_loss
from samtok.rl.policy import PolicySettings, policy_terms
from samtok.rl.weights import sequence_weights

VOCAB, MAX_TOKENS = 5, 8
PPO = PolicySettings("ppo", 0.2, 0.3, dual_clip=3.0)
GSPO = PolicySettings("gspo", 0.05, 0.05)
CISPO = PolicySettings("cispo", 1.0, 0.5)
MEANS = ("token", "prompt", "sequence", "constant")


class Responses(NamedTuple):
    """A step's responses, each with its tokens, what it saw, its old log-probabilities and its worth."""

    inputs: list[torch.Tensor]
    targets: list[torch.Tensor]
    old: list[torch.Tensor]
    worth: list[float]
    weights: list[float]

    def part(self, chosen: list[int]) -> "Responses":
        return Responses(*([column[i] for i in chosen] for column in self))


def random_step(mean: str, rewards: np.ndarray, seed: int = 0) -> Responses:
    """Draws responses of 1 to 8 tokens; groups of equal rewards are not used."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, MAX_TOKENS + 1, rewards.shape)
    values, usable = advantages(rewards, baseline="group", scale="group")
    used = [[bool(use)] * rewards.shape[1] for use in usable]
    weights = sequence_weights(lengths.tolist(), used, mean=mean, max_tokens=MAX_TOKENS)
    flat = lengths.flatten().tolist()
    return Responses(
        [torch.tensor(rng.normal(size=(n, 3))) for n in flat],
        [torch.tensor(rng.integers(0, VOCAB, n)) for n in flat],
        [torch.tensor(-1.6 + rng.normal(0, 0.3, n)) for n in flat],
        values.flatten().tolist(),
        [w for group in weights for w in group],
    )


def step_loss(model: torch.Tensor, responses: Responses, settings: PolicySettings) -> torch.Tensor:
    """Returns the weighted loss of some responses, as a learner computes a micro-batch's."""
    lengths = torch.tensor([len(x) for x in responses.targets])
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    log_probs = chosen_log_probs(torch.cat(responses.inputs) @ model, torch.cat(responses.targets))
    old = torch.cat(responses.old)
    worth = torch.tensor(responses.worth, dtype=torch.float64)[sequence]
    loss = policy_terms(log_probs, old, worth, sequence, settings).loss + 0.1 * kl_loss(log_probs, old, "k2")
    return (loss * torch.tensor(responses.weights, dtype=torch.float64)[sequence]).sum()


def gradient_of(parts: list[Responses], settings: PolicySettings) -> tuple[float, torch.Tensor]:
    """Returns loss and gradient, added up over micro-batches."""
    generator = torch.Generator().manual_seed(1)
    model = torch.randn(3, VOCAB, dtype=torch.float64, generator=generator).requires_grad_()
    total = 0.0
    for part in parts:
        loss = step_loss(model, part, settings)
        loss.backward()
        total += float(loss.detach())
    assert model.grad is not None
    return total, model.grad


REWARDS = np.array([[1.0, 0.0, 0.5], [0.2, 0.2, 0.9], [0.0, 1.0, 1.0], [0.3, 0.1, 0.7]])


@pytest.mark.parametrize("settings", [PPO, GSPO, CISPO], ids=lambda settings: settings.kind)
@pytest.mark.parametrize("mean", MEANS)
def test_micro_batches_and_learners_do_not_change_loss_or_gradient(mean: str, settings: PolicySettings):
    step = random_step(mean, REWARDS)
    whole = gradient_of([step], settings)
    order = np.random.default_rng(2).permutation(12).tolist()
    singles = gradient_of([step.part([i]) for i in order], settings)
    uneven = gradient_of([step.part(order[:7]), step.part(order[7:8]), step.part(order[8:])], settings)
    first = gradient_of([step.part([0, 1]), step.part([2, 3, 4, 5, 6])], settings)
    second = gradient_of([step.part([7, 8, 9]), step.part([10, 11])], settings)
    learners = first[0] + second[0], first[1] + second[1]
    for loss, gradient in (singles, uneven, learners):
        assert loss == pytest.approx(whole[0], rel=1e-12)
        assert torch.allclose(gradient, whole[1], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("mean", MEANS)
def test_groups_of_equal_rewards_change_neither_loss_nor_denominator(mean: str):
    mixed = np.concatenate([REWARDS, np.ones((3, 3))])
    step = random_step(mean, mixed)
    without = step.part(list(range(12)))
    lengths = [[len(x) for x in without.targets[i : i + 3]] for i in range(0, 12, 3)]
    alone = sequence_weights(lengths, [[True] * 3] * 4, mean=mean, max_tokens=MAX_TOKENS)
    assert without.weights == [w for group in alone for w in group]
    loss, gradient = gradient_of([step], PPO)
    expected_loss, expected = gradient_of([without], PPO)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    assert torch.allclose(gradient, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("settings", [PPO, GSPO, CISPO], ids=lambda settings: settings.kind)
def test_a_step_of_equal_rewards_only_has_no_gradient(settings: PolicySettings):
    loss, gradient = gradient_of([random_step("token", np.ones((2, 3)))], settings)
    assert loss == 0 and not gradient.any()


ON_POLICY = {
    # One group with rewards 1, 0, 0 of lengths 1, 2, 1: mean 1/3, deviation sqrt(1/3).
    "grpo": (PPO, "group", "group", "token", [2 / 3 * 3**0.5 / 4, -1 / 3 * 3**0.5 / 4, -1 / 3 * 3**0.5 / 4]),
    "dr_grpo": (PPO, "group", "none", "constant", [2 / 3 / 24, -1 / 3 / 24, -1 / 3 / 24]),
    "rloo": (
        PolicySettings("reinforce", 0.0, 0.0),
        "leave_one_out",
        "none",
        "constant",
        [1 / 24, -1 / 48, -1 / 48],
    ),
    "gspo": (GSPO, "group", "none", "sequence", [2 / 9, -1 / 18, -1 / 9]),
    "cispo": (CISPO, "group", "none", "token", [1 / 6, -1 / 12, -1 / 12]),
}
"""Loss, baseline, scale, mean, and how much a token of each response pushes its log-probability up."""


@pytest.mark.parametrize("name", ON_POLICY)
def test_on_policy_gradients_are_those_derived_by_hand(name: str):
    settings, baseline, scale, mean, push = ON_POLICY[name]
    values, _ = advantages(np.array([[1.0, 0.0, 0.0]]), baseline=baseline, scale=scale, eps=0.0)
    weights = sequence_weights([[1, 2, 1]], [[True] * 3], mean=mean, max_tokens=MAX_TOKENS)[0]
    sequence, targets = torch.tensor([0, 1, 1, 2]), torch.tensor([2, 0, 1, 3])
    logits = torch.tensor([[0.0, 1.0, -1.0, 0.5]] * 4, dtype=torch.float64).requires_grad_()
    log_probs = chosen_log_probs(logits, targets)
    worth = torch.tensor(values[0])[sequence]
    terms = policy_terms(log_probs, log_probs, worth, sequence, settings)
    (terms.loss * torch.tensor(weights, dtype=torch.float64)[sequence]).sum().backward()
    up = torch.tensor(push, dtype=torch.float64)[sequence, None]
    by_hand = -up * (torch.eye(4, dtype=torch.float64)[targets] - logits.detach().softmax(1))
    assert logits.grad is not None and torch.allclose(logits.grad, by_hand, atol=1e-12)


BANDITS = {
    "grpo": (PolicySettings("ppo", 0.2, 0.2), "group", "group", "token"),
    "dr_grpo": (PolicySettings("ppo", 0.2, 0.2), "group", "none", "constant"),
    "dapo": (PolicySettings("ppo", 0.2, 0.28, dual_clip=3.0), "group", "group", "token"),
    "gspo": (PolicySettings("gspo", 3e-4, 4e-4), "group", "group", "sequence"),
    "cispo": (PolicySettings("cispo", 1.0, 4.0), "group", "batch", "prompt"),
    "rloo": (PolicySettings("reinforce", 0.0, 0.0), "leave_one_out", "none", "sequence"),
}
PAYS = torch.tensor([0.1, 1.0, 0.3])


def bandit_steps(settings: PolicySettings, baseline: str, scale: str, mean: str) -> Iterator[float]:
    """Pulls two arms per response, 6 groups of 4 a step with two updates; gives the expected reward."""
    generator = torch.Generator().manual_seed(0)
    policy = torch.zeros(2, 3, requires_grad=True)  # an arm for each of the two pulls
    optimizer = torch.optim.Adam([policy], lr=0.05)
    sequence = torch.arange(24).repeat_interleave(2)
    for _ in range(200):
        pulls = torch.multinomial(policy.detach().softmax(1), 24, replacement=True, generator=generator).T
        rewards = PAYS[pulls].mean(dim=1).reshape(6, 4).double().numpy()
        values, usable = advantages(rewards, baseline=baseline, scale=scale)
        used = [[bool(use)] * 4 for use in usable]
        weights = sequence_weights([[2] * 4] * 6, used, mean=mean, max_tokens=2)
        worth, weight = (torch.tensor(x, dtype=torch.float32).flatten()[sequence] for x in (values, weights))
        old = None
        for _ in range(2):
            log_probs = chosen_log_probs(policy.repeat(24, 1), pulls.flatten())
            old = log_probs.detach() if old is None else old
            loss = (policy_terms(log_probs, old, worth, sequence, settings).loss * weight).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield float((policy.detach().softmax(1) @ PAYS).mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", BANDITS)
def test_a_bandit_finds_the_arm_that_pays(name: str):
    expected = list(bandit_steps(*BANDITS[name]))
    assert expected[0] < 0.6 and expected[-1] > 0.9
