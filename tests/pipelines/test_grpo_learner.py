"""A learner learns the same however its responses are cut, and goes on as if it had never stopped."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.grpo.config import GrpoConfig, LearnerConfig, RolloutConfig
from pipelines.grpo.groups import Group, RolloutTask
from pipelines.grpo.learn.algorithms import AlgorithmConfig, KlConfig
from pipelines.grpo.learn.learner import Learner
from pipelines.training.config import OptimizerConfig
from pipelines.training.steps import TrainingDiverged
from samtok.errors import CheckpointError
from samtok.mllm.adapters import save_pretrained
from samtok.mllm.sampling import Sampled
from tests.engine_state import optimizer_state, put
from tests.grpo import (
    CPU,
    MAX_TOKENS,
    Store,
    World,
    assert_same_learning,
    largest_difference,
    learner_of,
    learnt,
    parts_of,
    rolled,
    some_rewards,
    uneven,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("learner"))


@pytest.fixture(scope="module")
def groups(world) -> list[Group]:
    return uneven(rolled(world.sampler()))


def micro(size: int, **changes: Any) -> LearnerConfig:
    return LearnerConfig(worker=CPU, micro_batch=size, **changes)


@pytest.mark.parametrize("mean", ["token", "prompt", "sequence", "constant"])
def test_the_cut_into_micro_batches_changes_nothing(world, groups, mean):
    algorithm = AlgorithmConfig(mean=mean, importance_cap=2.0)
    cuts = [micro(100), micro(3), micro(1, micro_batch_tokens=90), micro(5, packing=True)]
    whole, *others = (
        learnt(learner_of(world.config(algorithm=algorithm, learner=cut)), groups) for cut in cuts
    )
    for other in others:
        assert_same_learning(whole, other)
    (metrics,) = whole["metrics"]
    tokens = sum(len(said) for group in groups[:-1] for said in group.responses)
    assert metrics["learnt_tokens"] == tokens  # the last group teaches nothing
    assert metrics["mismatch"] < 1e-5 and metrics["gradient_norm"] > 0.01


def test_the_cut_changes_nothing_either_in_later_inner_steps_and_with_recomputed_activations(world, groups):
    algorithm = AlgorithmConfig(inner_steps=2)
    whole = learnt(learner_of(world.config(algorithm=algorithm)), groups, steps=2)
    cut = micro(3, gradient_checkpointing=True)
    three = learnt(learner_of(world.config(algorithm=algorithm, learner=cut)), groups, steps=2)
    assert_same_learning(whole, three, noise=20)  # by AdamW's steps from gradients that are rounding alone
    assert whole["steps"] == 4
    plain = learnt(learner_of(world.config()), groups, steps=2)
    assert plain["steps"] == 2 and largest_difference(plain["weights"], whole["weights"]) > 1e-4


def test_the_old_policy_of_inner_steps_is_that_before_the_first_of_them(world, groups):
    """Else the ratio would be 1 in all of them and nothing would ever be clipped."""
    algorithm = AlgorithmConfig(inner_steps=2, clip_low=0.0, clip_high=0.0)
    config = world.config(algorithm=algorithm, optimizer=OptimizerConfig(lr=1e-2, warmup_steps=0))
    (metrics,) = learnt(learner_of(config), groups)["metrics"]
    assert metrics["clip_high"] + metrics["clip_low"] > 0.1
    (single,) = learnt(learner_of(world.config()), groups)["metrics"]
    assert single["clip_high"] == single["clip_low"] == 0


def test_a_step_makes_good_replies_likelier_and_frozen_parts_stay(world, groups):
    learner = learner_of(world.config(train=dataclasses.replace(world.config().train, vision=False)))
    centred = _centred(groups)
    before, frozen = [_totals(learner, group) for group in groups], _frozen(learner)
    learnt(learner, groups)
    gain = np.subtract([_totals(learner, group) for group in groups], before)
    assert (gain * centred).sum() > 0.01
    assert frozen and all(torch.equal(frozen[name], value) for name, value in _frozen(learner).items())


def _centred(groups: list[Group]) -> np.ndarray:
    rewards = some_rewards(groups)
    return rewards - rewards.mean(axis=1, keepdims=True)


def _frozen(learner: Learner) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in learner.model.named_parameters() if not p.requires_grad}


def test_idle_shares_and_groups_without_weight_add_no_gradient(world, groups):
    config = world.config()
    alone = learner_of(config)
    (own,) = parts_of(groups, config.algorithm)
    alone.learn(0, own)
    beside = learner_of(config)
    (spread,) = parts_of(groups[:1], config.algorithm, learners=2, rewards=some_rewards(groups)[:1])
    assert spread[1][0].weights == (0.0,)
    beside.learn(0, [own[0] + spread[1]])
    one, other = optimizer_state(alone.engine).moments, optimizer_state(beside.engine).moments
    for name in one:
        torch.testing.assert_close(one[name][0], other[name][0], rtol=1e-4, atol=1e-8)


# ---------------------------------------------------------------- reference, importance


@pytest.mark.parametrize("kind", ["k2", "k3", "k3_straight"])
def test_the_distance_to_the_start_is_0_there_and_adds_no_gradient(world, groups, kind):
    without = learnt(learner_of(world.config()), groups)
    algorithm = AlgorithmConfig(kl=KlConfig(weight=0.5, kind=kind))
    learner = learner_of(world.config(algorithm=algorithm))
    assert learner.reference is not None
    found = learnt(learner, groups)
    assert found["metrics"][0]["kl"] == pytest.approx(0, abs=1e-9)
    assert_same_learning(without, found)


def test_the_distance_grows_and_pulls_back(world, groups):
    ends = {}
    for weight in (1e-9, 100.0):
        algorithm = AlgorithmConfig(kl=KlConfig(weight=weight, kind="k2"))
        learner = learner_of(world.config(algorithm=algorithm))
        assert learner.reference is not None
        start = {name: value.clone() for name, value in learner.reference.state_dict().items()}
        ends[weight] = learnt(learner, groups, steps=6)["metrics"][-1]["kl"]
        assert all(torch.equal(start[n], v) for n, v in learner.reference.state_dict().items())
        reference = dict(learner.reference.named_parameters())
        for name, parameter in learner.model.named_parameters():  # frozen weights are there once
            assert (parameter is reference[name]) == (name not in learner.trained), name
    assert 0 < ends[100.0] < 0.5 * ends[1e-9]


def test_the_distance_for_the_reward_is_summed_over_each_response(world, groups):
    algorithm = AlgorithmConfig(kl=KlConfig(weight=0.1, kind="k1", place="reward"))
    learner = learner_of(world.config(algorithm=algorithm))
    zero = learner.drift(*groups)
    assert [len(one) for one in zero] == [4] * len(groups)
    np.testing.assert_allclose(zero, 0, atol=1e-6)
    before = [_totals(learner, group) for group in groups]
    found = learnt(learner, groups, steps=3)
    after = [_totals(learner, group) for group in groups]
    np.testing.assert_allclose(learner.drift(*groups), np.subtract(after, before), atol=1e-4)
    assert np.abs(learner.drift(*groups)).max() > 0.01 and found["metrics"][-1]["kl"] > 0
    in_loss = AlgorithmConfig(kl=KlConfig(weight=1e-9))
    same = learnt(learner_of(world.config(algorithm=in_loss)), groups, steps=3)
    assert largest_difference(same["weights"], found["weights"]) < 1e-5  # the loss itself has none of it


def _totals(learner: Learner, group: Group) -> list[float]:
    """The log-probability of each response."""
    found = []
    for said in group.responses:
        silent = Sampled(said.ids, np.zeros(len(said), np.float32), said.complete)
        parity = learner.parity(dataclasses.replace(group, responses=(silent,)))
        found.append(-parity["mean"] * parity["tokens"])
    return found


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_on_policy_the_importance_of_all_tokens_is_1(world, groups, level):
    without = learnt(learner_of(world.config()), groups)
    algorithm = AlgorithmConfig(importance_cap=5.0, importance_level=level)
    assert_same_learning(without, learnt(learner_of(world.config(algorithm=algorithm)), groups))


def test_replies_that_samplers_found_half_as_likely_count_twice_up_to_the_cap(world, groups):
    def recorded(shift: float) -> list[Group]:
        return [
            dataclasses.replace(
                group,
                responses=tuple(
                    Sampled(s.ids, s.log_probs + np.float32(shift), s.complete) for s in group.responses
                ),
            )
            for group in groups
        ]

    def norm(shift: float) -> float:
        algorithm = AlgorithmConfig(importance_cap=3.0)
        (metrics,) = learnt(learner_of(world.config(algorithm=algorithm)), recorded(shift))["metrics"]
        assert metrics["mismatch"] == pytest.approx(abs(shift), abs=1e-4)
        return metrics["gradient_norm"]

    once = norm(0.0)
    assert norm(-math.log(2)) == pytest.approx(2 * once, rel=1e-3)
    assert norm(-math.log(20)) == pytest.approx(3 * once, rel=1e-3)


def test_a_stale_step_is_not_that_of_fresh_responses_and_counts_no_token_above_the_cap(world, groups):
    """What ``--rollout.max-staleness`` needs: without the cap the ratio is 1, however old the weights are."""

    def norm(cap: float | None) -> float:
        given = learner_of(world.config(algorithm=AlgorithmConfig(importance_cap=cap)))
        put(given.engine, weights)
        return given.learn(0, own)["gradient_norm"]

    later = learner_of(world.config())
    (own,) = parts_of(groups, later.config.algorithm)
    weights = learnt(later, groups, steps=8)["weights"]
    assert later.parity(*groups)["mean"] > 0.1
    stale = norm(None)
    assert abs(norm(2.0) / stale - 1) > 0.05
    assert norm(1e-3) < 1.01e-3 * stale  # nearly all of its tokens are as much likelier as that


# ---------------------------------------------------------------- gates


def test_samplers_and_learners_agree_until_weights_differ(world, groups):
    learner = learner_of(world.config())
    parity = learner.parity(*groups)
    tokens = sum(len(said) for group in groups for said in group.responses)
    assert parity["max"] < 1e-5 and parity["mean"] <= parity["max"] and parity["tokens"] == tokens
    learnt(learner, groups)
    assert learner.parity(*groups)["mean"] > 1e-4


def test_an_image_has_an_effect_unless_the_model_is_blind(world, groups, tmp_path):
    learner = learner_of(world.config())
    assert learner.image_effect(groups[0]) > 1e-3
    with torch.no_grad():
        for parameter in learner.model.get_submodule("model.visual.merger").parameters():
            parameter.zero_()
    assert learner.image_effect(groups[0]) < 1e-6
    save_pretrained(learner.model, learner.adapter, tmp_path / "blind")
    blind = learner_of(world.config(model=str(tmp_path / "blind")))
    assert blind.image_effect(groups[0]) < 1e-6
    assert learner.image_effect(dataclasses.replace(groups[0], vision={})) == float("inf")


# ---------------------------------------------------------------- state


def short(world: World, **changes: Any) -> GrpoConfig:
    algorithm = AlgorithmConfig(kl=KlConfig(weight=0.1), inner_steps=2)
    optimizer = OptimizerConfig(lr=3e-3, warmup_steps=2, weight_decay=0.01)
    rollout = RolloutConfig(
        group_size=4, max_new_tokens=MAX_TOKENS, prompts_per_task=4, temperature=0.7, worker=CPU
    )
    return world.config(algorithm=algorithm, optimizer=optimizer, rollout=rollout, **changes)


def go_on(learner: Learner, world: World, steps: range, store: Store) -> list[dict[str, float]]:
    """Samples and learns; nine prompts, four of them a step, so the third step crosses the epoch's border."""
    config = learner.config
    sampler, found = world.sampler(config, store), []
    for step in steps:
        weights = learner.publish(step)
        assert weights is not None
        sampler.sync(weights)
        draws = sampler.prompts.draws(step * 4, 4)
        task = tuple(zip(range(step * 4, step * 4 + 4), draws, strict=True))
        groups = uneven(sampler.roll(RolloutTask(step, task))[1], seed=step)
        (part, *others) = parts_of(groups, config.algorithm, rewards=some_rewards(groups, seed=step))
        found.append(learner.learn(step, [part[0], *(other[0] for other in others)]))
    return found


