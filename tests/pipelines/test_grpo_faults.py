"""Faults of reinforcement learning on a real Ray: processes that die or hang, checks that fail."""

import dataclasses
import os
import random
from typing import Any

import pytest

from pipelines import storage
from pipelines.cluster import session
from pipelines.grpo import actors
from pipelines.grpo.actors import Lost
from pipelines.grpo.config import ChecksConfig, LearnerConfig
from pipelines.grpo.job import grpo_gres
from pipelines.grpo.learn.algorithms import AlgorithmConfig
from pipelines.grpo.learn.learner_group import LearnerActor
from pipelines.grpo.observe.alarms import AlarmsConfig
from pipelines.grpo.prepare import prepare
from pipelines.grpo.rollout.pool import RolloutPool, SamplerActor
from pipelines.training.config import OptimizerConfig
from pipelines.training.prepare import Prepared
from tests.grpo_runs import (
    CPU,
    EVERY,
    GROUP,
    PROMPTS,
    STEPS,
    assassin,
    assert_readable,
    assert_same_run,
    draws_of,
    paying,
    rollout,
    rows_of,
    saved,
    seen,
    short,
    weights_of,
)
from tests.mllm_evaluations import World
from tests.training import curve_of, record_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_PAIR = LearnerConfig(workers=2, worker=CPU)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("grpo") / "world", 4)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """One Ray for all tests of this file."""
    before = dict(os.environ)
    with session(num_cpus=6) as joined:
        yield joined
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """The uninterrupted run of two learners and two samplers."""
    out = tmp_path_factory.mktemp("grpo") / "whole"
    assert grpo_gres(short(world, out, learner=_PAIR)) == 0
    return out


def test_a_run_learns_uses_every_prompt_once_and_logs_every_step_once(world, whole):
    assert weights_of(whole) != storage.read_bytes(storage.join(world.model, "model.safetensors"))
    assert draws_of(whole) == list(range(STEPS * PROMPTS))
    rows, curve = rows_of(whole), curve_of(whole)
    assert len(rows) == STEPS * PROMPTS * GROUP and {row["staleness"] for row in rows} == {0}
    assert [row["step"] for row in curve] == list(range(STEPS))
    assert all(row["reward_std"] > 0 and row["gradient_norm"] > 0 for row in curve)
    record = record_of(whole)
    assert record["prompts_drawn"] == STEPS * PROMPTS and record["prompts_rejected"] == 0
    assert record["learner_restarts"] == record["sampler_deaths"] == 0


@pytest.mark.long
def test_a_killed_sampler_is_replaced_and_its_prompts_are_asked_once(world, whole, tmp_path, capsys):
    moment = random.randrange(1, STEPS - 1)
    config = short(world, tmp_path, learner=_PAIR)
    with assassin("SamplerActor.roll", lambda: seen(tmp_path) >= moment) as killed:
        assert grpo_gres(config) == 0
    assert len(killed) == 1 and record_of(tmp_path)["sampler_deaths"] == 1
    assert record_of(tmp_path)["learner_restarts"] == 0
    said = capsys.readouterr().err
    assert said.count("another one takes its place (1 of 8)") == said.count("another one takes") == 1
    assert_readable(said)
    assert_same_run(tmp_path, whole)


def test_a_killed_learner_sends_all_back_to_the_last_checkpoint(world, whole, tmp_path, capsys):
    """Of learners that take turns with the samplers; the run that was not killed has them apart."""
    moment = random.randrange(EVERY, STEPS)
    config = short(world, tmp_path, learner=_PAIR, placement="colocated")
    with assassin(
        "LearnerActor.learn", lambda: saved(tmp_path) >= EVERY and seen(tmp_path) >= moment
    ) as killed:
        assert grpo_gres(config) == 0
    assert len(killed) == 1 and record_of(tmp_path)["learner_restarts"] == 1
    assert record_of(tmp_path)["sampler_deaths"] == 0
    assert "all learners start anew from the last checkpoint" in capsys.readouterr().err
    assert_same_run(tmp_path, whole)


