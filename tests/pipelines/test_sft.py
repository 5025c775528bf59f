"""Fine-tuning in one process: steps, micro-batches, packing, checkpoints, exports, bad chats."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipelines.chats.source import ChatSource
from pipelines.chats.spec import ChatCorpusSpec
from pipelines.sft.config import SamplingConfig, TrainMllmConfig
from pipelines.sft.data import PreparedChat, micro_batches, step_loader
from pipelines.sft.evaluate import Validator
from pipelines.sft.job import train_mllm
from pipelines.sft.loop import Trainer
from pipelines.sft.presets import PRESETS
from pipelines.sft.worker import build_trainer
from pipelines.training.config import (
    CheckpointsConfig,
    LoraConfig,
    MllmEngineConfig,
    OptimizerConfig,
    TrainedConfig,
    TrainWorkerConfig,
)
from pipelines.training.loader import StepLoader
from pipelines.training.steps import TrainingDiverged
from pipelines.training.writing import CheckpointWriter
from samtok.errors import CheckpointError, ConfigError, DataError
from samtok.mllm import lora
from samtok.mllm.adapters import load_adapter
from tests.mllm_evaluations import World, strip_row, without_image, write_chats
from tests.sft import EPOCH, ready, short, train, validation, weights_of
from tests.training import curve_of, record_of


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("sft") / "world", 12)


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("sft") / "whole"
    train(short(world, out))
    return out


@pytest.fixture(scope="module")
def one_by_one(world):
    """The losses of four steps whose chats go through the model alone."""
    return [row["loss"] for row in steps_of(world, micro_batch=1)[1]]


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in curve_of(out)]


def steps_of(world: World, **changes) -> tuple[Trainer, list[dict[str, float]]]:
    """Takes four steps, and writes nothing."""
    task = ready(short(world, world.home / "unused", steps=4, **changes))
    adapter = load_adapter(world.model)
    trainer = build_trainer(adapter.load_model(world.model), adapter, task)
    chats = loader(world, steps=4, **changes).steps(0)
    return trainer, [trainer.take_step([prepared.sample for prepared in step]) for step in chats]


# ---------------------------------------------------------------- learning


@pytest.mark.slow
@pytest.mark.numerics
def test_the_loss_falls_and_the_model_comes_out_as_a_folder_of_hugging_faces(world, whole):
    assert losses(whole)[-1] < 0.7 * losses(whole)[0]
    folder = whole / "final"
    adapter = load_adapter(folder)
    trained = adapter.load_model(folder).state_dict()
    start = adapter.load_model(world.model).state_dict()
    assert trained.keys() == start.keys()
    assert any(not torch.equal(trained[name], start[name]) for name in trained)
    assert json.loads((folder / "lineage.json").read_text())["mask_tokenizer_sha256"] == world.sha256


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"micro_batch": 1},
        {"micro_batch": 8},
        {"engine": MllmEngineConfig(packing=True)},
        {"micro_batch": 8, "engine": MllmEngineConfig(packing=True)},
        {"micro_batch_tokens": 300},
        {"micro_batch_tokens": 400, "engine": MllmEngineConfig(packing=True)},
        {"engine": MllmEngineConfig(gradient_checkpointing=True)},
        {"engine": MllmEngineConfig(gradient_checkpointing=True, packing=True)},
    ],
    ids=[
        "one by one",
        "eight",
        "packed",
        "all packed",
        "by tokens",
        "packed by tokens",
        "checkpointed",
        "both",
    ],
)
def test_batches_by_length_and_packing_give_the_losses_of_one_by_one(world, one_by_one, changes):
    """The first loss to 1e-5, and the others after steps that were taken with these gradients."""
    found = [row["loss"] for row in steps_of(world, **changes)[1]]
    assert found[0] == pytest.approx(one_by_one[0], abs=1e-5)
    assert found == pytest.approx(one_by_one, rel=2e-4)


def test_micro_batches_have_chats_of_like_length_and_lose_none(world):
    samples = next(iter(loader(world).steps(0)))
    config = short(world, world.home / "unused", micro_batch=4)
    cut = micro_batches([prepared.sample for prepared in samples], config)
    lengths = [[len(sample) for sample in batch] for batch in cut]
    assert [len(batch) for batch in cut] == [4, 4] and max(lengths[0]) <= min(lengths[1])
    assert sorted(n for batch in lengths for n in batch) == sorted(len(p.sample) for p in samples)


def loader(world: World, **changes) -> StepLoader[PreparedChat]:
    found = ready(short(world, world.home / "unused", **changes))
    return step_loader(found.corpora, found.weights, found.config, load_adapter(world.model), rank=0)


def test_an_epoch_has_every_chat_once_and_a_step_does_not_depend_on_where_the_loader_began(world):
    steps = list(loader(world).steps(0))
    rows = [prepared.sample.input_ids.tolist() for step in steps[:EPOCH] for prepared in step]
    assert len(rows) == 48 and rows != [p.sample.input_ids.tolist() for step in steps[EPOCH:] for p in step]
    first = sorted(rows)
    assert first == sorted(p.sample.input_ids.tolist() for step in steps[EPOCH:] for p in step)
    later = next(iter(loader(world).steps(7)))
    assert [p.sample.input_ids.tolist() for p in later] == [p.sample.input_ids.tolist() for p in steps[7]]


@pytest.mark.slow
def test_loader_processes_prepare_the_same_steps(world):
    here, there = (
        list(loader(world, steps=2, **more).steps(0))
        for more in ({}, {"worker": TrainWorkerConfig(loaders=1)})
    )
    for one, other in zip(here, there, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a.sample.input_ids, b.sample.input_ids)
            assert torch.equal(a.sample.vision["pixel_values"], b.sample.vision["pixel_values"])


def moved_in_four_steps(world: World, **changes) -> dict[str, torch.Tensor]:
    """Returns how far each weight went."""
    before = load_adapter(world.model).load_model(world.model).state_dict()
    trainer = steps_of(world, **changes)[0]
    after = lora.merged(trainer.model, trainer.engine.model_state())
    return {name: (after[name] - before[name]).abs() for name in before}


def test_only_what_is_asked_for_is_trained(world):
    train = TrainedConfig(vision=False, projector=True, llm=False)
    moved = {name for name, way in moved_in_four_steps(world, train=train).items() if float(way.max()) > 0}
    assert moved and all("merger" in name for name in moved), moved


def test_of_the_language_model_rows_of_mask_words_alone_can_learn(world):
    """All others stay bit for bit; output embeddings are the same table."""
    train = TrainedConfig(projector=False, new_rows_only=True)
    moved = moved_in_four_steps(world, train=train)
    table = "model.language_model.embed_tokens.weight"
    assert {name for name, way in moved.items() if float(way.max()) > 0} == {table, "lm_head.weight"}
    ids = sorted(load_adapter(world.model).word_ids.all)
    assert moved[table].amax(dim=1).nonzero().flatten().tolist() == ids


def test_rows_of_mask_words_can_learn_at_a_rate_of_their_own(world):
    """With almost none they stay where they were, and all other rows go their way."""
    moved = moved_in_four_steps(world, new_rows_lr=1e-12)
    ids = list(load_adapter(world.model).word_ids.all)
    rows = next(way for name, way in moved.items() if "embed_tokens" in name).amax(dim=1)
    assert float(rows[ids].max()) < 1e-6 < 1e-3 < float(rows.max())


# ---------------------------------------------------------------- resume


class Killed(BaseException):
    """Ends a run where it stands; nothing of ours catches it."""


def kill_after(step: int, config: TrainMllmConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains, and ends the run as soon as the checkpoint of a step is written."""
    saved = CheckpointWriter.save

    def save_and_die(self, parts, body, **more):
        saved(self, parts, body, **more)
        if body["step"] == step:
            self.wait()
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointWriter, "save", save_and_die)  # a kill at this very moment cannot be timed
        with pytest.raises(Killed):
            train(config)


