"""Every family does what docs/families.md says, and a further one is a file."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.extend_mllm import main
from pipelines.sft.config import ValidationConfig
from pipelines.training.config import MllmEngineConfig
from pipelines.training.mllm import export
from samtok.errors import ConfigError
from samtok.mllm import registry
from samtok.mllm.adapters import load_adapter
from samtok.mllm.chat import Turn
from samtok.mllm.generation import generate
from samtok.mllm.loss import answer_loss
from samtok.words import parse_words
from tests import families, grpo
from tests.collected import COLLECTED
from tests.mllm_evaluations import World
from tests.sft import short, train
from tests.tiny_mllm import FAMILIES, QWEN, picture
from tests.training import curve_of

ROOT = Path(__file__).parents[2]
MOST_LONG = [
    family if family == "qwen3_5" else pytest.param(family, marks=pytest.mark.long) for family in FAMILIES
]
"""All families; those of older code are left to ``make test-all``."""


# ---------------------------------------------------------------- the table


def test_the_table_of_the_docs_is_that_of_the_tests():
    assert families.table() in (ROOT / "docs/families.md").read_text(), families.table()


def test_each_cell_of_the_table_is_a_test_with_that_family(request: pytest.FixtureRequest):
    """Of the files that this session has collected, and a session of all tests has them all."""
    told: dict[str, list[str]] = {}
    for item in request.config.stash[COLLECTED]:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            test = f"{item.path.relative_to(ROOT).as_posix()}::{item.originalname}"
            told.setdefault(test, []).append(" ".join(map(str, item.callspec.params.values())))
    for name, column in families.COLUMNS.items():
        file, _, test = column.test.partition("::")
        text = (ROOT / file).read_text()
        assert f"def {test}(" in text
        assert name != "vLLM" or "for family in VLLM" in text  # collected in its own environment alone
        for family in FAMILIES if column.test in told else ():
            assert any(family in one for one in told[column.test]) == (family in column.families), name


# ---------------------------------------------------------------- each family


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("families"), 4)


@pytest.mark.slow
@pytest.mark.parametrize("family", MOST_LONG)
def test_each_family_is_fine_tuned_with_any_cut_into_batches(world: World, tmp_path: Path, family: str):
    model = world.build(tmp_path / "model", family=family)

    def losses(name: str, **changes: Any) -> list[float]:
        told = {"model": model, "steps": 4, "validation": ValidationConfig(), **changes}
        train(short(world, tmp_path / name, **told))
        return [row["loss"] for row in curve_of(tmp_path / name)]

    alone = losses("alone", micro_batch=1)
    assert alone[-1] < alone[0]
    assert losses("padded", micro_batch=8) == pytest.approx(alone, rel=2e-4)
    if family in QWEN:
        for checkpointed in (False, True):
            engine = MllmEngineConfig(packing=True, gradient_checkpointing=checkpointed)
            packed = losses(f"packed {checkpointed}", micro_batch=8, engine=engine)
            assert packed == pytest.approx(alone, rel=2e-4)
    adapter = load_adapter(tmp_path / "alone/final")
    trained, untrained = (
        adapter.load_model(place).state_dict() for place in (tmp_path / "alone/final", model)
    )
    assert trained.keys() == untrained.keys()
    assert any(not torch.equal(trained[name], value) for name, value in untrained.items())


@pytest.mark.slow
@pytest.mark.parametrize("family", MOST_LONG)
def test_each_family_learns_from_its_own_samples(tmp_path: Path, family: str):
    world = grpo.World(tmp_path, family=family)
    learner = grpo.learner_of(world.config())
    (metrics,) = grpo.learnt(learner, grpo.rolled(world.sampler()))["metrics"]
    assert metrics["mismatch"] < 1e-5 and metrics["gradient_norm"] > 0.01


# ---------------------------------------------------------------- a further family


@pytest.fixture
def llava(monkeypatch: pytest.MonkeyPatch) -> str:
    """The module of a further family, as a user names it; it is forgotten afterwards."""
    name = "tests.llava_family"
    monkeypatch.setattr(registry, "FAMILIES", dict(registry.FAMILIES))
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setenv(registry.VARIABLE, name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    return name


@pytest.mark.slow
def test_a_family_in_one_file_is_extended_trained_asked_and_exported(llava: str, tmp_path: Path):
    flags = ["--tokenizer", "tiny", "--numbers.vocab-size", "320"]
    assert main([*flags, "--tiny", "llava", "--out", str(tmp_path / "tiny")]) == 0
    flags = ["--tokenizer", "tiny", "--model", str(tmp_path / "tiny"), "--out", str(tmp_path / "words")]
    assert main(flags) == 0
    adapter = load_adapter(tmp_path / "words")
    assert type(adapter).__module__ == llava
    model = adapter.load_model(tmp_path / "words")
    answer = "<|mt_start|><|mt_0007|><|mt_0511|><|mt_end|>"
    chats = [
        [Turn("user", (0, question)), Turn("assistant", (answer,))] for question in ("Where is it?", "Where?")
    ]
    pictures = [picture(1), picture(2, (40, 90))]
    batch = adapter.collate(
        [adapter.encode(chat, [image]) for chat, image in zip(chats, pictures, strict=True)]
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = answer_loss(model, batch)
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.2 * losses[0]
    asked = [adapter.encode_prompt(chat[:1], [image]) for chat, image in zip(chats, pictures, strict=True)]
    said = generate(model, adapter, asked, max_new_tokens=6)
    assert said == [generate(model, adapter, [prompt], max_new_tokens=6)[0] for prompt in asked]
    assert parse_words(adapter.text_of(said[0]), num_codes=256, num_levels=2)
    export(model, model.state_dict(), adapter, str(tmp_path / "final"), {}, precision="float32")
    again = load_adapter(tmp_path / "final")
    assert generate(again.load_model(tmp_path / "final"), again, asked, max_new_tokens=6) == said


def test_a_module_that_registers_no_family_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(registry.VARIABLE, "no_such_module")
    with pytest.raises(ConfigError, match="SAMTOK_FAMILIES names the module no_such_module.*PYTHONPATH"):
        registry.known()


def test_a_family_cannot_take_the_name_of_another():
    with pytest.raises(ValueError, match=r"a family qwen3_5 already: samtok.mllm.qwen:Qwen3_5Adapter"):
        registry.register(registry.Family(name="qwen3_5", adapter="mine:Adapter"))
