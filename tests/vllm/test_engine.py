"""The engine on a real vLLM, beside transformers' of the same environment: ``make test-vllm``.

The tiny model has what vLLM runs faithfully: attention heads of 32 and vision positions of base 10000.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed here; make test-vllm runs this in its environment")

from pipelines.generation.config import EngineConfig
from pipelines.generation.engine import HfEngine, LearningEngine, asked_of, in_order, open_engine
from pipelines.generation.vllm_engine import VllmEngine, engine_prompt, never_sampled
from samtok.errors import CheckpointError, ConfigError, DataError
from samtok.mllm.adapters import load_adapter
from samtok.mllm.chat import Encoded, Turn
from samtok.mllm.family import Adapter
from samtok.mllm.generation import processor_of
from samtok.mllm.sampling import Sampled, response_log_probs
from tests import tiny_mllm
from tests.tiny_mllm import VLLM, picture

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(400)]

TOKENS = 10
CLOSE = 1e-5
"""Difference of log-probabilities in float32 that both engines keep to."""


@pytest.fixture(
    scope="module",
    params=[VLLM[0], *(pytest.param(family, marks=pytest.mark.long) for family in VLLM[1:])],
)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_mllm.build(tmp_path_factory.mktemp(request.param) / "model", request.param)


@pytest.fixture(scope="module")
def settings() -> EngineConfig:
    return EngineConfig(engine="vllm", max_new_tokens=TOKENS)


@pytest.fixture(scope="module")
def engine(folder: Path, settings: EngineConfig) -> VllmEngine:
    return opened(folder, settings)


def opened(folder: Path, settings: EngineConfig, *, grammar: bool = False) -> VllmEngine:
    more = {"device": "cpu", "precision": "float32", "learns": True, "max_prompt_tokens": 200}
    return open_engine(str(folder), settings, grammar=grammar, **more)


def hf(folder: Path, *, grammar: bool = False) -> HfEngine:
    settings = EngineConfig(max_new_tokens=TOKENS)
    return open_engine(str(folder), settings, device="cpu", precision="float32", grammar=grammar, learns=True)


def prompts(engine: Any) -> list[Encoded]:
    """With one image, two of other sizes in another order, and none."""
    found = []
    for parts, images in (
        ((0, "Where is the blue star?"), [picture(1)]),
        ((1, "Segment ", 0, "the red ring."), [picture(2, (40, 90)), picture(3, (100, 56))]),
        (("Be brief.",), []),
    ):
        turns = [Turn("user", parts)]
        found.append(asked_of(engine, engine.adapter.encode_prompt(turns, images), turns, images))
    return found


@torch.no_grad()
def apart(
    beside: HfEngine, asked: list[Encoded], groups: list[list[Sampled]], *, grammar: bool = False
) -> float:
    """Largest difference between the log-probabilities that were recorded and transformers' own."""
    processor = processor_of(beside.adapter, grammar=grammar)
    ids = [[said.ids for said in group] for group in groups]
    ours = response_log_probs(beside.model, beside.adapter, asked, ids, processor).log_probs
    theirs = np.concatenate([said.log_probs for group in groups for said in group])
    return float(np.abs(ours.numpy() - theirs).max())


def put(engine: LearningEngine, state: Mapping[str, torch.Tensor]) -> None:
    engine.load_weights({name: value.shape for name, value in state.items()}, state.items())


def test_log_probabilities_agree_before_and_after_weights_change(engine: VllmEngine, folder: Path):
    """Of trained weights alone, as learners publish them: those of the vision encoder and the tied head are
    not among them."""
    beside, asked = hf(folder), prompts(engine)
    assert apart(beside, asked, engine.sample(asked, responses=4, seed=1)) < CLOSE
    before = engine.greedy(asked)
    assert before == beside.greedy(asked)
    noise = torch.Generator().manual_seed(0)
    state = {
        name: value.detach() + 0.05 * torch.randn(value.shape, generator=noise)
        for name, value in beside.model.named_parameters()
        if ".visual." not in name
    }
    put(beside, state)
    assert apart(beside, asked, engine.sample(asked, responses=4, seed=1)) > 0.1, "the weights are old"
    put(engine, state)
    assert apart(beside, asked, engine.sample(asked, responses=4, seed=1)) < CLOSE
    after = engine.greedy(asked)
    assert after == beside.greedy(asked) and after != before
    put(engine, {name: value for name, value in hf(folder).model.named_parameters() if name in state})
    assert engine.greedy(asked) == before


@pytest.mark.long
def test_a_family_that_vllm_cannot_run_here_is_refused_with_its_reason(
    tmp_path: Path, settings: EngineConfig
):
    """Linear attention: on CPUs vLLM has it in bfloat16 alone."""
    with pytest.raises(CheckpointError, match=r"requires BF16.*Use the engine hf"):
        opened(tiny_mllm.build(tmp_path / "model", "qwen3_5"), settings)


