"""The vLLM engine on a copy of the parts of vLLM that it calls; no engine runs here."""

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.chats.prompt_selection import load_prompts
from pipelines.grpo.config import GrpoConfig, RolloutConfig
from pipelines.grpo.groups import RolloutTask
from pipelines.grpo.rollout.engines import HfEngine, Shown
from pipelines.grpo.rollout.sampler import Sampler
from pipelines.grpo.transport import WeightTransport
from samtok.errors import CheckpointError, ConfigError
from samtok.mllm.adapters import load_adapter
from samtok.mllm.chat import Turn
from samtok.mllm.family import Adapter
from tests.grpo import World
from tests.tiny_mllm import picture

ROLLOUT = RolloutConfig(engine="vllm", python="/opt/vllm/bin/python", group_size=2, max_new_tokens=5)


@dataclass
class SamplingParams:
    """The fields of vLLM's class that are used; others are refused, as there."""

    n: int = 1
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    logit_bias: dict[int, float] | None = None


class LLM:
    """Fills in images as vLLM does, answers as the test asks, and writes down what it was asked."""

    def __init__(
        self,
        model: str,
        *,
        dtype: str,
        tensor_parallel_size: int,
        gpu_memory_utilization: float,
        enable_sleep_mode: bool,
        logprobs_mode: str,
        generation_config: str,
        trust_remote_code: bool,
        logits_processors: Sequence[str] | None = None,
        async_scheduling: bool | None = None,
    ) -> None:
        self.adapter = load_adapter(model)
        self.settings = {"logprobs_mode": logprobs_mode, "processors": logits_processors}
        self.settings |= {"async_scheduling": async_scheduling, "dtype": dtype}
        self.says: Callable[[int], tuple[list[int], list[float]]] = self._hello
        self.places_more = 0
        self.calls: list[Any] = []
        self.asked: list[tuple[Mapping[str, Any], SamplingParams]] = []
        self.model = _Model()
        self.llm_engine = SimpleNamespace(reset_encoder_cache=lambda: self.calls.append("reset_encoder"))

    def _hello(self, response: int) -> tuple[list[int], list[float]]:
        return [response + 40, self.adapter.stop_ids[0]], [-0.5 - response, -0.25]

    def generate(
        self, prompts: Sequence[Mapping[str, Any]], params: Sequence[SamplingParams], *, use_tqdm: bool
    ) -> list[Any]:
        self.asked += zip(prompts, params, strict=True)
        return [self._output(*one) for one in zip(prompts, params, strict=True)]

    def _output(self, prompt: Mapping[str, Any], params: SamplingParams) -> Any:
        images = iter(prompt.get("multi_modal_data", {}).get("image", []))
        place, seen = self.adapter.tokenizer.get_vocab()[self.adapter.image_token], []
        for id_ in prompt["prompt_token_ids"]:
            times = 1
            if id_ == place:
                times = self.adapter.vision_tensors([np.array(next(images))])[1][0] + self.places_more
            seen += [id_] * times
        said = [self._completion(response, params) for response in range(params.n)]
        return SimpleNamespace(prompt_token_ids=seen, outputs=said[::-1])

    def _completion(self, response: int, params: SamplingParams) -> Any:
        ids, values = self.says(response)
        steps = [{id_: SimpleNamespace(logprob=value)} for id_, value in zip(ids, values, strict=True)]
        return SimpleNamespace(
            index=response, token_ids=ids, logprobs=steps if params.logprobs is not None else None
        )

    def collective_rpc(
        self, method: Callable[..., Any], timeout: float | None = None, args: tuple = ()
    ) -> list:
        return [method(SimpleNamespace(model_runner=SimpleNamespace(model=self.model)), *args)]

    def reset_prefix_cache(self) -> None:
        self.calls.append("reset_prefix")

    def sleep(self, level: int = 1, mode: str = "abort") -> None:
        self.calls.append(("sleep", level))

    def wake_up(self, tags: list[str] | None = None) -> None:
        self.calls.append(("wake", tags))


class _Model:
    """Renames weights as vLLM's Qwen2.5-VL does, and joins none."""

    def __init__(self) -> None:
        self.loaded: dict[str, torch.Tensor] = {}
        self.knows = True

    def load_weights(self, weights: list[tuple[str, torch.Tensor]]) -> set[str]:
        new = {
            name.replace("model.language_model.", "language_model.model."): value for name, value in weights
        }
        self.loaded |= new if self.knows else {}
        return set(new) if self.knows else set()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"), images=1)


