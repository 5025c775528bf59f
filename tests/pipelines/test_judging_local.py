"""A judge in this process answers like its model alone, whatever it is batched with."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipelines.judging.config import JudgeConfig
from pipelines.judging.judge import Judge
from pipelines.judging.open_judge import open_judge
from samtok.errors import CheckpointError, ConfigError
from samtok.metrics.judged import Ask, Sampling
from tests.judgements import ask, lines_of

TEMPLATE = "{% for m in messages %}[ {{ m.role }} ] {{ m.content }} {% endfor %}[ assistant ]"
WORDS = [
    "<unk>",
    "<pad>",
    "<end>",
    "[",
    "]",
    "system",
    "user",
    "assistant",
    "prompt",
    "of",
    *map(str, range(20)),
]
GREEDY = Sampling(temperature=0.0, max_tokens=6)


def build(folder: Path, *, template: str | None = TEMPLATE) -> Path:
    """A tiny model of words, whose own settings of generation would change what it says."""
    torch.manual_seed(0)
    inner = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "<end>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **named)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=2,
        pad_token_id=1,
        initializer_range=0.5,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.repetition_penalty = 9.0
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("judge") / "tiny")


def opened(folder: Path, out: Path, **own: Any) -> Judge:
    settings: dict[str, Any] = {"kind": "hf", "folder": str(folder), "precision": "float32"} | own
    judge = open_judge(JudgeConfig(**settings), record=str(out / "judgements.jsonl"))
    assert judge is not None
    return judge


def asked(sampling: Sampling = GREEDY) -> list[Ask]:
    prompts = {"short": "1", "long": "3 4 5 6 7 8 9 10 11 12 13", "mid": "14 15 16", "kind": "1"}
    systems = {"kind": "17"}
    return [
        ask(name, prompt=prompt, system=systems.get(name), sampling=sampling)
        for name, prompt in prompts.items()
    ]


def test_replies_are_those_of_the_model_alone_for_any_batch(folder: Path, tmp_path: Path):
    model: Any = LlamaForCausalLM.from_pretrained(folder)
    index = {word: place for place, word in enumerate(WORDS)}
    expected, prompt_tokens = {}, 0
    for one in asked():
        told = f"[ system ] {one.system} " if one.system else ""
        ids = [index[word] for word in f"{told}[ user ] {one.prompt} [ assistant ]".split()]
        prompt_tokens += len(ids)
        new: list[int] = []
        while len(new) < 6 and 2 not in new:
            new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
        expected[one.name] = " ".join(WORDS[place] for place in new if place > 2)
    assert len(set(expected.values())) == 4
    for size in (1, 3):
        with opened(folder, tmp_path / str(size), batch_size=size) as judge:
            assert judge.ask(asked()) == expected
            summary = judge.summary()
        assert judge.name.startswith("tiny@") and summary["requests"] == summary["answered"] == 4
        assert summary["prompt_tokens"] == prompt_tokens
        lines = lines_of(tmp_path / str(size))
        assert {line["name"] for line in lines} == set(expected)
        assert summary["cut"] == sum(line["finish"] == "length" for line in lines)
        assert summary["completion_tokens"] == sum(line["tokens"]["completion"] for line in lines)


def test_sampled_replies_are_repeated_by_a_replay_and_by_an_equal_run(folder: Path, tmp_path: Path):
    drawn = asked(Sampling(temperature=1.0, top_p=0.95, max_tokens=6))
    state = torch.get_rng_state()
    with opened(folder, tmp_path) as judge:
        first = judge.ask(drawn)
        name = judge.name
    assert torch.equal(state, torch.get_rng_state())
    replay = open_judge(
        JudgeConfig(kind="replay", record=f"{tmp_path}/judgements.jsonl", model=name), record=""
    )
    assert replay is not None and replay.ask(drawn) == first
    with opened(folder, tmp_path / "again") as judge:
        assert judge.ask(drawn) == first
    with opened(folder, tmp_path / "greedy", temperature=0.0) as judge:
        assert judge.ask(drawn) != first


def test_images_and_models_that_cannot_be_asked_are_refused(folder: Path, tmp_path: Path):
    with opened(folder, tmp_path) as judge, pytest.raises(ConfigError, match="judges texts alone") as caught:
        judge.ask([ask("x", images=(np.zeros((2, 2, 3), np.uint8),))])
    assert caught.value.owner is judge.config and "--kind http" in str(caught.value)
    with pytest.raises(CheckpointError, match="has no chat template"):
        opened(build(tmp_path / "mute", template=None), tmp_path / "a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be loaded as a judge of texts"):
        opened(tmp_path / "empty", tmp_path / "b")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        opened(tmp_path / "nowhere", tmp_path / "c")
