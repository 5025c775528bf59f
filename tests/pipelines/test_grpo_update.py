"""From rewards to shares: what teaches nothing is left out, all else is learnt from exactly once."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pipelines.grpo.groups import Outline, Share
from pipelines.grpo.learn.algorithms import AlgorithmConfig
from pipelines.grpo.learn.update import Update, plan_update

MEANS = ("token", "prompt", "sequence", "constant")
REWARDS = np.array([[0.0, 1.0, 0.5], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0], [0.2, 0.1, 0.1], [1.0, 0.0, 1.0]])


def outline_of(
    draw: int, lengths: Sequence[int] = (2, 3, 4), complete: Sequence[bool] = (True,) * 3
) -> Outline:
    return Outline(
        draw=draw,
        version=0,
        targets=1,
        lengths=tuple(lengths),
        complete=tuple(complete),
        prompt_tokens=10 + draw,
    )


def plan(
    rewards: np.ndarray = REWARDS,
    *,
    outlines: Sequence[Outline] | None = None,
    learners: int = 1,
    most_groups: int | None = None,
    **settings: Any,
) -> Update:
    outlines = outlines or [outline_of(draw) for draw in range(len(rewards))]
    refs = [f"group {one.draw}" for one in outlines]
    return plan_update(
        outlines,
        refs,
        rewards,
        AlgorithmConfig(**settings),
        learners=learners,
        max_tokens=8,
        most_groups=most_groups,
    )


def shares_of(update: Update) -> list[Share]:
    """What is learnt from, in the order of the groups."""
    found = [share for part in update.parts for own in part for share in own if any(share.weights)]
    return sorted(found, key=lambda share: share.group)


@pytest.mark.parametrize("mean", MEANS)
def test_groups_of_equal_rewards_change_neither_the_loss_nor_its_divisor(mean):
    usable = REWARDS[[0, 2, 3, 4]]
    outlines = [outline_of(draw) for draw in (0, 2, 3, 4)]
    with_it, without = plan(mean=mean), plan(usable, outlines=outlines, mean=mean)
    assert shares_of(with_it) == shares_of(without)
    assert not with_it.used[1].any() and with_it.used[[0, 2, 3, 4]].all()
    counted = plan(mean=mean, mask_zero_variance=False)
    assert counted.used.all() and not counted.advantages[1].any()
    assert shares_of(counted) != shares_of(with_it)


def test_the_scale_of_a_batch_does_not_see_groups_of_equal_rewards():
    with_it = plan(scale="batch")
    without = plan(REWARDS[[0, 2, 3, 4]], outlines=[outline_of(d) for d in (0, 2, 3, 4)], scale="batch")
    np.testing.assert_array_equal(with_it.advantages[[0, 2, 3, 4]], without.advantages)


def test_weights_of_a_step_add_up_as_its_mean_says():
    lengths = [(2, 3, 4), (1, 1, 1), (5, 5, 6), (7, 1, 2), (3, 3, 3)]
    outlines = [outline_of(draw, each) for draw, each in enumerate(lengths)]
    tokens = {
        "group 0": lengths[0],
        "group 2": lengths[2],
        "group 3": lengths[3],
        "group 4": lengths[4],
    }
    for mean in ("token", "prompt", "sequence"):
        total = sum(
            weight * tokens[share.group][response]
            for share in shares_of(plan(outlines=outlines, mean=mean))
            for response, weight in zip(share.responses, share.weights, strict=True)
        )
        assert total == pytest.approx(1)
    constant = shares_of(plan(outlines=outlines, mean="constant"))
    assert {weight for share in constant for weight in share.weights} == {1 / (12 * 8)}


def test_dynamic_sampling_learns_from_the_first_groups_that_differ():
    update = plan(most_groups=3)
    assert [share.group for share in shares_of(update)] == ["group 0", "group 2", "group 3"]
    assert update.used.sum(axis=1).tolist() == [3, 0, 3, 3, 0]
    assert shares_of(update) == shares_of(plan(REWARDS[:4]))  # the surplus is not in the divisor either
    assert update.advantages[4].any()  # it is there nevertheless


def test_cut_replies_are_compared_with_and_not_learnt_from():
    outlines = [outline_of(0, complete=(True, False, True)), outline_of(1, complete=(False,) * 3)]
    rewards = REWARDS[[0, 2]]
    update = plan(rewards, outlines=outlines, mask_cut=True)
    (share,) = shares_of(update)
    assert share.responses == (0, 2) and share.weights == (1 / 6, 1 / 6)
    np.testing.assert_array_equal(update.advantages, plan(rewards, outlines=outlines).advantages)
    assert share.advantages == (update.advantages[0, 0], update.advantages[0, 2])
    assert len(shares_of(plan(rewards, outlines=outlines))) == 2


@pytest.mark.parametrize("learners", [1, 2, 3])
@pytest.mark.parametrize("inner_steps", [1, 2, 3])
def test_inner_steps_and_learners_share_out_every_used_group_once(inner_steps, learners):
    rng = np.random.default_rng(inner_steps)
    rewards = rng.integers(0, 2, (11, 3)).astype(float)
    update = plan(rewards, inner_steps=inner_steps, learners=learners)
    assert len(update.parts) == inner_steps
    assert all(len(part) == learners and all(part) for part in update.parts)
    found = Counter(share.group for share in shares_of(update))
    assert found == {f"group {n}": 1 for n in range(11) if np.ptp(rewards[n])}
    sizes = [sum(len(own) for own in part) for part in update.parts]
    assert max(sizes) - min(sizes) <= 1 or learners > min(sizes)
    for part in update.parts:  # every optimizer step is a whole mean of its own
        weights = [(share, weight) for own in part for share in own for weight in share.weights]
        assert sum(weight * (2, 3, 4)[n % 3] for n, (_, weight) in enumerate(weights)) == pytest.approx(1)


def test_a_learner_without_prompts_reads_one_response_that_counts_nothing():
    update = plan(REWARDS[:1], learners=3)
    ((real, first, second),) = update.parts
    assert [share.responses for share in real] == [(0, 1, 2)]
    for idle in (first, second):
        assert idle == [Share("group 0", (0,), advantages=(0.0,), weights=(0.0,))]


def test_nothing_to_learn_is_no_optimizer_step():
    assert plan(np.ones((3, 3)), learners=2, inner_steps=2).parts == []
    cut = [outline_of(0, complete=(False,) * 3)]
    assert plan(REWARDS[:1], outlines=cut, mask_cut=True).parts == []


def test_learners_get_about_as_many_tokens():
    rewards = np.tile([0.0, 1.0, 0.0], (8, 1))
    outlines = [outline_of(draw, (1, 1, 100 if draw == 5 else 1)) for draw in range(8)]
    ((first, second),) = plan(rewards, outlines=outlines, learners=2).parts
    costs = [
        sum(
            one.prompt_tokens * 3 + sum(one.lengths)
            for one in outlines
            if f"group {one.draw}" in {share.group for share in own}
        )
        for own in (first, second)
    ]
    assert abs(costs[0] - costs[1]) < 60 and {len(first), len(second)} == {3, 5}
