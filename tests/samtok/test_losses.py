"""Mask losses equal plain NumPy sums, and points go where the logits are undecided."""

import numpy as np
import pytest
import torch

from samtok import losses as module
from samtok.losses import MaskLosses, at_points, binary_cross_entropy, dice


def keys_of(logits: torch.Tensor, seed: int) -> torch.Tensor:
    return torch.arange(len(logits)) * 1000 + seed


def mask_losses(logits: torch.Tensor, targets: torch.Tensor, seed: int = 0, **options) -> MaskLosses:
    options = {"num_points": 12544, "oversample": 3.0, "importance": 0.75} | options
    return module.mask_losses(logits, targets, keys_of(logits, seed), **options)


def uncertain_points(logits: torch.Tensor, seed: int = 0, **options) -> torch.Tensor:
    options = {"oversample": 3.0, "importance": 0.75} | options
    return module.uncertain_points(logits, keys_of(logits, seed), **options)


def random_masks(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    logits, targets = rng.normal(0, 3, shape), rng.random(shape)
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(targets, dtype=torch.float32)


def numpy_losses(logits: torch.Tensor, targets: torch.Tensor) -> tuple[float, float]:
    x, t = (a.double().numpy().reshape(len(a), -1) for a in (logits, targets))
    p = 1 / (1 + np.exp(-x))
    bce = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
    scores = (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)
    return float(bce), float((1 - scores).mean())


def test_small_logits_are_compared_whole():
    logits, targets = random_masks(5, 16, 16)
    losses = mask_losses(logits, targets)
    bce, overlap = numpy_losses(logits, targets)
    assert float(losses.bce) == pytest.approx(bce, rel=1e-5)
    assert float(losses.dice) == pytest.approx(overlap, rel=1e-5)


def test_as_many_pixels_as_points_need_no_sampling():
    logits, targets = random_masks(2, 8, 8)
    assert mask_losses(logits, targets, 0, num_points=64) == mask_losses(logits, targets, 1, num_points=64)
    assert mask_losses(logits, targets, 0, num_points=63) != mask_losses(logits, targets, 1, num_points=63)


def test_larger_targets_count_as_the_share_of_each_cell():
    logits, targets = random_masks(3, 8, 8)
    cells = torch.zeros(3, 32, 32)
    cells[:, 1:3, 4:7] = 1  # 6 of the 16 pixels of cell (0, 1), which spans rows 0..3 and columns 4..7
    shares = torch.zeros(3, 8, 8)
    shares[:, 0, 1] = 6 / 16
    assert mask_losses(logits, cells).bce == pytest.approx(numpy_losses(logits, shares)[0], rel=1e-5)
    with pytest.raises(ValueError, match="at least as large"):
        mask_losses(logits, targets[:, :4])


def test_no_masks_give_losses_of_zero():
    losses = mask_losses(torch.zeros(0, 8, 8), torch.zeros(0, 8, 8))
    assert (float(losses.bce), float(losses.dice)) == (0, 0)


def test_a_perfect_mask_costs_almost_nothing_and_its_opposite_much():
    target = torch.zeros(1, 16, 16)
    target[0, 3:9, 2:12] = 1
    right, wrong = 40 * (target - 0.5), -40 * (target - 0.5)
    good, bad = mask_losses(right, target), mask_losses(wrong, target)
    assert float(good.bce) < 1e-6 and float(good.dice) < 1e-6
    assert float(bad.bce) == pytest.approx(20, abs=1e-3) and float(bad.dice) > 0.95


def test_sampled_losses_equal_numpy_at_the_sampled_points():
    logits, targets = random_masks(3, 20, 24, seed=2)
    sampled = mask_losses(logits, targets, 5, num_points=50)
    points = uncertain_points(logits, 5, num_points=50)
    bce, overlap = numpy_losses(at_points(logits, points), at_points(targets, points))
    assert float(sampled.bce) == pytest.approx(bce, rel=1e-5)
    assert float(sampled.dice) == pytest.approx(overlap, rel=1e-5)


def test_points_at_pixel_centres_read_the_pixels():
    logits, _ = random_masks(2, 4, 6)
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    centres = torch.stack([(columns + 0.5) / 6, (rows + 0.5) / 4], dim=-1).reshape(1, 24, 2)
    read = at_points(logits, centres.expand(2, -1, -1))
    torch.testing.assert_close(read, logits.flatten(1), atol=1e-5, rtol=0)


def test_a_point_between_two_pixels_reads_their_mean():
    ramp = torch.arange(4.0)[None, None].expand(1, 4, 4)
    assert float(at_points(ramp, torch.tensor([[[0.5, 0.5]]]))) == pytest.approx(1.5)


def test_three_quarters_of_the_points_lie_where_logits_are_undecided():
    logits = torch.full((2, 32, 32), 8.0)
    logits[:, :, 16:] = 0.0  # the right half is undecided
    points = uncertain_points(logits, num_points=400)
    assert points.shape == (2, 400, 2)
    first, rest = points[:, :300, 0], points[:, 300:, 0]
    assert float(first.min()) > 0.5  # the left edge of the right half
    assert 0.3 < float((rest < 0.5).float().mean()) < 0.7


@pytest.mark.parametrize(("importance", "undecided"), [(0.0, 0.25), (1.0, 0.75)])
def test_importance_sets_the_share_of_uncertain_points(importance, undecided):
    logits = torch.full((1, 32, 32), 8.0)
    logits[:, :, 24:] = 0.0
    points = uncertain_points(logits, num_points=2000, importance=importance)
    # with an oversampling of 3 and a quarter undecided, three quarters of the points can be
    assert float((points[..., 0] > 0.75).float().mean()) == pytest.approx(undecided, abs=0.05)


def test_points_repeat_under_a_key_and_lie_in_the_image():
    logits, _ = random_masks(2, 16, 16)
    once, again = (uncertain_points(logits, 3, num_points=40) for _ in range(2))
    other = uncertain_points(logits, 4, num_points=40)
    assert torch.equal(once, again) and not torch.equal(once, other)
    assert float(once.min()) >= 0 and float(once.max()) <= 1


def test_the_points_of_a_mask_do_not_depend_on_its_neighbours():
    logits, targets = random_masks(6, 24, 24)
    keys = torch.tensor([5, -7, 2**62, 0, 1, -(2**63)])
    options = {"num_points": 60, "oversample": 3.0, "importance": 0.75}
    whole = module.mask_losses(logits, targets, keys, **options)
    parts = [
        module.mask_losses(logits[i : i + 1], targets[i : i + 1], keys[i : i + 1], **options)
        for i in range(6)
    ]
    assert float(whole.bce) == pytest.approx(sum(float(part.bce) for part in parts) / 6, rel=1e-6)
    assert float(whole.dice) == pytest.approx(sum(float(part.dice) for part in parts) / 6, rel=1e-6)


def test_uniform_points_are_those_of_splitmix64_and_fill_the_square_evenly():
    first = module.uniform_points(torch.tensor([0]), 1)[0, 0]
    published = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4)  # its first two outputs from state 0
    assert first.tolist() == [(number >> 40) / 2**24 for number in published]
    points = module.uniform_points(torch.tensor([3, 4]), 20_000)
    cells = (points[..., 0] * 10).long() * 10 + (points[..., 1] * 10).long()
    for of_mask in cells:
        counts = torch.bincount(of_mask, minlength=100)
        assert int(counts.min()) > 140 and int(counts.max()) < 260  # 200 each, give or take four sigma


@pytest.mark.parametrize("options", [{"oversample": 0.5}, {"importance": 1.2}])
def test_impossible_sampling_is_refused(options):
    with pytest.raises(ValueError, match="oversample must be >= 1"):
        uncertain_points(torch.zeros(1, 8, 8), num_points=10, **options)


def test_gradients_reach_the_logits_only():
    logits, targets = random_masks(2, 24, 24)
    logits.requires_grad_()
    losses = mask_losses(logits, targets, num_points=100)
    (losses.bce + losses.dice).backward()
    assert logits.grad is not None and float(logits.grad.abs().sum()) > 0


def test_dice_is_the_mean_over_masks_and_cross_entropy_over_points():
    logits, targets = random_masks(4, 30)
    one_by_one = [float(dice(logits[i : i + 1], targets[i : i + 1])) for i in range(4)]
    assert float(dice(logits, targets)) == pytest.approx(np.mean(one_by_one), rel=1e-5)
    assert float(binary_cross_entropy(logits, targets)) == pytest.approx(
        numpy_losses(logits, targets)[0], rel=1e-5
    )