def test_a_loaded_learner_goes_on_bit_for_bit(world, tmp_path):
    config = short(world, out=str(tmp_path / "run"))
    store = Store()
    straight = learner_of(config, store)
    go_on(straight, world, range(2), store)
    straight.save({"step": 2, "fingerprint": straight.task.digest, "note": [1]})
    rest = go_on(straight, world, range(2, 5), store)
    straight.finish_saving()

    again_store = Store()
    again = learner_of(config, again_store)
    go_on(again, world, range(3, 4), again_store)  # what it has done before is forgotten
    assert again.load(2)["note"] == [1]
    assert go_on(again, world, range(2, 5), again_store) == rest
    assert straight.reference is not None and again.reference is not None
    for one, other in (
        (straight.engine.model_state(), again.engine.model_state()),
        (straight.reference.state_dict(), again.reference.state_dict()),
    ):
        assert all(torch.equal(one[name], other[name]) for name in one)
    first, second = optimizer_state(straight.engine), optimizer_state(again.engine)
    assert first.steps == second.steps == 10
    for name, pair in first.moments.items():
        assert all(torch.equal(a, b) for a, b in zip(pair, second.moments[name], strict=True))
    published = straight.publish(5), again.publish(5)
    assert published[0] is not None and published[1] is not None
    assert published[0].digest == published[1].digest


