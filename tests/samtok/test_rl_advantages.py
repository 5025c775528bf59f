"""Advantages and weights equal what their papers write down, and groups that teach nothing count nowhere."""

import subprocess
import sys

import numpy as np
import pytest

from samtok.rl.advantages import advantages
from samtok.rl.weights import sequence_weights

REWARDS = np.array([[1.0, 0.0, 0.5, 0.25], [0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 0.0, 1.0]])
LENGTHS = [[3, 1, 4], [2, 2], [5]]
USED = [[True, False, True], [True, True], [False]]


def test_group_scale_is_that_of_grpo_with_the_unbiased_deviation():
    values, usable = advantages(REWARDS, baseline="group", scale="group", eps=1e-6)
    for row, rewards in enumerate(REWARDS):
        mean = sum(rewards) / 4
        deviation = (sum((r - mean) ** 2 for r in rewards) / 3) ** 0.5
        assert values[row] == pytest.approx([(r - mean) / (deviation + 1e-6) for r in rewards])
    assert usable.tolist() == [True, False, True]


def test_no_scale_is_the_difference_alone():
    values, _ = advantages(REWARDS, baseline="group", scale="none")
    assert values[0] == pytest.approx([0.5625, -0.4375, 0.0625, -0.1875])
    assert values[2] == pytest.approx([-0.25, -0.25, -0.25, 0.75])


def test_leaving_one_out_compares_with_the_mean_of_the_others():
    values, _ = advantages(REWARDS, baseline="leave_one_out", scale="none")
    for row in (0, 2):
        others = [np.delete(REWARDS[row], response).mean() for response in range(4)]
        assert values[row] == pytest.approx(REWARDS[row] - others)


@pytest.mark.parametrize("baseline", ["group", "leave_one_out"])
def test_batch_scale_is_the_deviation_over_usable_groups(baseline: str):
    bare, _ = advantages(REWARDS, baseline=baseline, scale="none")
    values, _ = advantages(REWARDS, baseline=baseline, scale="batch", eps=0.5)
    assert values == pytest.approx(bare / (np.std(bare[[0, 2]], ddof=1) + 0.5))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_are_worth_nothing_even_with_rounding_noise(scale: str):
    rewards = np.array([[0.1 + 0.2, 0.3, 0.3], [0.0, 0.0, 0.0]])
    values, usable = advantages(rewards, baseline="group", scale=scale, eps=0.0)
    assert not values.any() and not usable.any()


def test_small_differences_are_differences():
    assert advantages(np.array([[0.0, 1e-6]]), baseline="group", scale="none").usable.all()


def test_float32_rewards_stay_float32_and_no_groups_give_none():
    empty = advantages(np.zeros((0, 4), np.float32), baseline="group", scale="batch")
    assert empty.values.shape == (0, 4) and empty.values.dtype == np.float32 and empty.usable.shape == (0,)
    assert advantages(np.eye(2, dtype=np.float32), baseline="group", scale="batch").values.dtype == np.float32


@pytest.mark.parametrize("baseline", ["group", "leave_one_out"])
def test_a_single_response_has_nothing_to_be_compared_with(baseline: str):
    with pytest.raises(ValueError, match="at least 2, got 1"):
        advantages(np.ones((3, 1)), baseline=baseline, scale="group")


def test_a_reward_that_is_no_number_is_named():
    with pytest.raises(ValueError, match="response 1 of group 2 is nan, one of 2"):
        advantages(
            np.array([[0.0, 1.0], [0.0, 1.0], [0.0, np.nan], [np.inf, 0]]), baseline="group", scale="none"
        )


def test_weights_of_every_mean_are_those_worked_out_by_hand():
    def weights(mean: str) -> list[list[float]]:
        return sequence_weights(LENGTHS, USED, mean=mean, max_tokens=10)

    assert weights("token") == [[1 / 11, 0, 1 / 11], [1 / 11, 1 / 11], [0]]
    assert weights("prompt") == [[1 / 14, 0, 1 / 14], [1 / 8, 1 / 8], [0]]
    assert weights("sequence") == [[1 / 12, 0, 1 / 16], [1 / 8, 1 / 8], [0]]
    assert weights("constant") == [[1 / 40, 0, 1 / 40], [1 / 40, 1 / 40], [0]]


@pytest.mark.parametrize("mean", ["token", "prompt", "sequence"])
def test_a_loss_of_one_per_token_has_a_mean_of_one(mean: str):
    weights = sequence_weights(LENGTHS, USED, mean=mean)
    total = sum(w * n for pair in zip(weights, LENGTHS, strict=True) for w, n in zip(*pair, strict=True))
    assert total == pytest.approx(1)


@pytest.mark.parametrize("mean", ["token", "prompt", "sequence", "constant"])
def test_nothing_used_weighs_nothing(mean: str):
    unused = [[False] * len(group) for group in USED]
    assert sequence_weights(LENGTHS, unused, mean=mean, max_tokens=5) == [[0, 0, 0], [0, 0], [0]]
    assert sequence_weights([], [], mean=mean, max_tokens=5) == []


def test_an_empty_response_may_be_there_but_not_be_used():
    assert sequence_weights([[0, 2]], [[False, True]], mean="sequence") == [[0, 0.5]]
    with pytest.raises(ValueError, match="response 0 of group 0 is used but has 0 tokens"):
        sequence_weights([[0, 2]], [[True, True]], mean="token")


def test_other_shapes_and_a_missing_constant_are_refused():
    with pytest.raises(ValueError, match=r"groups of \[2\] and \[1\]"):
        sequence_weights([[1, 2]], [[True]], mean="token")
    with pytest.raises(ValueError, match=r"groups of \[2, 1\] and \[2\]"):
        sequence_weights([[1, 2], [1]], [[True, True]], mean="token")
    with pytest.raises(ValueError, match="max_tokens, which must be >= 1, got None"):
        sequence_weights([[1]], [[True]], mean="constant")


def test_advantages_and_weights_load_no_torch():
    code = "import sys, samtok.rl.advantages, samtok.rl.weights; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
