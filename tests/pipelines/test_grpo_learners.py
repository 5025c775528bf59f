"""Two learners learn what one does, under the plain engine and under ZeRO-2, on real gloo processes."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.grpo.config import GrpoConfig, LearnerConfig
from pipelines.grpo.groups import Group
from pipelines.grpo.learn.algorithms import AlgorithmConfig, KlConfig
from tests.grpo import CPU, World, assert_same_learning, in_processes, learner_of, learnt, rolled, uneven

pytestmark = pytest.mark.slow

ZERO2 = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 10_000}}
ALGORITHMS = {
    "token": AlgorithmConfig(mean="token", importance_cap=2.0),
    "prompt": AlgorithmConfig(mean="prompt"),
    "sequence": AlgorithmConfig(name="gspo"),
    "constant": AlgorithmConfig(name="dr_grpo"),
    "inner": AlgorithmConfig(inner_steps=2, kl=KlConfig(weight=0.1)),  # in one of them a learner is idle
}
UNDER_ZERO2 = ("token", "inner")


class Seen:
    """What one learner saw, and what each of two did."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.groups: list[Group] = uneven(rolled(self.world.sampler()))
        cases: dict[str, tuple[GrpoConfig, Any, list[list[Group]]]] = {}
        self.one = {}
        for name, algorithm in ALGORITHMS.items():
            cut = LearnerConfig(worker=CPU, workers=2, micro_batch=3)
            steps = 2 if name == "inner" else 1
            config = self.world.config(algorithm=algorithm, learner=cut)
            cases[name] = (config, None, [self.groups] * steps)
            alone = learner_of(self.world.config(algorithm=algorithm))
            self.one[name] = learnt(alone, self.groups, steps=steps)
        cases |= {f"zero2-{name}": (cases[name][0], ZERO2, cases[name][2]) for name in UNDER_ZERO2}
        self.two = in_processes(cases, folder / "processes", 2)


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> Seen:
    return Seen(tmp_path_factory.mktemp("learners"))


@pytest.mark.parametrize("key", [*ALGORITHMS, *(f"zero2-{name}" for name in UNDER_ZERO2)])
def test_two_learners_learn_what_one_does(seen, key):
    """Micro-batches differ: some have a prompt once, some several times, and one learner is idle once."""
    name = key.removeprefix("zero2-")
    noise = 20 if name == "inner" else 1  # AdamW's steps from gradients that are rounding alone
    for rank in range(2):
        assert_same_learning(seen.one[name], seen.two[rank][key], noise=noise)


def test_both_learners_have_the_same_weights_afterwards(seen):
    for key in seen.two[0]:
        first, second = (seen.two[rank][key]["weights"] for rank in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first), key
        if key in seen.one and seen.one[key]["steps"] == 1:
            rate = seen.world.config().optimizer.lr
            apart = [float((first[n] - v).abs().max()) for n, v in seen.one[key]["weights"].items()]
            assert max(apart) <= 2.1 * rate and not math.isnan(max(apart))
