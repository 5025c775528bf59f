"""Samplers: equal tasks give equal responses, tokens stay as they were drawn, and bad prompts are named."""

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.chats.corpus import load_chat_corpus, rows_of
from pipelines.chats.prompts import PromptsConfig
from pipelines.grpo.actors import Traced
from pipelines.grpo.config import GrpoConfig, PromptValidationConfig, RolloutConfig
from pipelines.grpo.groups import Group, RolloutTask
from pipelines.grpo.rollout.pool import RolloutPool
from pipelines.grpo.rollout.sampler import Sampler
from pipelines.training.steps import mixed_seed
from tests.grpo import CODES, CPU, MAX_TOKENS, World, encoded, rolled
from tests.mllm_evaluations import strip_row, write_chats


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("sampler"))


@pytest.fixture(scope="module")
def sampler(world) -> Sampler:
    return world.sampler()


def ids_of(groups: list[Group]) -> list[list[int]]:
    return [said.ids.tolist() for group in groups for said in group.responses]


def broken(folder: Path, *, removed: bool = False) -> World:
    """A world whose second image cannot be read."""
    world = World(folder)
    path = folder / "images" / "001.png"
    path.unlink() if removed else path.write_bytes(b"no image")
    return world


def test_equal_tasks_seeds_and_weights_give_equal_responses(world, sampler):
    first = rolled(sampler, number=5)
    again = rolled(world.sampler(), number=5)
    assert ids_of(again) == ids_of(first)
    for one, other in zip(first, again, strict=True):
        for said, repeated in zip(one.responses, other.responses, strict=True):
            np.testing.assert_array_equal(said.log_probs, repeated.log_probs)
    assert ids_of(rolled(sampler, number=6)) != ids_of(first)
    assert ids_of(rolled(world.sampler(world.config(seed=1)), number=5)) != ids_of(first)


@pytest.mark.slow
@pytest.mark.numerics
def test_a_task_that_was_read_ahead_gives_the_responses_of_one_that_was_not(world, sampler, monkeypatch):
    tasks = [RolloutTask(number, ((number, number), (9 + number, number + 2))) for number in range(4)]
    expected = [ids_of(sampler.roll(task)[1]) for task in tasks]
    ahead, readers = world.sampler(), []
    read = ahead._read_now

    def reading(source, draws):
        readers.append((threading.current_thread() is threading.main_thread(), draws))
        return read(source, draws)

    monkeypatch.setattr(ahead, "_read_now", reading)
    found = [ahead.roll(tasks[0], tasks[1]), ahead.roll(tasks[1], tasks[2])]
    greedy, _ = ahead.validate([4])  # reads by itself, after what is read ahead
    found += [ahead.roll(tasks[3]), ahead.roll(tasks[2])]  # not what was announced, then that
    order = [found[0], found[1], found[3], found[2]]
    assert [ids_of(groups) for _, groups in order] == expected and greedy[0].index == 4
    draws = [task.draws for task in tasks]
    assert readers == [
        *((True, draws[0]), (False, draws[1]), (False, draws[2])),
        *((True, [(4, 4)]), (True, draws[3])),
    ]


def test_each_sampler_reads_another_task_ahead_and_is_given_it(world):
    class Actor:
        def __init__(self) -> None:
            self.seen: list[tuple[int, int | None]] = []
            self.roll = self

        def options(self, **_):
            return self

        def remote(self, task, upcoming):
            self.seen.append((task.number, upcoming and upcoming.number))
            return [object()]

    rollout = RolloutConfig(workers=2, worker=CPU, prompts_per_task=4)
    config = world.config(rollout=rollout, prompts_per_step=8)
    pool = RolloutPool(lambda number, careful: Actor(), list, config)
    for number in range(6):
        pool._waiting.append(RolloutTask(number, ()))
    pool._hand_out()
    del pool._running[1]
    pool._hand_out()
    del pool._running[0]
    pool._hand_out()
    first, second = (actor.seen for actor in pool.actors)
    assert first == [(0, 2), (2, 5)] and second == [(1, 3), (3, 4)]


def test_draws_and_outlines_are_in_the_order_of_the_task(sampler):
    task = RolloutTask(3, ((40, 8), (41, 0), (42, 2)))
    sampling, groups = sampler.roll(task)
    assert [(group.draw, group.index) for group in groups] == [(40, 8), (41, 0), (42, 2)]
    assert sampling.rejects == () and sampling.version == -1
    for one, group in zip(sampling.outlines, groups, strict=True):
        assert (one.draw, one.version) == (group.draw, group.version)
        assert one.targets == len(group.question.truth)
        assert one.lengths == tuple(len(said.ids) for said in group.responses)
        assert one.complete == tuple(said.complete for said in group.responses)
        assert one.prompt_tokens == len(group.input_ids)
    assert [one.targets for one in sampling.outlines] == [0, 1, 0]


def test_tokens_in_groups_are_exactly_those_that_were_sampled(world, sampler):
    """Text is made from tokens and never the other way: tokens of a text are often others."""
    config, adapter = sampler.config, sampler.engine.adapter
    groups = rolled(sampler, number=2)
    prompts = [encoded(adapter, sampler.prompts.prompt(n)) for n in range(4)]
    seed = mixed_seed(config.seed, 0x726F6C6C, 2)
    drawn = sampler.engine.sample(prompts, responses=config.rollout.group_size, seed=seed)
    assert ids_of(groups) == [said.ids.tolist() for group in drawn for said in group]
    others = 0
    for group in groups:
        for said, text, answer in zip(group.responses, group.texts, group.answers, strict=True):
            assert text == adapter.text_of(said.ids.tolist()) == answer.text
            assert answer.token_ids == tuple(said.ids.tolist()) and answer.complete == said.complete
            others += adapter.tokenizer(text, add_special_tokens=False)["input_ids"] != said.ids.tolist()
    assert others > 4