@pytest.mark.parametrize("step", [4, EPOCH + 2, 12])
@pytest.mark.slow
@pytest.mark.numerics
def test_a_run_that_ends_at_a_checkpoint_goes_on_bit_for_bit(world, tmp_path, whole, step, monkeypatch):
    config = short(world, tmp_path / "out")
    kill_after(step, config, monkeypatch)
    told = train(config)
    assert ("resumed", step) in [(kind, body["step"]) for kind, body in told]
    assert curve_of(tmp_path / "out") == curve_of(whole)
    for name in ("final", "best"):
        assert weights_of(tmp_path / "out", name) == weights_of(whole, name)
    for name in ("validations", "best", "rejects", "tokens"):
        assert record_of(tmp_path / "out")[name] == record_of(whole)[name], name


@pytest.mark.slow
@pytest.mark.numerics
def test_a_run_goes_on_after_the_border_of_an_epoch(world, tmp_path, whole):
    cut = short(
        world, tmp_path / "out", checkpoints=dataclasses.replace(short(world, "x").checkpoints, every=6)
    )
    train(cut)
    (tmp_path / "out" / "record.json").unlink()
    (tmp_path / "out" / "checkpoints" / "step-00000012" / "state.json").unlink()
    told = train(cut)
    assert told[0][0] == "resumed" and told[0][1]["step"] == EPOCH
    assert losses(tmp_path / "out") == losses(whole) and weights_of(tmp_path / "out") == weights_of(whole)


