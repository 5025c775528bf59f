"""LoRA and rows of mask words alone, in fine-tuning and in reinforcement learning."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipelines.generation.models import weights_digest
from pipelines.grpo.config import GrpoConfig
from pipelines.grpo.learn.algorithms import AlgorithmConfig, KlConfig
from pipelines.grpo.presets import GRES
from pipelines.sft.config import TrainMllmConfig
from pipelines.sft.evaluate import Validator
from pipelines.sft.presets import PRESETS as SFT
from pipelines.training import checkpoints
from pipelines.training.config import CheckpointsConfig, LoraConfig, TrainedConfig
from samtok.errors import ConfigError
from samtok.mllm.adapters import load_adapter
from samtok.mllm.new_rows import rows_of_words
from tests.grpo import Store, World, learner_of, learnt, rolled, uneven
from tests.mllm_evaluations import World as ChatWorld
from tests.sft import short, task_for, train, validation, weights_of
from tests.training import curve_of, record_of

LORA = LoraConfig(rank=4, alpha=8.0)
NEW_ROWS = TrainedConfig(projector=False, new_rows_only=True)
TABLE = "model.language_model.embed_tokens.weight"
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"lora": dataclasses.replace(LORA, dropout=0.1), "train": TrainedConfig()},
    "new rows": {"train": NEW_ROWS, "new_rows_lr": 6e-3},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return ChatWorld(tmp_path_factory.mktemp("lora") / "world", 12)


def run(world: ChatWorld, out: Path, **changes: Any) -> TrainMllmConfig:
    """Eight steps, which hold out what they learn from."""
    looks = validation(f"uri={world.chat},limit=9", every=4, generations=1)
    short_one = {"steps": 8, "checkpoints": CheckpointsConfig(every=4, keep=10), "validation": looks}
    return short(world, out, **short_one, **changes)


def states(world: ChatWorld, out: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Of the model before training, and of what came out."""
    folders = (world.model, str(out / "final"))
    before, after = (load_adapter(folder).load_model(folder).state_dict() for folder in folders)
    return before, after


# ---------------------------------------------------------------- fine-tuning


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_bit_for_bit_and_what_comes_out_says_what_it_said(world, tmp_path, kind):
    """Also with dropout, which follows from seed and step. The losses of held-out chats with adapters, and of
    the merged model, are equal."""
    whole, cut = (run(world, tmp_path / name, **KINDS[kind]) for name in ("whole", "cut"))
    train(whole)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "record.json").unlink()
    (tmp_path / "cut" / "checkpoints" / "step-00000008" / "state.json").unlink()
    told = train(cut)
    assert told[0][0] == "resumed" and told[0][1]["step"] == 4
    assert curve_of(tmp_path / "cut") == curve_of(tmp_path / "whole")
    assert weights_of(tmp_path / "cut") == weights_of(tmp_path / "whole")
    looks = record_of(tmp_path / "whole")["validations"]
    losses = [row["loss"] for row in curve_of(tmp_path / "whole")]
    assert losses[-1] < losses[0] and looks == record_of(tmp_path / "cut")["validations"]

    folder = str(tmp_path / "whole" / "final")
    assert (tmp_path / "whole" / "final" / "adapter").exists() == (kind == "lora")
    adapter = load_adapter(folder)
    found = Validator(adapter.load_model(folder), adapter, task_for(whole).held_out, whole).measure()
    assert found["loss"] == pytest.approx(looks[-1]["loss"], abs=1e-5)
    assert {**found, "loss": 0} == {name: looks[-1][name] for name in found} | {"loss": 0}

    before, after = states(world, tmp_path / "whole")
    ids = rows_of_words(adapter)
    same = (before[TABLE] == after[TABLE]).all(dim=1)
    assert not same[ids.start : ids.stop].any() and same.sum() == len(same) - len(ids)
    frozen = [name for name in before if name.endswith(("norm.weight", "layernorm.weight", "_proj.bias"))]
    assert frozen and all(torch.equal(before[name], after[name]) for name in frozen)


@pytest.mark.slow
@pytest.mark.numerics
def test_a_checkpoint_and_an_adapter_hold_what_is_trained(world, tmp_path):
    train(dataclasses.replace(run(world, tmp_path / "out", lora=LORA, train=TrainedConfig()), steps=4))
    shapes: dict[str, dict[str, list[int]]] = {}
    for key, (_, shape) in checkpoints.load(str(tmp_path / "out"), 4).body["tensors"].items():
        role, _, name = key.partition("/")
        shapes.setdefault(role, {})[name] = shape
    weights = shapes.pop("weights")
    assert shapes.keys() == {"exp_avg", "exp_avg_sq"} and all(own == weights for own in shapes.values())
    for name in weights:
        assert ".lora_" in name or name.endswith(".new_rows") or ".merger." in name, name
    beside = tmp_path / "out" / "final" / "adapter"
    written = load_file(beside / "adapter_model.safetensors")
    assert sorted(t.numel() for t in written.values()) == sorted(map(math.prod, weights.values()))
    body = json.loads((beside / "adapter_config.json").read_text())
    assert body["r"] == 4 and body["base_model_name_or_path"] == world.model
    digest = json.loads((tmp_path / "out" / "final" / "lineage.json").read_text())["weights_sha256"]
    assert weights_digest(str(tmp_path / "out" / "final")) == digest  # the adapter is no part of the model


