"""Micro-batches of a learner: nothing lost, nothing twice, everything in one order."""

from functools import partial

import numpy as np
import pytest
import torch

from pipelines.grpo.groups import Group, Share
from pipelines.grpo.learn.learner import micro_batches
from samtok.mllm.sampling import Sampled
from samtok.mllm.token_budget import computed, fits
from samtok.rewards.response import Question


def group_of(number: int, prompt_tokens: int, lengths: tuple[int, ...]) -> Group:
    """A group whose token ids say where they belong: 1000 * group + 10 * response + place."""
    ids = [1000 * number + 10 * response + np.arange(n, dtype=np.int32) for response, n in enumerate(lengths)]
    return Group(
        draw=number,
        index=number,
        question=Question(truth=(), text=""),
        input_ids=np.arange(prompt_tokens),
        mm_token_type_ids=np.zeros(prompt_tokens, np.int64),
        vision={},
        responses=tuple(Sampled(one, -one.astype(np.float32), complete=True) for one in ids),
        texts=("",) * len(lengths),
        version=0,
    )


def share_of(number: int, prompt_tokens: int, lengths: tuple[int, ...]) -> Share:
    group = group_of(number, prompt_tokens, lengths)
    responses = tuple(range(len(lengths)))
    return Share(
        group,
        responses,
        advantages=tuple(float(1000 * number + 10 * r) for r in responses),
        weights=tuple(0.5 + r for r in responses),
    )


SHARES = [share_of(1, 9, (2, 1, 3)), share_of(2, 4, (1, 1, 1, 1, 5)), share_of(3, 5, (2, 2))]


@pytest.mark.parametrize("most", [1, 2, 3, 4, 100])
def test_every_response_is_in_one_micro_batch_with_its_own_numbers(most):
    batches = micro_batches(SHARES, partial(fits, items=most))
    seen = []
    for batch in batches:
        responses = [ids for group in batch.responses for ids in group]
        assert 1 <= len(responses) <= most
        assert len(batch.prompts) == len(batch.responses) and all(batch.responses)
        assert batch.advantages.tolist() == [float(ids[0]) for ids in responses]
        assert batch.weights.tolist() == [0.5 + ids[0] % 1000 // 10 for ids in responses]
        np.testing.assert_array_equal(batch.rollout.numpy(), -np.concatenate(responses))
        assert batch.rollout.dtype == batch.advantages.dtype == batch.weights.dtype == torch.float32
        for prompt, own in zip(batch.prompts, batch.responses, strict=True):
            number = own[0][0] // 1000
            assert len(prompt) == {1: 9, 2: 4, 3: 5}[number]
            assert {ids[0] // 1000 for ids in own} == {number}
        seen += [int(ids[0]) for ids in responses]
    assert sorted(seen) == [1000, 1010, 1020, 2000, 2010, 2020, 2030, 2040, 3000, 3010]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("most", [1, 9, 20, 27, 1000])
def test_a_pass_computes_no_more_tokens_than_its_limit(most, packed):
    batches = micro_batches(SHARES, partial(fits, tokens=most, packed=packed))
    found = []
    for batch in batches:
        pairs = zip(batch.prompts, batch.responses, strict=True)
        lengths = [len(prompt) + len(ids) for prompt, own in pairs for ids in own]
        assert computed(lengths, packed=packed) <= most or len(lengths) == 1
        found += lengths
    assert sorted(found) == sorted([11, 10, 12, 5, 5, 5, 5, 9, 7, 7])


def test_prompts_of_like_length_go_together_whatever_their_order():
    for shares in (SHARES, SHARES[::-1]):
        batches = micro_batches(shares, partial(fits, items=7))
        firsts = [[int(own[0][0]) // 1000 for own in batch.responses] for batch in batches]
        assert firsts == [[3, 2], [1]]


def test_a_share_of_some_replies_takes_those_alone():
    whole = SHARES[1]
    some = Share(whole.group, (4, 1), advantages=(2.0, 3.0), weights=(0.25, 0.75))
    (batch,) = micro_batches([some], partial(fits, items=8))
    assert [ids.tolist() for ids in batch.responses[0]] == [[2040, 2041, 2042, 2043, 2044], [2010]]
    assert batch.advantages.tolist() == [2.0, 3.0] and batch.weights.tolist() == [0.25, 0.75]
    assert batch.rollout[-1] == -2010
    without = batch.without_weight()
    assert not without.weights.any() and without.rollout is batch.rollout


@pytest.mark.parametrize("shares", [[], [Share(SHARES[0].group, (), (), ())]])
def test_a_learner_without_anything_to_read_is_refused(shares):
    with pytest.raises(ValueError, match="every learner needs shares with responses, got"):
        micro_batches(shares, fits)