@pytest.mark.long
def test_overlapping_steps_keep_their_bound_and_use_prompts_once_when_a_learner_dies(world, tmp_path, capsys):
    """What was in flight at the death is asked again; nothing of it was used."""
    algorithm = AlgorithmConfig(importance_cap=2.0)
    config = short(world, tmp_path, steps=8, algorithm=algorithm, rollout=rollout(max_staleness=2))
    with assassin("LearnerActor.learn", lambda: seen(tmp_path) > EVERY) as killed:
        assert grpo_gres(config) == 0
    assert len(killed) == 1 and record_of(tmp_path)["learner_restarts"] == 1
    ages = [row["staleness"] for row in rows_of(tmp_path)]
    assert max(ages) <= 2 and sum(age > 0 for age in ages) >= len(ages) / 4
    assert draws_of(tmp_path) == list(range(8 * PROMPTS))
    assert [row["step"] for row in curve_of(tmp_path)] == list(range(8))
    assert "defect" not in capsys.readouterr().err


@pytest.mark.long
def test_weights_that_died_with_their_learner_are_not_blamed_on_a_sampler(world, tmp_path, lines):
    import ray

    ready = prepare(short(world, tmp_path))
    task = Prepared(config=ready.config, fingerprint=ready.fingerprint, lineage=ready.lineage)
    learner = actors.start_actor(LearnerActor, cpus=0)
    ray.get(learner.start.remote(task, 0, 1, ""))
    weights: Any = ray.get(learner.publish.remote(0))
    actors.kill([learner])
    pool = RolloutPool(
        lambda number, careful: actors.start_actor(
            SamplerActor, task, ready.prompts, None, "cpu", careful, cpus=0
        ),
        list,
        dataclasses.replace(ready.config, rollout=rollout(workers=1, timeout_s=240, max_failures=2)),
    )
    try:
        with pytest.raises(Lost, match="taking in weights and got nothing from one that died"):
            pool.sync(weights, wait=True)
        assert pool.failures == 0 and not [line for line in lines if "takes its place" in line]
    finally:
        pool.end()


@pytest.mark.long
def test_a_reward_that_hangs_ends_the_run_and_shows_where(world, tmp_path, capsys):
    config = short(
        world,
        tmp_path,
        reward=paying("never_ends", "even"),
        rollout=rollout(workers=1, timeout_s=20),
        checks=ChecksConfig(parity_every=0, image=False),
    )
    assert grpo_gres(config) == 5
    said = capsys.readouterr().err
    assert "1 processes are still scoring after 20 s" in said and f"{tmp_path}/stacks.txt" in said
    assert "in never_ends" in (tmp_path / "stacks.txt").read_text()
    assert not saved(tmp_path)


@pytest.mark.long
def test_samplers_and_learners_that_disagree_end_the_run(world, tmp_path, capsys):
    config = short(
        world,
        tmp_path,
        rollout=rollout(workers=1, precision="bfloat16"),
        checks=ChecksConfig(parity_mean=1e-5),
    )
    assert grpo_gres(config) == 6
    said = capsys.readouterr().err
    assert "at step 0 samplers and learners disagree about the same tokens" in said
    assert (
        "expected 1e-05 on average (--checks.parity-mean)" in said and "compare --rollout.precision" in said
    )
    assert not saved(tmp_path)


@pytest.mark.long
def test_only_sampling_changes_nothing(world, tmp_path):
    config = short(world, tmp_path, steps=4, debug="rollout-only", rollout=rollout(workers=1))
    assert grpo_gres(config) == 0
    assert draws_of(tmp_path) == list(range(4 * PROMPTS))
    assert [row["step"] for row in curve_of(tmp_path)] == list(range(4))
    assert all("loss" not in row and row["reward_std"] > 0 for row in curve_of(tmp_path))
    assert not saved(tmp_path) and not (tmp_path / "final").exists()
    assert (tmp_path / "report" / "index.html").exists()


@pytest.mark.long
def test_a_policy_that_learns_to_say_nothing_ends_by_the_alarm(world, tmp_path, capsys):
    """The model knows its chats by heart and is paid for saying anything but masks."""
    config = short(
        world,
        tmp_path / "out",
        model=world.train(tmp_path / "taught", steps=40),
        steps=40,
        reward=paying("wordless", "wordless"),
        rollout=rollout(workers=1),
        optimizer=OptimizerConfig(lr=5e-3, warmup_steps=0, final_lr_share=1.0),
        alarms=AlarmsConfig(first=2, window=2, prompts=4, stop_on=("collapse",)),
        checks=ChecksConfig(parity_every=0, image=False),
    )
    assert grpo_gres(config) == 1
    said = capsys.readouterr().err
    assert 'have no mask, as "No target." has none' in said and "(--alarms.stop-on)" in said
    assert f"Kept in {tmp_path / 'out'}: the checkpoint of step {saved(tmp_path / 'out')}." in said
    assert not (tmp_path / "out" / "record.json").exists()