def test_other_settings_in_the_same_folder_are_refused(world, whole):
    with pytest.raises(ConfigError, match=r"other settings.*seed: before 101, now 7.*--out"):
        ready(short(world, whole, seed=7))
    ready(short(world, whole, engine=MllmEngineConfig(packing=True)))  # how, not what


def test_settings_of_adapters_are_in_no_fingerprint_without_them(world, tmp_path):
    """So that runs from before there were any go on."""
    off = ready(short(world, tmp_path / "out"))
    assert "lora" not in off.fingerprint and off.fingerprint["train"].keys() == {"vision", "projector", "llm"}
    on = ready(short(world, tmp_path / "out", lora=LoraConfig(rank=4)))
    assert on.fingerprint["lora"]["rank"] == 4
    assert "trained   vision, projector, adapters of rank 4, rows of mask words" in on.size()
    rows = ready(short(world, tmp_path / "out", train=TrainedConfig(new_rows_only=True)))
    assert rows.fingerprint["train"]["new_rows_only"]
    assert "trained   projector, rows of mask words" in rows.size()


# ---------------------------------------------------------------- looks and answers


def test_looks_tell_loss_shares_and_answers_of_held_out_chats(whole):
    looks = record_of(whole)["validations"]
    assert [(look["step"], look["best"]) for look in looks] == [(0, False), (6, True), (12, True)]
    for look in looks:
        assert look["samples"] == 8 and 0 <= look["codes"] <= 1 and 0 <= look["tokens"] <= 1
    answers = json.loads((whole / "generations" / "00000012.json").read_text())
    assert len(answers) == 2
    assert {"question", "truth", "answer", "codes", "image", "size_hw", "sample_id"} == set(answers[0])


def test_the_loss_of_each_held_out_corpus_is_told_apart(world, tmp_path):
    rows = [without_image(row) for row in world.rows]
    text = write_chats(tmp_path / "text", rows, weights_sha256=world.sha256)
    held_out = validation(world.chat, text, samples=10)
    task = ready(short(world, tmp_path / "out", validation=held_out))
    adapter = load_adapter(world.model)
    model = adapter.load_model(world.model)
    found = Validator(model, adapter, task.held_out, task.config).measure()
    half = dataclasses.replace(task.config, validation=dataclasses.replace(held_out, samples=5))
    for source, name in zip(task.held_out, ("chat", "text"), strict=True):
        alone = Validator(model, adapter, [source], half).measure()
        assert found[f"loss/{name}"] == pytest.approx(alone["loss"], rel=1e-5) and len(alone) == 4
    assert found["loss/chat"] != pytest.approx(found["loss/text"], rel=1e-2)
    twice = ready(
        short(world, tmp_path / "out", validation=validation(f"uri={world.chat},limit=1", world.chat))
    )
    both = Validator(model, adapter, [*twice.held_out, task.held_out[1]], task.config).measure()
    alone = Validator(model, adapter, twice.held_out, twice.config).measure()
    assert "loss/chat" not in alone  # parts of one corpus are not told apart
    assert {name for name in both if name.startswith("loss/")} == {"loss/chat", "loss/text"}


def test_a_picture_shows_questions_truth_and_answers(world, whole):
    from pipelines.sft.pictures import draw
    from samtok.model.tokenizer import MaskTokenizer

    answers = json.loads((whole / "generations" / "00000012.json").read_text())
    data = draw(MaskTokenizer.from_pretrained(world.tokenizer_uri), answers)
    assert data.startswith(b"\x89PNG") and len(data) > 3000


# ---------------------------------------------------------------- bad input