def test_learners_read_the_prompt_as_samplers_did(sampler):
    for number, group in enumerate(rolled(sampler)):
        prompt = encoded(sampler.engine.adapter, sampler.prompts.prompt(number))
        read = group.encoded
        assert torch.equal(read.input_ids, prompt.input_ids)
        assert torch.equal(read.mm_token_type_ids, prompt.mm_token_type_ids) and read.num_learnt == 0
        assert read.vision.keys() == prompt.vision.keys() != set()
        assert all(torch.equal(read.vision[name], prompt.vision[name]) for name in prompt.vision)
        group.input_ids.setflags(write=False)  # as it comes out of Ray
        group.encoded.input_ids.add_(1)  # its own memory
        assert torch.equal(group.encoded.input_ids, prompt.input_ids)


@pytest.mark.parametrize("removed", [True, False])
def test_a_prompt_whose_image_cannot_be_read_is_named_and_the_others_are_sampled(tmp_path, removed):
    sampler = broken(tmp_path, removed=removed).sampler()
    draws = tuple((100 + n, n) for n in range(len(sampler.prompts)))
    sampling, groups = sampler.roll(RolloutTask(0, draws))
    lost = [n for n in range(9) if sampler.prompts.row(n)["image_id"] == "1"]
    assert [group.index for group in groups] == [n for n in range(9) if n not in lost]
    assert [group.draw - 100 for group in groups] == [group.index for group in groups]
    assert len(lost) == len(sampling.rejects) == 3
    for reject, index in zip(sampling.rejects, lost, strict=True):
        assert reject["row_id"] == sampler.prompts.row(index)["sample_id"]
        assert reject["reason"] == ("image_missing" if removed else "image_format")
        assert "001.png" in reject["message"]
    alone, nothing = sampler.roll(RolloutTask(0, tuple((n, n) for n in lost)))
    assert nothing == [] and alone.outlines == () and len(alone.rejects) == 3


def test_a_prompt_whose_image_the_processor_refuses_is_rejected(tmp_path, world):
    rows = [strip_row(tmp_path, CODES["red"]), *rows_of(load_chat_corpus(world.chat))]
    chats = write_chats(tmp_path / "chats", rows, weights_sha256="a" * 64)
    sampler = world.sampler(world.config(chats=(chats,)))
    sampling, groups = sampler.roll(RolloutTask(0, ((0, 0), (1, 1))))
    assert [group.index for group in groups] == [1]
    assert [(one["reason"], one["row_id"]) for one in sampling.rejects] == [("processor", "strip/red")]
    assert len(sampler.validate([0, 1])[0]) == 1


def test_a_prompt_that_is_too_long_is_rejected_and_never_cut(world):
    config = world.config(prompts=PromptsConfig(max_prompt_tokens=10))
    sampling, groups = world.sampler(config).roll(RolloutTask(0, ((0, 0), (1, 1))))
    assert groups == [] and [reject["reason"] for reject in sampling.rejects] == ["too_long"] * 2


def validating(world: World, samples: int, **changes) -> GrpoConfig:
    return world.config(validation=PromptValidationConfig(chats=(world.chat,), samples=samples), **changes)


def test_a_validation_is_greedy_repeats_itself_and_samples_beside(world):
    sampler = world.sampler(validating(world, 3))
    greedy, sampled = sampler.validate([4, 1, 7])
    assert [group.index for group in greedy] == [group.index for group in sampled] == [4, 1, 7]
    assert {len(group.responses) for group in greedy} == {1} and {len(g.responses) for g in sampled} == {3}
    again, sampled_again = sampler.validate([4, 1, 7])
    assert ids_of(again) == ids_of(greedy) and ids_of(sampled_again) == ids_of(sampled)
    for group in greedy:
        (said,) = group.responses
        assert not said.log_probs.any()
        assert said.complete == (said.ids[-1] in sampler.engine.adapter.stop_ids)
    assert len(world.sampler(validating(world, 0)).validate([1])[1]) == 0
    short = RolloutConfig(group_size=2, max_new_tokens=1, prompts_per_task=4, worker=CPU)
    ((cut,), _) = world.sampler(validating(world, 0, rollout=short)).validate([1])
    assert len(cut.responses[0]) == 1 < MAX_TOKENS and not cut.responses[0].complete


def test_a_validation_logs_what_it_cannot_ask(tmp_path, lines):
    world = broken(tmp_path)
    sampler = world.sampler(validating(world, 2))
    greedy, sampled = sampler.validate(range(9))
    assert len(greedy) == len(sampled) == 6
    line = lines[-1]
    assert line.startswith(
        "3 of 9 held-out prompts cannot be asked and are left out of the validation; the first:"
    )
    assert "001.png" in line


def test_bfloat16_weights_sample_and_grammar_says_whole_words(world):
    config = world.config()
    rollout = dataclasses.replace(config.rollout, precision="bfloat16", grammar=True)
    groups = rolled(world.sampler(world.config(rollout=rollout)))
    assert all(np.isfinite(said.log_probs).all() for group in groups for said in group.responses)
    assert {said.log_probs.dtype for group in groups for said in group.responses} == {np.dtype(np.float32)}


def test_stacks_name_this_function():
    assert "test_stacks_name_this_function" in Traced().stacks()
