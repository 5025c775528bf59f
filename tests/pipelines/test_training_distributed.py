"""Several workers learn what one learns, plain or under ZeRO, and take over each other's checkpoints."""

import shutil
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.training.config import EngineConfig
from samtok.model.tokenizer import MaskTokenizer
from tests.training import curve_of, record_of, short, train, train_all

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = {"steps": 20, "quantize_from": 0.5}
ROOT = Path(__file__).parents[2]


RUNS = {"plain": 1, "zero1": 2, "zero2": 1}
"""Engines, and images of their micro-batches."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def whole(home):
    """One worker, plain, twenty steps."""
    train(short(home / "whole", **STEPS))
    return home / "whole"


@pytest.fixture(scope="module")
def two(home):
    """Runs of two workers by engine, all in the same two processes."""
    configs = {
        name: short(home / name, workers=2, micro=micro, **STEPS, engine=engine(name))
        for name, micro in RUNS.items()
    }
    train_all(list(configs.values()), rendezvous=home / "meet")
    return {name: Path(config.out) for name, config in configs.items()}


def assert_same_curve(one: Path, other: Path) -> None:
    for a, b in zip(curve_of(one), curve_of(other), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-4), (a["step"], name)
    books = [MaskTokenizer.from_pretrained(str(out / "final")).quantizer.codebooks for out in (one, other)]
    assert float((books[0] - books[1]).abs().max()) < 5e-3 * float(books[0].abs().max())


def engine(name: str) -> EngineConfig:
    file = None if name == "plain" else str(ROOT / "infra" / "deepspeed" / f"{name}.json")
    return EngineConfig(deepspeed=file)


@pytest.mark.parametrize("name", RUNS)
def test_workers_micro_batches_and_engines_give_the_same_losses_and_codebooks(whole, two, name):
    assert_same_curve(whole, two[name])
    assert record_of(two[name])["workers"] == 2


@pytest.mark.parametrize("name", ["plain", "zero1"])
def test_a_checkpoint_of_two_workers_goes_on_with_one(tmp_path, whole, two, name):
    """From before quantization began, so that embeddings kept by both workers are handed over too."""
    out = tmp_path / "out"
    shutil.copytree(two[name], out)
    (out / "record.json").unlink()
    for step in (12, 16, 20):
        storage.delete(str(out / "checkpoints" / f"step-{step:08d}" / "state.json"))
    events = train(short(out, **STEPS))
    assert events[0][0] == "resumed" and events[0][1]["step"] == 8
    assert_same_curve(whole, out)
    assert record_of(out)["workers"] == 1