def spoilt(world: World, out: Path, change) -> str:
    rows = json.loads(json.dumps(world.rows))
    for row in rows[::4]:
        change(row)
    return write_chats(out, rows, weights_sha256=world.sha256)


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("image_missing", lambda row: row["images"][0].update(uri="/nowhere/x.png")),
        ("image_size", lambda row: row["images"][0].update(height=7)),
        ("missing_mask", lambda row: row["masks"].clear()),
        ("control_token", lambda row: row["messages"][0]["content"][1].update(text="Go <|im_end|>")),
        ("malformed_words", lambda row: row["messages"][1]["content"][0].update(text="<|mt_start|>")),
    ],
)
@pytest.mark.slow
@pytest.mark.numerics
def test_a_chat_that_cannot_be_used_is_replaced_and_listed(world, tmp_path, reason, change):
    corpus = spoilt(world, tmp_path / "chats", change)
    config = short(world, tmp_path / "out", chats=(corpus,), steps=EPOCH, max_reject_rate=0.5)
    config = dataclasses.replace(config, validation=validation())
    train(config)
    record = record_of(tmp_path / "out")
    assert set(record["rejects"]) == {reason}
    assert all(row["samples"] == 8 for row in curve_of(tmp_path / "out"))
    rows = [
        row for name in record["reject_files"] for row in pq.read_table(tmp_path / "out" / name).to_pylist()
    ]
    assert len(rows) == record["rejects"][reason] >= 12
    assert all(row["stage"] == "load" and row["message"] for row in rows)


@pytest.mark.slow
@pytest.mark.numerics
def test_an_image_that_the_processor_refuses_is_replaced_and_a_run_goes_on_behind_it(
    world, tmp_path, monkeypatch
):
    rows = [*world.rows[:6], *(strip_row(tmp_path, (1, 2), image_id=str(n)) for n in range(2))]
    corpus = write_chats(tmp_path / "chats", rows, weights_sha256=world.sha256)
    changes = {"chats": (corpus,), "steps": 4, "max_reject_rate": 0.5, "validation": validation(corpus)}
    changes["checkpoints"] = CheckpointsConfig(every=2)
    whole, cut = (short(world, tmp_path / name, **changes) for name in ("whole", "cut"))
    train(whole)
    kill_after(2, cut, monkeypatch)
    assert ("resumed", 2) in [(kind, body["step"]) for kind, body in train(cut)]
    for name in ("rejects", "tokens", "validations"):
        assert record_of(tmp_path / "cut")[name] == record_of(tmp_path / "whole")[name]
    assert record_of(tmp_path / "cut")["rejects"].keys() == {"processor"}
    assert curve_of(tmp_path / "cut") == curve_of(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.numerics
def test_a_chat_that_is_too_long_is_left_out_and_never_cut(world, tmp_path):
    lengths = [len(p.sample) for step in loader(world).steps(0) for p in step]
    limit = int(np.median(lengths))
    config = short(
        world,
        tmp_path / "out",
        sampling=SamplingConfig(samples_per_step=8, max_tokens=limit),
        steps=EPOCH,
        validation=validation(),
    )
    config = dataclasses.replace(config, max_reject_rate=1.0)
    train(config)
    assert set(record_of(tmp_path / "out")["rejects"]) == {"too_long"}
    kept = [len(p.sample) for step in loader(world, sampling=config.sampling).steps(0) for p in step]
    assert set(kept) <= set(lengths) and max(kept) <= limit


@pytest.mark.slow
@pytest.mark.numerics
def test_a_corpus_of_bad_chats_ends_the_run_with_its_reasons(world, tmp_path):
    corpus = spoilt(world, tmp_path / "chats", lambda row: row["images"][0].update(uri="/nowhere/x.png"))
    config = short(world, tmp_path / "out", chats=(corpus,), steps=40, validation=validation())
    with pytest.raises(DataError, match=r"--max-reject-rate.*image_missing"):
        train(config)
    rows = [dict(row, images=[dict(row["images"][0], height=1)]) for row in world.rows]
    empty = write_chats(tmp_path / "none", rows, weights_sha256=world.sha256)
    with pytest.raises(DataError, match="none of 17 chats drawn from"):
        train(short(world, tmp_path / "other", chats=(empty,), validation=validation()))


def test_images_of_more_pixels_than_allowed_are_rejected_before_they_are_decoded(world, tmp_path):
    with pytest.raises(DataError, match="expected at most 99"):
        train(short(world, tmp_path / "out", max_image_pixels=99, validation=validation()))


def test_words_of_another_tokenizer_and_of_another_size_are_refused(world, tmp_path):
    other = write_chats(tmp_path / "other", world.rows, weights_sha256="0" * 64)
    with pytest.raises(ConfigError, match=r"different mask tokenizers.*000000000000"):
        ready(short(world, tmp_path / "out", chats=(other,)))
    with pytest.raises(ConfigError, match=r"different mask tokenizers"):
        ready(short(world, tmp_path / "out", chats=(world.chat, other)))
    small = world.build(tmp_path / "small", num_codes=16)
    with pytest.raises(ConfigError, match=r"2 x 64 codes.*2 x 16.*jobs/extend_mllm.py"):
        ready(short(world, tmp_path / "out", model=small))


def test_a_model_that_is_not_there_or_has_no_words_is_refused(world, tmp_path):
    with pytest.raises(ConfigError, match=r"--model: .*nothing.*jobs/extend_mllm.py"):
        ready(short(world, tmp_path / "out", model=str(tmp_path / "nothing")))
    from tests.tiny_mllm import build

    bare = build(tmp_path / "bare", words=False)
    with pytest.raises(CheckpointError, match="jobs/extend_mllm.py"):
        ready(short(world, tmp_path / "out", model=str(bare)))


def test_packing_is_refused_for_a_family_that_is_not_known_to_pack(world, tmp_path):
    from samtok.mllm.tiny.models import build_tiny
    from samtok.mllm.vocab import MaskVocabulary

    folder = tmp_path / "plm"
    build_tiny("perception_lm", folder, vocabulary=MaskVocabulary(64, 2), texts=["No target."] * 9, seed=0)
    config = short(world, tmp_path / "out", model=str(folder), engine=MllmEngineConfig(packing=True))
    with pytest.raises(ConfigError, match=r"--packing.*perception_lm"):
        ready(config)


def test_a_loss_that_is_no_number_is_skipped_and_ends_the_run_if_it_stays(world, tmp_path):
    config = short(
        world, tmp_path / "out", optimizer=OptimizerConfig(lr=1e30, warmup_steps=0), max_bad_steps=3
    )
    with pytest.raises(TrainingDiverged, match=r"3 steps in a row.*--optimizer.lr"):
        train(config)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("weight=2", "uri=, the folder of a chat corpus, must be given"),
        ("uri=a,weight=0", "weight must be a number > 0"),
        ("uri=a,limit=0", "limit must be a whole number >= 1"),
        ("uri=a,colour=red", "'colour=red' is not key=value"),
        ("uri=a,uri=b", "uri is given twice, as a and b"),
    ],
)
def test_a_misspelt_corpus_is_refused(text, match):
    with pytest.raises(ConfigError, match=match):
        ChatCorpusSpec.parse(text, flag="chats")


