"""Memory that leaves and comes back: everything reachable, each storage once, views and ties as they were."""

import pytest
import torch
from torch import nn

from pipelines.grpo.learn.algorithms import AlgorithmConfig, KlConfig
from pipelines.training.offload import Offload
from tests.grpo import World, assert_same_learning, learner_of, learnt_in_turn, rolled, uneven


def test_views_ties_moments_and_gradients_leave_once_and_come_back_in_place():
    torch.manual_seed(0)
    flat = torch.randn(12)
    module = nn.Linear(3, 4, bias=False)
    module.weight.data = flat.view(4, 3)
    twin = nn.Linear(3, 4, bias=False)
    twin.weight = module.weight
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    memory = Offload(module, twin, optimizer, [flat])
    step = 4  # AdamW counts its steps in a tensor
    assert memory.nbytes == 4 * (12 + 12 + 2 * 12) + step  # weights, gradient, two moments
    held = [flat, module.weight.grad, *optimizer.state[module.weight].values()]
    before = [tensor.clone() for tensor in held]
    memory.leave()
    memory.leave()
    assert memory.nbytes == 0
    memory.come_back()
    memory.come_back()
    assert all(map(torch.equal, before, held))
    flat.zero_()
    assert not module.weight.any() and not twin.weight.any()


@pytest.mark.slow
@pytest.mark.numerics
def test_a_learner_that_slept_learns_as_one_that_did_not(tmp_path):
    world = World(tmp_path, images=1)
    config = world.config(algorithm=AlgorithmConfig(kl=KlConfig(weight=0.1)))
    awake, sleeper = learner_of(config), learner_of(config)
    for parameter in {*sleeper.model.parameters(), *sleeper.reference.parameters()}:
        parameter.data = parameter.data.clone()  # memory that is mapped from the file cannot leave
    groups = uneven(rolled(world.sampler(config), 3))
    first = [learnt_in_turn(one, [groups]) for one in (awake, sleeper)]
    held = sleeper.memory.nbytes
    assert held > 4 * 4 * sum(p.numel() for p in sleeper.model.parameters() if p.requires_grad)
    sleeper.sleep()
    assert sleeper.memory.nbytes == 0
    sleeper.wake()
    assert sleeper.memory.nbytes == held
    second = [learnt_in_turn(one, [groups]) for one in (awake, sleeper)]
    for one, other in (first, second):
        assert_same_learning(one, other)
        assert all(torch.equal(one["weights"][name], other["weights"][name]) for name in one["weights"])