def test_wrong_combinations_have_their_sentence():
    with pytest.raises(ConfigError, match="--new-rows-only needs --llm, which"):
        TrainedConfig(llm=False, new_rows_only=True)
    with pytest.raises(ConfigError, match=r"--alpha, .* need --rank, such as 16"):
        LoraConfig(alpha=16.0)
    for trained in (TrainedConfig(llm=False), NEW_ROWS):
        with pytest.raises(ConfigError, match=r"--lora\.rank .* leave out --train\.no-llm"):
            sft_preset(lora=LORA, train=trained)
    with pytest.raises(ConfigError, match=r"--lora\.dropout must be 0, got 0\.1: samplers have none"):
        grpo_preset(lora=dataclasses.replace(LORA, dropout=0.1))
    assert grpo_preset(lora=LORA).trained == ["projector", "adapters of rank 4", "rows of mask words"]


def sft_preset(**changes: Any) -> TrainMllmConfig:
    return dataclasses.replace(SFT["smoke"], **changes)


def grpo_preset(**changes: Any) -> GrpoConfig:
    return dataclasses.replace(GRES["smoke"], **changes)


# ---------------------------------------------------------------- reinforcement learning


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return World(tmp_path_factory.mktemp("prompts"))


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize("trained", [{"lora": LORA}, {"train": TrainedConfig(new_rows_only=True)}])
def test_samplers_get_merged_weights_and_agree_with_the_learner(prompts, tmp_path, trained):
    """The reference is the base, of which there is one copy, and stays it."""
    algorithm = AlgorithmConfig(kl=KlConfig(weight=0.1))
    config = prompts.config(out=str(tmp_path / "run"), algorithm=algorithm, **trained)
    store = Store()
    learner, sampler = learner_of(config, store), prompts.sampler(config, store)
    plain = {name: value.clone() for name, value in sampler.engine.model.state_dict().items()}
    first = uneven(rolled(sampler))
    assert learner.parity(*first)["max"] < config.checks.parity_max
    assert learnt(learner, first)["metrics"][0]["kl"] == pytest.approx(0, abs=1e-9)

    weights = learner.publish(1)
    assert weights is not None
    sampler.sync(weights)
    groups = uneven(rolled(sampler, number=1), seed=1)
    assert learner.parity(*first)["mean"] > 1e-4  # it has learnt
    assert learner.parity(*groups)["max"] < config.checks.parity_max
    own = sampler.engine.model.state_dict()
    sent = {name for piece in weights.pieces for name, *_ in piece.entries}
    changed = {name for name in plain if not torch.equal(plain[name], own[name])}
    assert sent <= changed <= sent | {"lm_head.weight"}

    assert learnt(learner, groups)["metrics"][0]["kl"] > 1e-6
    reference = dict(learner.reference.named_parameters())
    for name, parameter in learner.model.named_parameters():
        assert (parameter is reference[name]) == (name not in learner.trained), name
    answers = learner_of(prompts.config()).parity(*first)
    learner.model = learner.reference
    assert learner.parity(*first)["max"] == pytest.approx(answers["max"], abs=1e-6)


@pytest.mark.slow
@pytest.mark.numerics
def test_a_learner_with_adapters_goes_on_bit_for_bit_and_exports_what_samplers_have(prompts, tmp_path):
    config = prompts.config(out=str(tmp_path / "run"), lora=LORA)
    store = Store()
    sampler = prompts.sampler(config, store)
    groups = uneven(rolled(sampler))
    straight, again = learner_of(config, store), learner_of(config, store)
    learnt(straight, groups, steps=2)
    straight.save({"step": 2, "fingerprint": straight.task.digest})
    learnt(again, groups)  # what it has done before is forgotten
    again.load(2)
    ends = [learnt(one, groups, steps=2)["weights"] for one in (straight, again)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])

    weights = again.publish(4)
    assert weights is not None
    sampler.sync(weights)
    again.export("final", {"step": 4})
    folder = str(tmp_path / "run" / "final")
    exported, own = load_adapter(folder).load_model(folder).state_dict(), sampler.engine.model.state_dict()
    assert all(torch.equal(exported[name], own[name]) for name in own)