def test_shares_that_do_not_divide_name_what_would(world, tmp_path):
    with pytest.raises(ConfigError, match=r"--micro-batch 3 does not.*take one of \[1, 2, 4, 8\]"):
        short(world, tmp_path, micro_batch=3)


def test_epochs_become_steps_and_a_dry_run_prints_the_size(world, tmp_path, capsys):
    config = short(world, tmp_path / "out", epochs=2.0, dry_run=True)
    assert ready(config).config.steps == 2 * EPOCH
    assert train_mllm(config) == 0
    printed = capsys.readouterr().out
    assert "12 steps of 8 chats" in printed and "48 chats of 1 corpora, 2.00 epochs" in printed
    assert not (tmp_path / "out").exists()


def test_presets_are_whole():
    assert PRESETS["paper"].optimizer.lr == 2e-5 and PRESETS["paper"].sampling.samples_per_step == 256
    assert not PRESETS["paper"].train.vision and PRESETS["paper"].train.projector


def test_a_source_reads_any_sample_and_travels_without_what_it_read(world):
    import pickle

    source = ChatSource(ready(short(world, world.home / "x")).corpora[0].corpus)
    assert [source.row(i)["sample_id"] for i in (47, 0, 23)] == [
        world.rows[i]["sample_id"] for i in (47, 0, 23)
    ]
    assert pickle.loads(pickle.dumps(source))._groups == {}


def test_validation_without_generations_draws_none(world, tmp_path):
    told = train(
        short(
            world,
            tmp_path / "out",
            steps=2,
            validation=validation(world.chat, every=2, samples=4, generations=0),
        )
    )
    assert "generations" not in [kind for kind, _ in told] and not (tmp_path / "out" / "generations").exists()


def test_held_out_chats_that_cannot_be_used_are_left_out_and_said(world, tmp_path, caplog):
    corpus = spoilt(world, tmp_path / "chats", lambda row: row["images"][0].update(uri="/nowhere/x.png"))
    config = short(world, tmp_path / "out", steps=1, validation=validation(corpus))
    train(dataclasses.replace(config, validation=validation(corpus, every=1, generations=0)))
    assert record_of(tmp_path / "out")["validations"][0]["samples"] == 6
    assert "2 of 8 held-out chats cannot be used and are left out; the first is 0/red" in caplog.text
