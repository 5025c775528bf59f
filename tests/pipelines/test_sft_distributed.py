"""Two workers learn what one learns, plain or under ZeRO, and take over each other's checkpoints."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipelines.sft.config import TrainMllmConfig
from pipelines.training.config import LoraConfig, MllmEngineConfig, TrainedConfig
from samtok.mllm.adapters import load_adapter
from tests.mllm_evaluations import World, without_image, write_chats
from tests.sft import short, train, train_all, validation, workers, zero
from tests.training import curve_of, record_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ENGINES = ("plain", "zero1", "zero2 packed by tokens", "zero3", "zero3 shared out packed")
ADAPTED = ("zero2 packed by tokens", "zero3", "zero3 shared out checkpointed")
MIXED = ("zero1", "zero2", "zero2 packed by tokens", "zero3 shared out", "zero3 shared out checkpointed")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("sft")


@pytest.fixture(scope="module")
def world(home):
    return World(home / "world", 12)


def settings(world: World, out: Path, **changes) -> TrainMllmConfig:
    """A run with a rate for new rows, and an odd number of held-out chats."""
    config = short(world, out, **{"new_rows_lr": 6e-3, "micro_batch": 2, **changes})
    return dataclasses.replace(config, validation=dataclasses.replace(config.validation, samples=9))


@pytest.fixture(scope="module")
def one(home, world):
    """One plain worker."""
    train(settings(world, home / "one"))
    return home / "one"


def adapted(world: World, out: Path, **changes) -> TrainMllmConfig:
    """Four steps of adapters and new rows, with a rate for the rows."""
    looks = validation(world.chat, every=4, samples=9)
    short_one = {"steps": 4, "validation": looks, "lora": LoraConfig(rank=4), "train": TrainedConfig()}
    return settings(world, out, **short_one, **changes)


@pytest.fixture(scope="module")
def one_adapted(home, world):
    """One plain worker with adapters."""
    train(adapted(world, home / "one adapted"))
    return home / "one adapted"


def mixed(world: World, text: str, out: Path, **changes) -> TrainMllmConfig:
    """Four steps with chats of images beside as many of text alone, to learn from and held out."""
    looks = validation(world.chat, text, every=4, samples=9, generations=0)
    return short(
        world, out, chats=(world.chat, text), validation=looks, steps=4, **{"micro_batch": 2, **changes}
    )


@pytest.fixture(scope="module")
def text(home, world):
    """Chats of text alone."""
    rows = [without_image(row) for row in world.rows]
    return write_chats(home / "text", rows, weights_sha256=world.sha256)


@pytest.fixture(scope="module")
def one_mixed(home, world, text):
    """One plain worker with chats of both kinds."""
    train(mixed(world, text, home / "one mixed"))
    return home / "one mixed"


@pytest.fixture(scope="module")
def two(home, world, text, one):
    """Runs of two workers by name, all in the same two processes; the last ones end with errors."""
    shared_out = home / "zero3.json"  # the shipped file leaves parameters as small as these whole
    body = json.loads(Path(zero(3)).read_text())
    body["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    shared_out.write_text(json.dumps(body))
    files = {"plain": None, "zero1": zero(1), "zero2": zero(2), "zero3": zero(3)}
    files["zero3 shared out"] = str(shared_out)

    def budget(name: str) -> dict[str, Any]:
        return {"micro_batch": None, "micro_batch_tokens": 350} if "by tokens" in name else {"micro_batch": 2}

    def engine(name: str) -> MllmEngineConfig:
        file = files[name.removesuffix(" by tokens").removesuffix(" packed").removesuffix(" checkpointed")]
        more = {"packing": "packed" in name, "gradient_checkpointing": "checkpointed" in name}
        return MllmEngineConfig(deepspeed=file, **more)

    runs = {name: settings(world, home / name, engine=engine(name), **budget(name)) for name in ENGINES}
    runs |= {
        f"mixed {name}": mixed(world, text, home / f"mixed {name}", engine=engine(name), **budget(name))
        for name in MIXED
    }
    runs |= {
        f"adapted {name}": adapted(world, home / f"adapted {name}", engine=engine(name), **budget(name))
        for name in ADAPTED
    }
    cut(one, home / "taken over", keep=8)
    runs["taken over"] = settings(world, home / "taken over", engine=engine("zero3 shared out"))
    runs |= failing(world, home)
    for name, config in runs.items():
        runs[name] = dataclasses.replace(config, **workers(2))
    train_all(list(runs.values()), rendezvous=home / "meet", errors=True)
    return {name: Path(config.out) for name, config in runs.items()}


def failing(world: World, home: Path) -> dict[str, TrainMllmConfig]:
    """Runs that must end on both workers at once, since each of them waits for the other."""
    missing = [dict(row, images=[dict(row["images"][0], uri="/nowhere/x.png")]) for row in world.rows]
    some = [row if i % 2 else other for i, (row, other) in enumerate(zip(world.rows, missing, strict=True))]
    half = write_chats(home / "half", some, weights_sha256=world.sha256)
    resized = [dict(row, images=[dict(row["images"][0], height=7)]) for row in world.rows]
    none = write_chats(home / "none", resized, weights_sha256=world.sha256)
    spoilt = short(world, home / "spoilt", chats=(half,), validation=validation(), max_reject_rate=0.3)
    unseen = short(world, home / "unseen", validation=validation(none))
    return {"spoilt": spoilt, "unseen": unseen}


def cut(source: Path, out: Path, *, keep: int) -> None:
    """Copies a run as it was right after a checkpoint."""
    shutil.copytree(source, out)
    (out / "record.json").unlink()
    for folder in (out / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > keep:
            shutil.rmtree(folder)


def assert_same(a: Path, b: Path) -> None:
    """Curves, validations and exported weights of two runs are equal but for rounding."""
    for row, other in zip(curve_of(a), curve_of(b), strict=True):
        for name in ("loss", "gradient_norm", "tokens", "learnt_tokens", "samples", "lr", "skipped"):
            assert other[name] == pytest.approx(row[name], rel=1e-4), (row["step"], name)
    looks, others = record_of(a)["validations"], record_of(b)["validations"]
    assert [look["step"] for look in others] == [look["step"] for look in looks] and looks
    for look, other in zip(looks, others, strict=True):
        losses = {name: value for name, value in look.items() if name.startswith("loss")}
        assert {name: other[name] for name in losses} == pytest.approx(losses, rel=1e-4)
        assert {**other, **losses} == look
    for name in ("best", "final"):
        states = [load_adapter(out / name).load_model(out / name).state_dict() for out in (a, b)]
        assert states[0].keys() == states[1].keys()
        for key, tensor in states[0].items():
            assert torch.allclose(states[1][key], tensor, atol=5e-4), (name, key)


# ---------------------------------------------------------------- the same losses


@pytest.mark.parametrize("name", ENGINES)
def test_two_workers_learn_and_say_what_one_does(one, two, name):
    """Among it the loss of nine held-out chats, of which one worker has four and the other five."""
    assert_same(one, two[name])
    assert record_of(two[name])["workers"] == 2 and record_of(two[name])["validations"][0]["samples"] == 9
    answers = [json.loads((out / "generations" / "00000012.json").read_text()) for out in (one, two[name])]
    assert len(answers[0]) == 2 and answers[0] == answers[1]


@pytest.mark.parametrize("name", MIXED)
def test_two_workers_learn_from_images_and_text_what_one_does(one_mixed, two, name):
    """In most steps one of them has an image in a micro-batch and the other one none."""
    assert_same(one_mixed, two[f"mixed {name}"])
    before, after = record_of(two[f"mixed {name}"])["validations"]
    assert before["step"] == 0 and after["loss/text"] < before["loss/text"] and "loss/chat" in after


@pytest.mark.parametrize("name", ADAPTED)
def test_two_workers_train_the_adapters_that_one_does(one_adapted, two, name):
    """And what they export is merged alike; old rows are those of the start."""
    assert_same(one_adapted, two[f"adapted {name}"])
    files = [
        out / "final" / "adapter" / "adapter_model.safetensors"
        for out in (one_adapted, two[f"adapted {name}"])
    ]
    own, other = map(load_file, files)
    for key, tensor in own.items():
        assert torch.allclose(other[key], tensor, atol=5e-4), key


# ---------------------------------------------------------------- checkpoints


def test_two_workers_under_zero_3_go_on_from_a_checkpoint_of_one_plain_worker(one, two):
    assert_same(one, two["taken over"])


def test_one_plain_worker_goes_on_from_a_checkpoint_of_two_under_zero_3(world, one, two, tmp_path):
    cut(two["zero3 shared out packed"], tmp_path / "out", keep=8)
    events = train(settings(world, tmp_path / "out"))
    assert events[0][0] == "resumed" and events[0][1]["step"] == 8
    assert_same(one, tmp_path / "out")
    assert record_of(tmp_path / "out")["workers"] == 1


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("spoilt", "DataError: 5"),
        ("unseen", "none of the first 8 chats of --validation.chats can be used"),
    ],
)
def test_both_workers_end_with_the_same_reason(two, name, part):
    said = [(two[name] / f"error-{rank}.txt").read_text() for rank in (0, 1)]
    assert said[0] == said[1] and part in said[0]
