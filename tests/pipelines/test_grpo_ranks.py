"""Two learners learn what one does, whatever is combined: ZeRO, distance to the start, inner steps, memory,
adapters.

Every combination learns from three batches in turn: of images, of text alone, and one of which one learner
has all images and the other none.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.grpo.config import LearnerConfig
from pipelines.grpo.groups import Group
from pipelines.grpo.learn.algorithms import AlgorithmConfig, KlConfig
from pipelines.training.config import LoraConfig
from tests.grpo import (
    CPU,
    World,
    assert_same_learning,
    in_processes,
    learner_of,
    learnt_in_turn,
    rolled,
    uneven,
)
from tests.mllm_evaluations import without_image, write_chats

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # whichever test comes first starts all processes

STAGES = (0, 1, 2, 3)
ALGORITHMS = {
    f"{place}, {inner} inner": AlgorithmConfig(
        kl=KlConfig(weight=0.1, kind="k2", place=place), inner_steps=inner
    )
    for place, inner in itertools.product(("loss", "reward"), (1, 2))
}
ADAPTED = "adapters, loss, 1 inner"
"""Trains adapters and rows of mask words in the place of the language model."""
ALGORITHMS |= {ADAPTED: ALGORITHMS["loss, 1 inner"]}
CHECKPOINTING = (False, True)
COMBINED = list(itertools.product(ALGORITHMS, CHECKPOINTING))


def zero(stage: int) -> dict[str, Any] | None:
    """A DeepSpeed file that shares out even the smallest parameters."""
    body = {"stage": stage, "reduce_bucket_size": 10_000}
    body |= {"stage3_param_persistence_threshold": 0} if stage == 3 else {}
    return {"zero_optimization": body} if stage else None


class Seen:
    """What one learner saw, and what each of two did under a stage of ZeRO; 0 is none."""

    def __init__(self, folder: Path, stage: int) -> None:
        world = World(folder)
        blind = [without_image(row) for row in world.rows]
        text = world.config(chats=(write_chats(folder / "text", blind, weights_sha256="a" * 64),))
        a, b, c, idle = uneven(rolled(world.sampler()))
        x, y, w, _ = uneven(rolled(world.sampler(text)))
        assert a.vision and not x.vision
        self.one, cases = {}, {}
        for name, checkpointing in COMBINED:
            # one learner has ``a`` in a micro-batch, or in an optimizer step, and the other one none
            mixed = [a, x, y, idle] if ALGORITHMS[name].inner_steps == 1 else [a, b, x, y, idle]
            batches: list[list[Group]] = [[a, b, c, idle], [x, y, w, idle], mixed]
            cut = LearnerConfig(worker=CPU, workers=2, micro_batch=4, gradient_checkpointing=checkpointing)
            lora = LoraConfig(rank=4 if name == ADAPTED else 0)
            config = world.config(algorithm=ALGORITHMS[name], learner=cut, lora=lora)
            cases[f"{name} {checkpointing}"] = config, zero(stage), batches
            if not checkpointing:
                self.one[name] = learnt_in_turn(learner_of(config), batches)
        self.two = in_processes(cases, folder / "processes", 2)


@pytest.fixture(
    scope="module",
    params=[*(pytest.param(stage, marks=pytest.mark.long) for stage in STAGES[:-1]), STAGES[-1]],
)
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return Seen(tmp_path_factory.mktemp("ranks"), request.param)


@pytest.mark.parametrize(("name", "checkpointing"), COMBINED)
def test_two_learners_learn_what_one_does_from_images_and_text(seen, name, checkpointing):
    one = seen.one[name]
    for rank in range(2):
        two = seen.two[rank][f"{name} {checkpointing}"]
        assert_same_learning(one, two, noise=20)  # AdamW's steps from gradients that are rounding alone
        for whole, own in zip(one["drift"], two["drift"], strict=True):
            np.testing.assert_allclose(np.array(whole)[rank::2], own, rtol=1e-3, atol=1e-4)
        for key, value in seen.two[0][f"{name} {checkpointing}"]["weights"].items():
            assert torch.equal(two["weights"][key], value), key