@pytest.fixture(scope="module")
def adapter(world: World) -> Adapter:
    return load_adapter(world.model)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Our module, importing the copy."""
    vllm: Any = ModuleType("vllm")
    vllm.LLM, vllm.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")  # restored afterwards
    yield importlib.import_module("pipelines.grpo.rollout.vllm_engine")
    del sys.modules["pipelines.grpo.rollout.vllm_engine"]


@pytest.fixture
def engine(module: Any, world: World) -> Any:
    return module.VllmEngine(world.model, ROLLOUT)


def shown(adapter: Adapter, question: str = "Where?", count: int = 1) -> Shown:
    """A prompt about some images of different sizes."""
    images = [picture(number, (28, 28 + 28 * number)) for number in range(count)]
    encoded = adapter.encode_prompt([Turn("user", (*range(count), question))], images)
    return Shown(**vars(encoded), images=tuple(images))


def test_a_prompt_goes_in_with_one_place_for_each_image_and_the_images_in_order(
    module: Any, adapter: Adapter
):
    prompt = shown(adapter, count=2)
    given = module.engine_prompt(prompt)
    place = adapter.tokenizer.get_vocab()[adapter.image_token]
    assert prompt.input_ids.tolist().count(place) > 2
    assert given["prompt_token_ids"].count(place) == 2
    assert [id_ for id_ in given["prompt_token_ids"] if id_ != place] == [
        id_ for id_ in prompt.input_ids.tolist() if id_ != place
    ]
    assert [image.size for image in given["multi_modal_data"]["image"]] == [(28, 28), (56, 28)]


def test_a_prompt_without_images_has_no_image_data(module: Any, adapter: Adapter):
    given = module.engine_prompt(shown(adapter, count=0))
    assert list(given) == ["prompt_token_ids"]


def test_a_prompt_that_lost_its_images_is_refused(module: Any, adapter: Adapter):
    with pytest.raises(ValueError, match=r"2 runs of image tokens and came with 0 images"):
        module.engine_prompt(replace(shown(adapter, count=2), images=()))


def test_replies_come_back_in_order_with_their_log_probabilities(engine: Any, adapter: Adapter):
    prompts = [shown(adapter), shown(adapter, "What?")]
    groups = engine.sample(prompts, responses=2, seed=7)
    assert [[said.ids.tolist() for said in group] for group in groups] == [
        [[40, adapter.stop_ids[0]], [41, adapter.stop_ids[0]]]
    ] * 2
    assert groups[0][1].log_probs.tolist() == [-1.5, -0.25] and groups[0][1].complete
    assert groups[0][0].ids.dtype == np.int32 and groups[0][0].log_probs.dtype == np.float32


def test_a_response_that_was_cut_is_not_complete(engine: Any, adapter: Adapter):
    engine.llm.says = lambda _: ([40, 41, 42], [-1.0, -1.0, -1.0])
    assert not engine.sample([shown(adapter)], responses=1, seed=0)[0][0].complete


def test_each_prompt_has_a_seed_of_its_own_and_equal_seeds_repeat(engine: Any, adapter: Adapter):
    def seeds(seed: int) -> list[int | None]:
        engine.llm.asked.clear()
        engine.sample([shown(adapter)] * 2, responses=2, seed=seed)
        return [params.seed for _, params in engine.llm.asked]

    assert seeds(1) == seeds(1)
    assert len({*seeds(1), *seeds(2)}) == 4


def test_requests_exclude_what_the_learner_excludes_and_filter_nothing_else(
    engine: Any, module: Any, adapter: Adapter
):
    engine.sample([shown(adapter)], responses=2, seed=0)
    engine.greedy([shown(adapter)])
    for _, params in engine.llm.asked:
        assert set(params.logit_bias) == set(adapter.suppressed_ids)
        assert set(params.logit_bias.values()) == {module.NEVER}
        assert (params.top_p, params.top_k, params.min_p, params.repetition_penalty) == (1.0, 0, 0.0, 1.0)
        assert params.stop_token_ids == list(adapter.stop_ids) and params.ignore_eos
        assert params.max_tokens == ROLLOUT.max_new_tokens
    assert [params.temperature for _, params in engine.llm.asked] == [1.0, 0.0]
    assert [params.n for _, params in engine.llm.asked] == [2, 1]


def test_rows_without_a_token_are_excluded_too(module: Any, adapter: Adapter):
    tokens = len(adapter.tokenizer)
    assert set(module.never_sampled(adapter, tokens + 2)) == {*adapter.suppressed_ids, tokens, tokens + 1}


def test_greedy_replies_are_token_ids(engine: Any, adapter: Adapter):
    assert engine.greedy([shown(adapter)]) == [[40, adapter.stop_ids[0]]]
    assert engine.greedy([]) == []


def test_a_prompt_that_vllm_reads_differently_ends_the_run(engine: Any, adapter: Adapter):
    engine.llm.places_more = 1
    with pytest.raises(ConfigError, match=r"read a prompt of \d+ tokens as \d+.*--rollout.engine hf"):
        engine.sample([shown(adapter)], responses=1, seed=0)


@pytest.mark.parametrize("wrong", ["nan", "excluded"])
def test_a_response_that_cannot_be_is_refused(engine: Any, adapter: Adapter, wrong: str):
    id_, value = (40, float("nan")) if wrong == "nan" else (adapter.suppressed_ids[0], -1.0)
    engine.llm.says = lambda _: ([id_], [value])
    with pytest.raises(CheckpointError, match="no number or one token is excluded"):
        engine.sample([shown(adapter)], responses=1, seed=0)


def test_log_probabilities_are_those_that_were_sampled_from(engine: Any):
    assert engine.llm.settings["logprobs_mode"] == "processed_logprobs"
    assert engine.llm.settings["processors"] is None


def test_the_grammar_comes_from_the_folder_and_steps_do_not_overlap(module: Any, world: World):
    settings = module.VllmEngine(world.model, replace(ROLLOUT, grammar=True)).llm.settings
    assert settings["processors"] == ["samtok.mllm.vllm_grammar:MaskWordProcessor"]
    assert settings["async_scheduling"] is False


def test_the_engine_runs_inside_the_process(engine: Any):
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def trained(world: World) -> dict[str, torch.Tensor]:
    """The weights that a learner publishes: all but the vision encoder's."""
    model = HfEngine(world.model, RolloutConfig(), "cpu").model
    return {name: value.detach() for name, value in model.named_parameters() if ".visual." not in name}