def test_equal_seeds_repeat_and_places_have_seeds_of_their_own(engine: VllmEngine):
    asked = prompts(engine)[:1] * 2
    first, again, other = (
        [[said.ids.tolist() for said in group] for group in engine.sample(asked, responses=3, seed=seed)]
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert first[0] != first[1]


def test_another_image_changes_what_is_said(engine: VllmEngine):
    turns = [Turn("user", (0, "Where is the blue star?"))]
    one, other = (
        asked_of(engine, engine.adapter.encode_prompt(turns, [image]), turns, [image])
        for image in (picture(1), 255 - picture(1))
    )
    (first,), (second,) = (engine.sample([prompt], responses=8, seed=0) for prompt in (one, other))
    assert any(a.log_probs.tolist() != b.log_probs.tolist() for a, b in zip(first, second, strict=True))


def test_excluded_tokens_never_come_and_the_others_keep_their_probabilities(engine: VllmEngine):
    said = [one for group in engine.sample(prompts(engine), responses=64, seed=3) for one in group]
    assert not {id_ for one in said for id_ in one.ids.tolist()} & set(engine.adapter.suppressed_ids)
    assert all(one.complete == (one.ids[-1] in engine.adapter.stop_ids) for one in said)
    assert max(map(len, said)) == TOKENS


def test_any_number_of_prompts_is_answered_at_once_as_one_by_one(engine: VllmEngine):
    asked = prompts(engine) * 5
    assert in_order(engine, asked, batch_size=2) == [engine.greedy([prompt])[0] for prompt in asked]


def test_weights_that_do_not_fit_change_nothing(engine: VllmEngine):
    asked = prompts(engine)
    before = engine.greedy(asked)
    name, shape = next(iter(engine.shapes.items()))
    for state in ({"model.other": torch.zeros(1)}, {name: torch.zeros(shape[0] + 1)}):
        with pytest.raises(CheckpointError):
            put(engine, state)
    assert engine.greedy(asked) == before


def test_more_images_than_the_engine_takes_are_a_fault_of_the_prompt(engine: VllmEngine):
    turns = [Turn("user", (0, 0, 0, "Which?"))]
    with pytest.raises(DataError, match="3 images, the engine takes 2 .its max-images"):
        asked_of(engine, engine.adapter.encode_prompt(turns, [picture(0)]), turns, [picture(0)])


def test_a_prompt_that_is_too_long_is_a_fault_of_the_prompt(engine: VllmEngine):
    turns = [Turn("user", ("Where? " * 200,))]
    with pytest.raises(DataError, match="the engine takes 200"):
        asked_of(engine, engine.adapter.encode_prompt(turns, []), turns, [])


def test_a_prompt_that_vllm_reads_differently_is_refused(engine: VllmEngine):
    (prompt, *_) = prompts(engine)
    larger = replace(prompt, images=(picture(0, (56, 112)),))
    with pytest.raises(ConfigError, match=r"read a prompt of \d+ tokens as \d+"):
        engine.greedy([larger])
    with pytest.raises(ValueError, match="1 runs of image tokens and came with 0 images"):
        engine_prompt(replace(prompt, images=()))


def test_a_model_that_vllm_cannot_run_is_refused_with_its_reason(settings: EngineConfig, tmp_path: Path):
    """Heads of 16, which its attention has not on CPUs."""
    small = tiny_mllm.build(tmp_path / "model", num_heads=4)
    with pytest.raises(CheckpointError, match="vLLM cannot run .*Use the engine hf"):
        opened(small, settings)


def test_more_excluded_tokens_than_vllm_takes_are_refused(folder: Path):
    adapter: Adapter = load_adapter(folder)
    tokens = len(adapter.tokenizer)
    assert set(never_sampled(adapter, tokens + 2)) == {*adapter.suppressed_ids, tokens, tokens + 1}
    with pytest.raises(ConfigError, match="excludes at most 1024 tokens"):
        never_sampled(adapter, tokens + 1024)


def test_a_structural_tag_allows_exactly_what_the_grammar_allows(folder: Path, settings: EngineConfig):
    """Sampled texts never leave the grammar, and their probabilities are those under the grammar, which
    divides by what it allows: one token more or less would show in each."""
    engine, beside = opened(folder, settings, grammar=True), hf(folder, grammar=True)
    start = engine.adapter.word_ids.start
    asked = prompts(engine)
    groups = engine.sample(asked, responses=256, seed=5)
    assert sum(start in said.ids.tolist() for group in groups for said in group) >= 10
    assert engine.greedy(asked) == beside.greedy(asked)
    assert apart(beside, asked, groups, grammar=True) < CLOSE


def test_settings_of_the_checkpoint_change_nothing(folder: Path, settings: EngineConfig, tmp_path: Path):
    copy = shutil.copytree(folder, tmp_path / "model")
    body = json.loads((copy / "generation_config.json").read_text())
    body |= {"temperature": 0.1, "top_k": 1, "top_p": 0.1, "repetition_penalty": 5.0, "min_p": 0.9}
    (copy / "generation_config.json").write_text(json.dumps(body))
    engine = opened(copy, settings)
    asked = prompts(engine)
    assert apart(hf(folder), asked, engine.sample(asked, responses=4, seed=1)) < CLOSE
