"""Samplers and learners see the same probabilities of the same tokens, and neither says pads."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from samtok.mllm.adapters import load_adapter
from samtok.mllm.chat import Encoded, Turn
from samtok.mllm.family import Adapter
from samtok.mllm.float_head import use_float32_head
from samtok.mllm.generation import generate, processor_of
from samtok.mllm.loss import answer_logits
from samtok.mllm.packed_attention import attend_by_dialogue
from samtok.mllm.registry import family_of
from samtok.mllm.sampling import Sampled, response_log_probs, sample, with_response
from samtok.mllm.shared_images import vision_inputs
from samtok.words import parse_words
from tests.tiny_mllm import EACH_FAMILY, FAMILIES, QWEN, VOCABULARY, build, mask, picture

RESPONSES, TOKENS = 4, 10


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {family: build(tmp_path_factory.mktemp(family), family, padded_rows=60) for family in FAMILIES}


@pytest.fixture(scope="module", params=EACH_FAMILY)
def pair(request, folders) -> tuple[Adapter, Any]:
    adapter = load_adapter(folders[request.param])
    return adapter, adapter.load_model(folders[request.param]).eval()


@pytest.fixture(scope="module", params=QWEN)
def qwen(request, folders) -> tuple[Adapter, Any]:
    adapter = load_adapter(folders[request.param])
    return adapter, adapter.load_model(folders[request.param]).eval()


def prompts_of(adapter: Adapter) -> list[Encoded]:
    """Questions of different lengths, with one image, without, and with two and an earlier answer."""
    one = [Turn("user", (0, "Where is the blue star?"))]
    none = [Turn("user", ("Be brief.",))]
    two = [
        Turn("user", (1, "Segment the red ring.", 0)),
        Turn("assistant", (f"It is here: {mask(3, 9)}",)),
        Turn("user", ("And the blue star?",)),
    ]
    return [
        adapter.encode_prompt(one, [picture(1)]),
        adapter.encode_prompt(none, []),
        adapter.encode_prompt(two, [picture(2), picture(3, (40, 90))]),
    ]


def sampled(pair: tuple[Adapter, Any], prompts: list[Encoded], **told: Any) -> list[list[Sampled]]:
    adapter, model = pair
    return sample(model, adapter, prompts, **{"num_responses": RESPONSES, "max_new_tokens": TOKENS, **told})


def learner_log_probs(
    pair: tuple[Adapter, Any],
    prompts: list[Encoded],
    groups: list[list[Sampled]],
    *,
    grammar: bool,
    **told: Any,
) -> np.ndarray:
    adapter, model = pair
    ids = [[said.ids for said in group] for group in groups]
    processor = processor_of(adapter, grammar=grammar)
    with torch.no_grad():
        return response_log_probs(model, adapter, prompts, ids, processor, **told).log_probs.numpy()


def recorded(groups: list[list[Sampled]]) -> np.ndarray:
    return np.concatenate([said.log_probs for group in groups for said in group])


def prefer(model: Any, ids: list[int], bias: float) -> None:
    """Makes tokens likelier."""
    head = model.get_output_embeddings()
    values = torch.zeros(head.out_features)
    values[ids] = bias
    head.bias = nn.Parameter(values)


@pytest.mark.parametrize("grammar", [False, True], ids=["free", "grammar"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_learner_finds_the_probabilities_that_were_sampled_from(pair, grammar, temperature):
    prompts = prompts_of(pair[0])
    told = {"grammar": grammar, "temperature": temperature}
    groups = sampled(pair, prompts, **told)
    assert [len(group) for group in groups] == [RESPONSES] * 3
    there = recorded(groups)
    assert there.dtype == np.float32 and (there <= 0).all() and there.min() < -1
    apart = np.abs(learner_log_probs(pair, prompts, groups, **told) - there)
    assert apart.max() < 1e-5
    if family_of(pair[0].family).mrope:
        packer = copy.deepcopy(pair[1])
        attend_by_dialogue(packer)
        packed = learner_log_probs((pair[0], packer), prompts, groups, packed=True, **told)
        assert np.abs(packed - there).max() < 1e-5
    others = {"grammar": grammar, "temperature": 1.5}
    assert np.abs(learner_log_probs(pair, prompts, groups, **others) - there).max() > 0.05


def test_words_of_the_grammar_are_whole_and_their_ends_certain(pair):
    adapter, model = pair[0], copy.deepcopy(pair[1])
    prefer(model, [adapter.word_ids.start], 6.0)
    prompts, pair = prompts_of(adapter), (adapter, model)
    groups = sampled(pair, prompts, grammar=True)
    ends = [
        float(said.log_probs[place])
        for group in groups
        for said in group
        for place in np.flatnonzero(said.ids == adapter.word_ids.end)
    ]
    assert len(ends) > 5 and set(ends) == {0.0}
    for said in (said for group in groups for said in group if said.complete):
        text = adapter.text_of(said.ids.tolist())
        parse_words(text, num_codes=VOCABULARY.num_codes, num_levels=VOCABULARY.num_levels)
    free = learner_log_probs(pair, prompts, groups, grammar=False)
    assert np.abs(free - recorded(groups)).max() > 0.5  # both sides have to know of the grammar


def test_positions_without_token_types_break_the_agreement(qwen):
    adapter, _ = qwen
    prompts = prompts_of(adapter)[:1]
    groups = sampled(qwen, prompts)
    blind = [dataclasses.replace(p, mm_token_type_ids=torch.zeros_like(p.input_ids)) for p in prompts]
    apart = np.abs(learner_log_probs(qwen, blind, groups, grammar=False) - recorded(groups))
    assert apart.max() > 1e-3


def test_a_batch_of_shared_images_without_token_types_is_refused(qwen):
    adapter, model = qwen
    prompts = prompts_of(adapter)[:1]
    rows = [with_response(prompts[0], np.array([5, 6], np.int32))] * 2
    batch: dict[str, Any] = {**adapter.collate(rows), **vision_inputs(model, adapter, prompts, [2])}
    assert "mm_encoder_outputs" in batch
    del batch["mm_token_type_ids"]
    with pytest.raises(ValueError, match="has images and no mm_token_type_ids"):
        answer_logits(model, batch)


def test_a_response_is_appended_as_text_that_is_learnt(qwen):
    prompt = prompts_of(qwen[0])[0]
    whole = with_response(prompt, np.array([7, 8, 9], np.int32))
    assert whole.num_learnt == 3 and whole.labels[-3:].tolist() == [7, 8, 9]
    assert whole.input_ids.tolist() == [*prompt.input_ids.tolist(), 7, 8, 9]
    assert whole.mm_token_type_ids.tolist() == [*prompt.mm_token_type_ids.tolist(), 0, 0, 0]
    assert whole.vision is prompt.vision


@pytest.mark.parametrize("grammar", [False, True], ids=["free", "grammar"])
def test_pads_and_unknown_rows_are_never_said_however_much_the_model_wants_to(pair, grammar):
    adapter, model = pair[0], copy.deepcopy(pair[1])
    head = model.get_output_embeddings()
    known = len(adapter.tokenizer)
    unknown = list(range(known, head.out_features))
    assert len(unknown) > 7
    prefer(model, [*adapter.suppressed_ids, *unknown], 50.0)
    prompts = prompts_of(adapter)
    groups = sampled((adapter, model), prompts, grammar=grammar)
    said = {int(id_) for group in groups for response in group for id_ in response.ids}
    assert said and not said & {*adapter.suppressed_ids, *unknown}
    greedy = generate(model, adapter, prompts, max_new_tokens=TOKENS, grammar=grammar)
    assert not {id_ for ids in greedy for id_ in ids} & {*adapter.suppressed_ids, *unknown}
    again = learner_log_probs((adapter, model), prompts, groups, grammar=grammar)
    assert np.abs(again - recorded(groups)).max() < 1e-4


def test_a_token_that_cannot_be_said_cannot_be_learnt(qwen):
    adapter, model = qwen
    prompts = prompts_of(adapter)[1:2]
    pads = [[np.array([adapter.suppressed_ids[-1]], np.int32)]]
    with pytest.raises(ValueError, match="has probability 0"):
        response_log_probs(model, adapter, prompts, pads, processor_of(adapter, grammar=False))
    with pytest.raises(ValueError, match="a response has no token"):
        empty = [[np.zeros(0, np.int32)]]
        response_log_probs(model, adapter, prompts, empty, processor_of(adapter, grammar=False))


def test_responses_end_with_the_turn_or_at_the_limit(pair):
    adapter, model = pair[0], copy.deepcopy(pair[1])
    prefer(model, list(adapter.stop_ids), 4.0)
    responses = [said for group in sampled((adapter, model), prompts_of(adapter)) for said in group]
    assert len({len(said) for said in responses}) > 2
    for said in responses:
        assert 1 <= len(said) <= TOKENS and said.ids.dtype == np.int32
        stops = np.isin(said.ids, adapter.stop_ids)
        assert not stops[:-1].any() and stops[-1] == said.complete
        assert said.complete or len(said) == TOKENS
        assert len(said.log_probs) == len(said)


def test_seeds_decide_and_leave_other_random_numbers_alone(qwen):
    prompts = prompts_of(qwen[0])
    model = qwen[1].train()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = sampled(qwen, prompts, seed=1)
    assert torch.equal(torch.rand(3), expected) and model.training
    model.eval()

    def ids(groups: list[list[Sampled]]) -> list[list[int]]:
        return [said.ids.tolist() for group in groups for said in group]

    assert ids(sampled(qwen, prompts, seed=1)) == ids(first)
    np.testing.assert_array_equal(recorded(sampled(qwen, prompts, seed=1)), recorded(first))
    assert ids(sampled(qwen, prompts, seed=2)) != ids(first)
    assert len({tuple(one) for one in ids(first)}) > 8  # responses to one prompt differ


def test_nothing_is_sampled_of_no_prompts_and_wrong_numbers_are_refused(qwen):
    assert sampled(qwen, []) == []
    for told in ({"temperature": 0.0}, {"num_responses": 0}, {"max_new_tokens": 0}):
        with pytest.raises(ValueError, match="temperature must be > 0, max_new_tokens and num_responses"):
            sampled(qwen, prompts_of(qwen[0]), **told)


def test_bfloat16_samplers_are_near_float32_learners(folders):
    """The gap is that of rounding in the layers; the head adds nothing to it where it is in float32."""
    folder = folders["qwen2_5_vl"]
    adapter = load_adapter(folder)
    exact = adapter.load_model(folder).eval()
    rounded = adapter.load_model(folder, dtype=torch.bfloat16).eval()
    prompts = prompts_of(adapter)

    def gap() -> np.ndarray:
        groups = sampled((adapter, rounded), prompts, num_responses=8)
        there = learner_log_probs((adapter, exact), prompts, groups, grammar=False)
        return np.abs(there - recorded(groups))

    plain = gap()
    use_float32_head(rounded)
    with_head = gap()
    assert 1e-4 < with_head.mean() < 0.05 and with_head.max() < 0.5
    assert with_head.mean() < plain.mean() * 1.1