def test_a_checkpoint_of_other_settings_or_with_a_broken_file_is_refused(world, tmp_path):
    config = short(world, out=str(tmp_path / "run"))
    learner = learner_of(config)
    learner.save({"step": 0, "fingerprint": "another"})
    learner.finish_saving()
    with pytest.raises(CheckpointError, match="was made by a run with other settings.*another --out"):
        learner.load(0)
    learner.save({"step": 1, "fingerprint": learner.task.digest})
    learner.finish_saving()
    (file,) = (tmp_path / "run" / "checkpoints").glob("*1/*.bin")
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    with pytest.raises(CheckpointError, match="is not the file that the checkpoint names"):
        learner.load(1)


def test_a_gradient_that_is_no_number_is_skipped_and_too_many_end_the_run(world, groups):
    learner = learner_of(world.config(max_bad_steps=2))
    (part,) = parts_of(groups, learner.config.algorithm)
    bad = [
        dataclasses.replace(share, advantages=(math.nan, *share.advantages[1:])) if not n else share
        for n, share in enumerate(part[0])
    ]
    before = {name: value.clone() for name, value in learner.engine.model_state().items()}
    assert learner.learn(0, [bad])["skipped"] == 1
    assert largest_difference(before, learner.engine.model_state()) == 0
    assert learner.learn(1, part)["skipped"] == 0
    learner.learn(7, [bad])
    with pytest.raises(TrainingDiverged, match=r"2 steps in a row.* step 8 \(lr"):
        learner.learn(8, [bad])


def test_an_export_is_a_model_of_its_own(world, groups, tmp_path):
    learner = learner_of(world.config(out=str(tmp_path / "run")))
    learnt(learner, groups)
    learner.export("final", {"step": 1})
    other = learner_of(world.config(model=str(tmp_path / "run" / "final")))
    assert largest_difference(learner.model.state_dict(), other.model.state_dict()) == 0
