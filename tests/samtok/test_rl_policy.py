"""Policy losses equal plain NumPy, and their gradients are what the papers say they are."""

import numpy as np
import pytest
import torch

from samtok.rl.policy import PolicySettings, Terms, policy_terms, truncated_importance, unusual_clips

LENGTHS = (3, 1, 5, 2)
SEQUENCE = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
SETTINGS = {
    "ppo": PolicySettings("ppo", 0.2, 0.3),
    "dual": PolicySettings("ppo", 0.2, 0.3, dual_clip=1.5),
    "gspo": PolicySettings("gspo", 0.1, 0.05),
    "gspo dual": PolicySettings("gspo", 0.1, 0.05, dual_clip=1.2),
    "cispo": PolicySettings("cispo", 0.3, 0.4),
    "reinforce": PolicySettings("reinforce", 0.2, 0.2),
}


def random_tokens(seed: int, spread: float = 0.5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns log-probabilities now and before, and one advantage per sequence, in float64."""
    rng = np.random.default_rng(seed)
    old = -rng.exponential(1.0, len(SEQUENCE)) - 0.1
    now = old + rng.normal(0, spread, len(SEQUENCE))
    values = rng.normal(0, 1, len(LENGTHS))[SEQUENCE.numpy()]
    return torch.tensor(now, requires_grad=True), torch.tensor(old), torch.tensor(values)


def terms_of(name: str, now: torch.Tensor, old: torch.Tensor, values: torch.Tensor) -> Terms:
    return policy_terms(now, old, values, SEQUENCE, SETTINGS[name])


def numpy_losses(name: str, now: torch.Tensor, old: torch.Tensor, values: torch.Tensor) -> list[float]:
    settings, losses = SETTINGS[name], []
    p, q, a = (x.detach().numpy() for x in (now, old, values))
    for token, home in enumerate(SEQUENCE.numpy()):
        mine = SEQUENCE.numpy() == home if settings.kind == "gspo" else [token]
        r = np.exp(np.mean(p[mine] - q[mine]))
        clipped = min(max(r, 1 - settings.clip_low), 1 + settings.clip_high)
        if settings.kind == "reinforce":
            loss = -a[token] * r
        elif settings.kind == "cispo":
            loss = -a[token] * clipped * p[token]
        elif a[token] > 0:
            loss = -a[token] * min(r, clipped)
        else:
            loss = -a[token] * min(max(r, clipped), settings.dual_clip or np.inf)
        losses.append(loss)
    return losses


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SETTINGS)
def test_losses_equal_plain_numpy(name: str, seed: int):
    tokens = random_tokens(seed)
    assert terms_of(name, *tokens).loss.tolist() == pytest.approx(numpy_losses(name, *tokens), rel=1e-12)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "cispo"])
def test_gradients_equal_finite_differences(name: str):
    now, old, values = random_tokens(4)
    assert torch.autograd.gradcheck(lambda x: terms_of(name, x, old, values).loss, [now])


@pytest.mark.parametrize("name", SETTINGS)
def test_at_the_old_policy_the_gradient_is_that_of_the_log_probability(name: str):
    now, _, values = random_tokens(5)
    terms = terms_of(name, now, now, values)  # also: no gradient flows to the old policy
    (gradient,) = torch.autograd.grad(terms.loss.sum(), now)
    assert torch.allclose(gradient, -values)
    assert torch.equal(terms.ratio, torch.ones_like(values))
    assert not (terms.clipped_low | terms.clipped_high).any()


def test_a_clipped_token_is_flagged_and_has_no_gradient():
    log_ratio = torch.tensor([-0.5, -0.5, 0.5, 0.5, 0.1, 0.1], dtype=torch.float64)
    values = torch.tensor([1.0, -1, 1, -1, 1, -1], dtype=torch.float64)
    now = log_ratio.clone().requires_grad_()
    terms = policy_terms(now, torch.zeros_like(now), values, torch.arange(6), SETTINGS["ppo"])
    (gradient,) = torch.autograd.grad(terms.loss.sum(), now)
    assert terms.clipped_low.tolist() == [False, True, False, False, False, False]
    assert terms.clipped_high.tolist() == [False, False, True, False, False, False]
    assert (gradient == 0).tolist() == (terms.clipped_low | terms.clipped_high).tolist()


def test_dual_clip_bounds_the_loss_of_bad_tokens_only():
    now = torch.tensor([2.0, 2.0], requires_grad=True)
    values = torch.tensor([-2.0, 2.0])
    settings = PolicySettings("ppo", 0.2, float("inf"), dual_clip=3.0)
    terms = policy_terms(now, torch.zeros(2), values, torch.arange(2), settings)
    assert terms.loss.tolist() == pytest.approx([6.0, -2 * np.exp(2)])
    assert torch.autograd.grad(terms.loss.sum(), now)[0].tolist() == pytest.approx([0, -2 * np.exp(2)])


def test_gspo_with_sequences_of_one_token_is_ppo():
    now, old, values = random_tokens(6)
    single = torch.arange(len(now))
    results = []
    for kind in ("ppo", "gspo"):
        terms = policy_terms(now, old, values, single, PolicySettings(kind, 0.2, 0.3, dual_clip=3.0))
        results.append([*terms, *torch.autograd.grad(terms.loss.sum(), now)])
    assert results[0][2].any() and results[0][3].any()  # both bounds are at work
    for ppo, gspo in zip(*results, strict=True):
        assert torch.equal(ppo, gspo)


def test_gspo_weighted_by_sequence_is_the_objective_of_its_paper():
    now, old, values = random_tokens(7)
    lengths = torch.tensor(LENGTHS)[SEQUENCE]
    loss = (terms_of("gspo", now, old, values).loss / lengths / len(LENGTHS)).sum()
    expected = 0.0
    for p, q, a in zip(*(x.detach().split(LENGTHS) for x in (now, old, values)), strict=True):
        s = (p.sum().exp() / q.sum().exp()) ** (1 / len(p))  # (pi / pi_old) ** (1 / |y|)
        expected -= min(s * a[0], s.clamp(0.9, 1.05) * a[0]) / len(LENGTHS)
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-12)


def test_cispo_keeps_the_gradient_of_every_token_through_its_log_probability_only():
    now, old, values = random_tokens(8)
    terms = terms_of("cispo", now, old, values)
    (gradient,) = torch.autograd.grad(terms.loss.sum(), now)
    ratio = (now - old).exp().detach()
    assert torch.allclose(gradient, -values * ratio.clamp(0.7, 1.4))
    assert torch.equal(terms.clipped_low, ratio < 0.7) and terms.clipped_low.any()
    assert torch.equal(terms.clipped_high, ratio > 1.4) and terms.clipped_high.any()


def test_cispo_without_a_lower_bound_keeps_small_ratios():
    settings = PolicySettings("cispo", 1.0, 4.0)
    terms = policy_terms(
        torch.tensor([-9.0]), torch.tensor([-1.0]), torch.ones(1), torch.zeros(1).long(), settings
    )
    assert float(terms.loss) == pytest.approx(9 * np.exp(-8), rel=1e-5) and not terms.clipped_low.any()


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("distance", [-1e4, 1e4])
def test_far_policies_give_numbers(name: str, distance: float):
    now = torch.full((len(SEQUENCE),), -1.0, requires_grad=True)
    terms = terms_of(name, now, now.detach() - distance, torch.linspace(-1, 1, len(SEQUENCE)))
    (gradient,) = torch.autograd.grad(terms.loss.sum(), now)
    assert terms.loss.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("name", SETTINGS)
def test_no_tokens_have_no_loss(name: str):
    nothing = torch.zeros(0, requires_grad=True)
    terms = policy_terms(nothing, nothing, nothing, torch.zeros(0).long(), SETTINGS[name])
    terms.loss.sum().backward()
    assert terms.loss.shape == (0,)


def test_bounds_that_cannot_work_are_refused():
    for low, high in ((-0.1, 0.2), (0.2, -0.1), (float("nan"), 0.2)):
        with pytest.raises(ValueError, match="must be >= 0, got"):
            PolicySettings("ppo", low, high)
    for dual in (1.0, float("nan")):
        with pytest.raises(ValueError, match="dual_clip must be > 1"):
            PolicySettings("ppo", 0.2, 0.2, dual_clip=dual)


def test_truncated_importance_makes_up_for_the_sampler():
    now, rollout, _ = random_tokens(9)
    ratio = np.exp((now - rollout).detach().numpy())
    token = truncated_importance(now, rollout, SEQUENCE, cap=1.2, level="token")
    assert token.tolist() == pytest.approx(np.minimum(ratio, 1.2).tolist())
    products = [np.prod(part) for part in np.split(ratio, np.cumsum(LENGTHS)[:-1])]
    whole = truncated_importance(now, rollout, SEQUENCE, cap=1.2, level="sequence")
    assert whole.tolist() == pytest.approx(np.minimum(products, 1.2)[SEQUENCE.numpy()].tolist())
    assert max(products) > 1.2 > min(products)
    assert not token.requires_grad and not whole.requires_grad


def test_a_cap_of_nothing_is_refused():
    now, rollout, _ = random_tokens(9)
    with pytest.raises(ValueError, match="cap must be > 0, got 0"):
        truncated_importance(now, rollout, SEQUENCE, cap=0.0, level="token")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (PolicySettings("gspo", 0.2, 0.2), "gspo needs"),
        (PolicySettings("gspo", 3e-4, 4e-4), None),
        (PolicySettings("cispo", 1.0, 0.28), "cispo needs"),
        (PolicySettings("cispo", 1.0, 4.0), None),
        (PolicySettings("ppo", 3e-4, 4e-4), "ppo needs"),
        (PolicySettings("ppo", 0.2, 4.0), "ppo needs"),
        (PolicySettings("ppo", 0.2, 0.28), None),
        (PolicySettings("reinforce", 9.0, 9.0), None),
    ],
)
def test_bounds_of_another_loss_are_noticed(settings: PolicySettings, said: str | None):
    sentence = unusual_clips(settings)
    assert sentence is None if said is None else sentence is not None and sentence.startswith(said)
