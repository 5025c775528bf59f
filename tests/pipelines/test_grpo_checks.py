"""Checks let a sound run through and stop one that would learn from wrong numbers, with a sentence."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from pipelines.grpo.config import ChecksConfig, GrpoConfig
from pipelines.grpo.learn.learner import Learner
from pipelines.grpo.observe.checks import Checks
from pipelines.grpo.rollout.sampler import Sampler
from samtok.errors import CheckpointError
from samtok.mllm.adapters import load_adapter, save_pretrained
from tests.grpo import World, learner_of


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("checks"), images=2)


@pytest.fixture(scope="module")
def blind(world, tmp_path_factory) -> str:
    """A model whose projector gives zeros."""
    adapter = load_adapter(world.model)
    model = adapter.load_model(world.model)
    with torch.no_grad():
        for parameter in model.get_submodule("model.visual.merger").parameters():
            parameter.zero_()
    folder = tmp_path_factory.mktemp("blind") / "model"
    save_pretrained(model, adapter, folder)
    return str(folder)


def checks_of(config: GrpoConfig, sampler: Sampler, learner: Learner) -> Checks:
    """Checks over one sampler and one learner of this process, without Ray's references."""
    team = SimpleNamespace(
        pool=SimpleNamespace(probe=lambda task: sampler.roll(task)[1]), turn=lambda whose: None
    )
    return Checks(config, sampler.prompts, cast(Any, team), cast(Any, learner))


def shifted(learner: Learner) -> Learner:
    """Other weights than the sampler's."""
    with torch.no_grad():
        dict(learner.model.named_parameters())[learner.trained[-1]].mul_(-1)
    return learner


def test_a_sound_run_goes_through_and_logs_how_near_both_sides_are(world, lines):
    config = world.config()
    checks = checks_of(config, world.sampler(config), learner_of(config))
    lines.clear()
    checks.start(0)
    checks.parity(50)
    assert [line.split(":")[0] for line in lines] == [
        "parity at step 0",
        "parity at step 50",
    ]


def test_learners_with_other_weights_are_stopped(world):
    config = world.config()
    checks = checks_of(config, world.sampler(config), shifted(learner_of(config)))
    for check in (checks.start, checks.parity):
        with pytest.raises(
            CheckpointError,
            match="at step 3 samplers .* disagree .*0.0001 at most .--checks.parity-max.*--rollout.precision",
        ):
            check(3)
    weak = world.config(checks=ChecksConfig(parity_max=50.0))
    checks_of(weak, world.sampler(weak), shifted(learner_of(weak))).start(3)


def test_log_probabilities_that_are_no_numbers_are_stopped_too(world):
    config = world.config()
    learner = learner_of(config)
    with torch.no_grad():
        dict(learner.model.named_parameters())[learner.trained[-1]].fill_(torch.nan)
    with pytest.raises(CheckpointError, match="differ by nan on average"):
        checks_of(config, world.sampler(config), learner).parity(0)


def test_a_model_that_does_not_see_is_stopped(world, blind):
    config = world.config(model=blind)
    checks = checks_of(config, world.sampler(config), learner_of(config))
    with pytest.raises(CheckpointError, match="does not see it.*--checks.no-image leaves this check out"):
        checks.start(0)
    checks.parity(0)
    without = world.config(model=blind, checks=ChecksConfig(image=False))
    checks_of(without, world.sampler(without), learner_of(without)).start(0)


def test_nothing_is_probed_if_all_checks_are_off(world, lines):
    config = world.config(checks=ChecksConfig(parity_every=0, image=False))
    checks = checks_of(config, world.sampler(config), shifted(learner_of(config)))
    lines.clear()
    checks.start(0)
    assert lines == []
