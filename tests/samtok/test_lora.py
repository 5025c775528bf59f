"""Adapters and rows of words beside frozen weights: what they change, and what a plain model makes of it."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageTextToText

from samtok.errors import CheckpointError, ConfigError
from samtok.mllm import lora, new_rows
from samtok.mllm.family import Adapter
from samtok.mllm.float_head import use_float32_head
from samtok.mllm.loss import answer_logits, answer_loss
from tests.tiny_mllm import FAMILIES, build, loaded, samples

SETTINGS = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "targets": (), "seed": 3}


slow = pytest.mark.slow


@pytest.fixture(scope="module", params=["untied", *(pytest.param(name, marks=slow) for name in FAMILIES)])
def folder(request, tmp_path_factory) -> Path:
    family = "qwen3_vl" if request.param == "untied" else request.param
    return build(tmp_path_factory.mktemp(request.param), family, tied=request.param != "untied")


def fitted(folder: Path) -> tuple[Adapter, nn.Module, nn.Module]:
    """Returns an adapter, its model, and the same with adapters and rows that took two steps."""
    adapter = loaded(folder)
    plain = adapter.load_model(folder)
    model = copy.deepcopy(plain)
    beside = new_rows.set_apart(model, new_rows.rows_of_words(adapter))
    beside += lora.add_adapters(model, **SETTINGS)
    adapter.freeze(model, vision=False, projector=True, llm=False)
    for parameter in beside:
        parameter.requires_grad_()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    for _ in range(2):
        answer_loss(model, adapter.collate(samples(adapter))).backward()
        optimizer.step()
        optimizer.zero_grad()
    return adapter, plain, model


def names_of_trained(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@torch.no_grad()
def logits_of(model: nn.Module, adapter: Adapter) -> torch.Tensor:
    return answer_logits(model.eval(), adapter.collate(samples(adapter)))[0]


@pytest.mark.slow
@pytest.mark.numerics
def test_a_merged_model_answers_as_with_adapters_and_old_rows_stay_bit_for_bit(folder, tmp_path):
    adapter, plain, model = fitted(folder)
    state, before = model.state_dict(), plain.state_dict()
    merged = lora.merged(model, state)
    assert merged.keys() == before.keys()
    after = copy.deepcopy(plain)
    after.load_state_dict(merged)
    base, found = logits_of(plain, adapter), logits_of(model, adapter)
    assert (found - base).abs().max() > 0.1
    torch.testing.assert_close(logits_of(after, adapter), found, rtol=1e-5, atol=2e-5)

    changed = {name for name, tensor in merged.items() if not torch.equal(tensor, before[name])}
    tied = ["lm_head.weight"] if plain.config.tie_word_embeddings else []
    assert changed == {*map(lora.plain_name, names_of_trained(model)), *tied}
    ids = new_rows.rows_of_words(adapter)
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        same = (merged[name] == before[name]).all(dim=1)
        assert not same[ids.start : ids.stop].any() and same.sum() == len(same) - len(ids)

    lora.turn_off(model)
    adapted = {name: before[name] for name in changed if ".layers." in name}
    after.load_state_dict(merged | adapted)
    torch.testing.assert_close(logits_of(after, adapter), logits_of(model, adapter), rtol=1e-5, atol=2e-5)


@slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT asks for it
def test_peft_reads_the_adapter_and_merges_it_into_the_same_weights(folder, tmp_path):
    import peft

    _, _, model = fitted(folder)
    state = model.state_dict()
    lora.save_adapter(model, state, names_of_trained(model), tmp_path / "adapter", base=str(folder))
    base = AutoModelForImageTextToText.from_pretrained(folder)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().state_dict()
    merged = lora.merged(model, state)
    assert {name for name in merged if not torch.equal(theirs[name], merged[name])} == set()
    written = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(written) == len(names_of_trained(model))


@pytest.mark.slow
@pytest.mark.numerics
def test_adapters_and_rows_change_nothing_at_first_and_follow_from_the_seed(folder):
    adapter = loaded(folder)
    plain = adapter.load_model(folder)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed + 5)
        model = copy.deepcopy(plain)
        new_rows.set_apart(model, new_rows.rows_of_words(adapter))
        adapters = lora.add_adapters(model, **SETTINGS | {"seed": seed, "targets": ("q_proj", "down_proj")})
        torch.testing.assert_close(logits_of(model, adapter), logits_of(plain, adapter), rtol=0, atol=1e-5)
        drawn.append(torch.cat([parameter.flatten() for parameter in adapters]))
        layers = {name.split(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
        assert {layer.rpartition(".")[2] for layer in layers} == {"q_proj", "down_proj"}
        assert all(layer.startswith("model.language_model.") for layer in layers)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_logits_of_rows_apart_have_the_type_of_the_others(tmp_path):
    folder = build(tmp_path)
    adapter = loaded(folder)
    plain = adapter.load_model(folder)
    model = copy.deepcopy(plain)
    new_rows.set_apart(model, new_rows.rows_of_words(adapter))
    for change in (lambda _: None, use_float32_head):
        for one in (plain, model):
            change(one)
        with torch.autocast("cpu", torch.bfloat16):
            own, other = (logits_of(one, adapter) for one in (model, plain))
        torch.testing.assert_close(own, other, rtol=0, atol=2e-6)


def test_what_cannot_be_is_refused(tmp_path):
    folder = build(tmp_path)
    adapter = loaded(folder)
    with pytest.raises(ConfigError, match=r"--lora.targets query: .* it has down_proj, .*v_proj\."):
        lora.add_adapters(adapter.load_model(folder), **SETTINGS | {"targets": ("q_proj", "query")})
    gap = copy.copy(adapter)
    gap.word_ids = dataclasses.replace(adapter.word_ids, start=7)
    with pytest.raises(CheckpointError, match="do not follow each other.*--lora.rank"):
        new_rows.rows_of_words(gap)