def test_weights_go_in_by_their_names_and_what_the_old_ones_made_is_forgotten(engine: Any, world: World):
    state = trained(world)
    engine.load_weights(state)
    assert len(engine.llm.model.loaded) == len(state)
    assert engine.llm.calls == ["reset_prefix", "reset_encoder"]


@pytest.mark.parametrize("wrong", ["name", "shape"])
def test_weights_that_do_not_fit_change_nothing(engine: Any, world: World, wrong: str):
    name, value = next(iter(trained(world).items()))
    other = {"model.other": value} if wrong == "name" else {name: value[:1]}
    with pytest.raises(CheckpointError):
        engine.load_weights({name: value, **other} if wrong == "name" else other)
    assert not engine.llm.model.loaded and not engine.llm.calls


def test_weights_of_which_vllm_takes_none_end_the_run(engine: Any, world: World):
    engine.llm.model.knows = False
    with pytest.raises(CheckpointError, match=r"took none of \d+ weights.*--rollout.engine hf"):
        engine.load_weights(trained(world))


def test_asleep_weights_wake_to_be_replaced_and_the_rest_wakes_to_sample(
    engine: Any, adapter: Adapter, world: World
):
    engine.sleep()
    engine.load_weights(trained(world))
    engine.sample([shown(adapter)], responses=1, seed=0)
    engine.wake()  # nothing sleeps any more
    woken = [call for call in engine.llm.calls if isinstance(call, tuple)]
    assert woken == [("sleep", 1), ("wake", ["weights"]), ("wake", ["kv_cache"])]


def test_a_sampler_hands_the_engine_images_and_makes_groups_of_its_answers(
    module: Any, world: World, adapter: Adapter, tmp_path: Path
):
    config: GrpoConfig = world.config(rollout=replace(ROLLOUT, prompts_per_task=4))
    prompts = load_prompts(config.chats, config.prompts, seed=0)
    transport = WeightTransport(lambda data: data, lambda ref: ref, piece_bytes=2**20)
    sampler = Sampler(config, prompts, None, transport)
    sampling, groups = sampler.roll(RolloutTask(0, ((0, 0), (1, 1))))
    assert not sampling.rejects and [len(group.responses) for group in groups] == [2, 2]
    assert [group.responses[0].ids.tolist() for group in groups] == [[40, adapter.stop_ids[0]]] * 2
    assert all("pixel_values" in group.vision for group in groups)
