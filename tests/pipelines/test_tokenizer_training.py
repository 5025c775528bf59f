"""Tokenizer training in one process: steps, micro-batches, checkpoints, exports. The micro model."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from jobs.train_tokenizer import main as train_tokenizer
from pipelines import shards, storage
from pipelines.job import resolved
from pipelines.tokenizer_training.architecture import architecture_of, check_quantize_from
from pipelines.tokenizer_training.config import (
    CodebooksConfig,
    LossConfig,
    QuantizerFlags,
    SamplingConfig,
    StartConfig,
    TrainTokenizerConfig,
    ValidationConfig,
)
from pipelines.tokenizer_training.data import (
    held_out_samples,
    step_loader,
    training_sources,
    validation_sources,
)
from pipelines.tokenizer_training.evaluate import validate
from pipelines.tokenizer_training.loop import Trainer, mean_iou
from pipelines.tokenizer_training.prepare import prepare
from pipelines.tokenizer_training.presets import PRESETS
from pipelines.tokenizer_training.trainee import build_trainee
from pipelines.training import checkpoints
from pipelines.training.config import OptimizerConfig, TrainWorkerConfig
from pipelines.training.engine import PlainEngine
from pipelines.training.prepare import settings_of
from pipelines.training.steps import TrainingDiverged, learning_rate
from pipelines.training.worker import load_state
from pipelines.training.writing import CheckpointWriter
from samtok.errors import CheckpointError, ConfigError
from samtok.folders import SHIPPED
from samtok.model.tokenizer import MaskTokenizer
from tests.corpora import write_shapes
from tests.jobs import ROOT
from tests.training import curve_of, record_of, short, task_for, train, weights_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("training") / "whole"
    train(short(out))
    return out


def trainer_of(config: TrainTokenizerConfig) -> Trainer:
    trainee = build_trainee(config)
    return Trainer(trainee, PlainEngine(trainee, config.optimizer), config)


def steps_of(config: TrainTokenizerConfig, start: int = 0):
    sources = training_sources(config, None)
    loader = step_loader(sources, [None], config, architecture_of(config), rank=0)
    return ([micro.batch for micro in batches] for batches in loader.steps(start))


def test_the_learning_rate_rises_and_falls_to_its_last_share():
    config = OptimizerConfig(lr=1.0, warmup_steps=10, final_lr_share=0.02)
    rates = [learning_rate(step, 101, config) for step in range(101)]
    assert (rates[0], rates[9], rates[10]) == pytest.approx((0.1, 1.0, 1.0))
    assert rates[55] == pytest.approx(0.02 + 0.98 * 0.5) and rates[100] == pytest.approx(0.02)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_the_warm_up_can_be_a_share_of_the_steps():
    shares = [learning_rate(step, 200, OptimizerConfig(warmup_share=0.05)) for step in range(200)]
    assert shares == [learning_rate(step, 200, OptimizerConfig(warmup_steps=10)) for step in range(200)]
    assert learning_rate(0, 200, OptimizerConfig(lr=1.0, warmup_steps=9, warmup_share=0.0)) == 1.0


def test_codebooks_may_be_random_from_the_first_step(tmp_path):
    with pytest.raises(ConfigError, match="--codebooks.start random"):
        short(tmp_path, quantize_from=0.0)
    trainer = trainer_of(
        short(tmp_path, quantize_from=0.0, codebooks=CodebooksConfig(start="random", decay=0.5))
    )
    before = trainer.quantizer.codebooks.clone()
    assert trainer.quantizes and trainer.quantizer.decay == 0.5
    metrics = trainer.take_step(next(steps_of(trainer.config)))
    used = (trainer.quantizer.codebooks != before).any(dim=2).sum()
    assert metrics["loss_commitment"] > 0 and 0 < used < before.shape[0] * before.shape[1]


@pytest.mark.parametrize(("dead_below", "restarts"), [(0.0, False), (1.0, True)])
def test_which_codes_begin_anew_is_a_setting(tmp_path, dead_below, restarts):
    codebooks = CodebooksConfig(start="random", dead_below=dead_below)
    trainer = trainer_of(short(tmp_path, quantize_from=0.0, codebooks=codebooks))
    assert bool(trainer.take_step(next(steps_of(trainer.config)))["codes_restarted"]) == restarts


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_compiled_encoder_learns_what_an_uncompiled_one_does(tmp_path):
    """In a process of its own: the compiler does not see through the type checks of tests."""
    code = (
        "import sys; from pathlib import Path; from tests.training import short, train\n"
        "from pipelines.tokenizer_training.config import CodebooksConfig\n"
        "for compiled in (False, True):\n"
        "    begin = dict(quantize_from=0.0, codebooks=CodebooksConfig(start='random'), compile=compiled)\n"
        "    train(short(Path(sys.argv[1]) / str(compiled), steps=4, **begin))\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True, timeout=300)
    plain, compiled = (curve_of(tmp_path / name) for name in ("False", "True"))
    losses = [[row["loss"] for row in curve if "loss" in row] for curve in (plain, compiled)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and len(losses[0]) == 4
    found = [load_file(tmp_path / name / "final" / "model.safetensors").keys() for name in ("False", "True")]
    assert found[0] == found[1]


def test_the_preset_of_the_authors_restarts_below_a_moving_count_of_one():
    config = PRESETS["authors"]
    masks_per_step = config.sampling.images_per_step * config.sampling.masks_per_image
    assert config.codebooks.dead_below * masks_per_step / 256 == 1 and config.quantization_step == 0


def test_mean_iou_counts_logits_above_zero_and_targets_from_one_half():
    targets = torch.tensor([[[0.5, 0.4], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    logits = torch.tensor([[[1.0, 2.0], [-1.0, 0.0]], [[-1.0, -1.0], [0.0, -1.0]]])
    assert float(mean_iou(logits, targets)) == pytest.approx((1 / 3 + 1) / 2)


@pytest.mark.parametrize("micro", [4, 1])
def test_any_split_into_micro_batches_gives_the_same_losses_and_codebooks(tmp_path, whole, micro):
    train(short(tmp_path / "out", micro=micro))
    for one, other in zip(curve_of(whole), curve_of(tmp_path / "out"), strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert other[name] == pytest.approx(one[name], rel=2e-4, abs=1e-5), (one["step"], name)
    books = [
        MaskTokenizer.from_pretrained(str(out / "final")).quantizer.codebooks
        for out in (whole, tmp_path / "out")
    ]
    torch.testing.assert_close(*books, rtol=1e-3, atol=1e-4)


def test_the_same_settings_give_the_same_bits(tmp_path, whole):
    train(short(tmp_path / "out"))
    assert curve_of(tmp_path / "out") == curve_of(whole) and weights_of(tmp_path / "out") == weights_of(whole)
    train(short(tmp_path / "other", seed=102))
    assert weights_of(tmp_path / "other") != weights_of(whole)


class Killed(BaseException):
    """Ends a run where it stands; nothing of ours catches it."""


@pytest.mark.parametrize("step", [4, 8, 12])
def test_a_run_that_ends_at_a_checkpoint_goes_on_bit_for_bit(tmp_path, whole, step, monkeypatch):
    """Before quantization began, after, and after the last step; six steps are an epoch."""
    config, saved = short(tmp_path / "out"), CheckpointWriter.save

    def save_and_die(self, parts, body, **more):
        saved(self, parts, body, **more)
        if body["step"] == step:
            self.wait()
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointWriter, "save", save_and_die)  # a kill at this very moment cannot be timed
        with pytest.raises(Killed):
            train(config)
    assert not (tmp_path / "out" / "record.json").exists()
    told = train(config)
    assert ("resumed", step) in [(kind, body["step"]) for kind, body in told]
    assert curve_of(tmp_path / "out") == curve_of(whole)
    assert weights_of(tmp_path / "out") == weights_of(whole)
    assert weights_of(tmp_path / "out", "best") == weights_of(whole, "best")


def test_quantization_begins_at_its_step_with_codebooks_from_kmeans(whole):
    curve = curve_of(whole)
    assert ["loss_commitment" in row for row in curve] == [False] * 6 + [True] * 6
    assert ["perplexity_1" in row for row in curve] == [False] * 6 + [True] * 6
    assert curve[6]["perplexity_0"] > 40  # of 64: k-means spreads them


def test_codebooks_move_only_once_quantization_has_begun(tmp_path):
    trainer = trainer_of(short(tmp_path))
    moved = []
    for batches in steps_of(trainer.config):
        before = trainer.quantizer.codebooks.clone()
        trainer.take_step(batches)
        moved.append(not torch.equal(before, trainer.quantizer.codebooks))
        if trainer.steps.done == 9:
            break
    assert moved == [False] * 6 + [True] * 3


def test_embeddings_are_kept_for_kmeans_only_as_long_as_needed(tmp_path):
    trainer = trainer_of(short(tmp_path, steps=40, quantize_from=0.9))
    for batches in steps_of(trainer.config):
        trainer.take_step(batches)
        kept = [count for _, count in trainer.recent]
        assert sum(kept) - kept[0] < 80
        if trainer.steps.done == 10:
            break
    assert sum(kept) >= 80 and len(kept) < 10


def test_loss_weights_are_applied(whole):
    for row in curve_of(whole):
        expected = (
            2 * row["loss_bce"]
            + row["loss_dice"]
            + 2 * row["loss_box"]
            + 0.25 * row.get("loss_commitment", 0)
        )
        assert row["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_step_with_a_loss_that_is_no_number_changes_nothing_and_is_counted(tmp_path):
    trainer, batches = trainer_of(short(tmp_path, quantize_from=0.3)), steps_of(short(tmp_path))
    good = [next(batches) for _ in range(8)]
    for step in good[:5]:
        trainer.take_step(step)
    before = {name: value.clone() for name, value in trainer.trainee.state_dict().items()}
    taken = trainer.engine.steps_taken
    bad = dataclasses.replace(good[5][0], prompts=torch.full_like(good[5][0].prompts, math.nan))
    row = trainer.take_step([bad])
    assert row["skipped"] == 1 and math.isnan(row["loss"])
    assert trainer.steps.skipped == trainer.steps.bad_in_a_row == 1
    for name, value in trainer.trainee.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert trainer.engine.steps_taken == taken
    assert trainer.take_step(good[6])["skipped"] == 0
    assert (trainer.steps.skipped, trainer.steps.bad_in_a_row) == (1, 0)


def test_too_many_such_steps_in_a_row_end_the_run_with_a_remedy(tmp_path):
    trainer = trainer_of(short(tmp_path, max_bad_steps=3))
    batch = next(steps_of(trainer.config))[0]
    bad = dataclasses.replace(batch, prompts=torch.full_like(batch.prompts, math.nan))
    for _ in range(2):
        trainer.take_step([bad])
    with pytest.raises(TrainingDiverged, match=r"3 steps in a row.*step 2.*--optimizer.lr"):
        trainer.take_step([bad])


def test_an_overflow_that_never_ends_is_a_divergence_with_an_exit_code(tmp_path):
    with pytest.raises(TrainingDiverged):
        train(short(tmp_path / "out", optimizer=OptimizerConfig(lr=1e30, warmup_steps=0), steps=30))
    assert TrainingDiverged.exit_code == 1 and not (tmp_path / "out" / "final").exists()


def test_frozen_parts_stay_and_the_others_learn(tmp_path):
    config = short(tmp_path / "out", freeze=True, start=StartConfig(tokenizer="tiny"), model="tiny", steps=2)
    config = dataclasses.replace(config, quantize_from=0.0, sampling=SamplingConfig(images_per_step=2))
    train(config)
    before = MaskTokenizer.from_pretrained("tiny").state_dict()
    after = MaskTokenizer.from_pretrained(str(tmp_path / "out" / "final")).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [n for n in changed if n.startswith(("image_encoder.", "prompt_encoder.", "no_mem_embed"))]
    assert not [n for n in changed if "iou_prediction_head" in n]
    assert {n.split(".")[0] for n in changed} == {"mask_encoder", "mask_decoder", "quantizer"}


def test_a_tokenizer_with_another_quantizer_keeps_its_networks(tmp_path):
    config = short(
        tmp_path,
        model="tiny",
        start=StartConfig(tokenizer="tiny"),
        quantizer=QuantizerFlags(kind="vq", num_codes=64),
    )
    trainee, given = build_trainee(config), MaskTokenizer.from_pretrained("tiny")
    assert trainee.tokenizer.num_levels == 1 and trainee.tokenizer.num_codes == 64
    for name, value in given.mask_decoder.state_dict().items():
        assert torch.equal(value, trainee.tokenizer.mask_decoder.state_dict()[name])


def test_the_words_of_a_trained_tokenizer_follow_from_its_quantizer(tmp_path):
    quantizer = QuantizerFlags(kind="fsq", num_codes=16, num_levels=3, grid=(4, 4))
    train(short(tmp_path / "out", quantizer=quantizer))
    tokenizer = MaskTokenizer.from_pretrained(str(tmp_path / "out" / "final"))
    assert (tokenizer.num_codes, tokenizer.num_levels) == (16, 3)
    assert tokenizer.config.quantizer.num_words == 48 and tokenizer.config.quantizer.bits_per_mask == 12


def test_exports_load_and_say_where_they_come_from(whole):
    record, lineage = record_of(whole), json.loads((whole / "final" / "lineage.json").read_text())
    assert lineage["weights_sha256"] == weights_of(whole) and lineage["step"] == 12
    assert lineage["start"] == {"random": "seed 101"} and lineage["run"] == str(whole)
    assert {"torch", "commit"} <= set(lineage["versions"])
    assert record["final"]["masks"] > 6 and record["best"]["step"] == 12
    best = json.loads((whole / "best" / "lineage.json").read_text())
    assert best["validation"]["iou"] == record["best"]["iou"]


def test_the_final_numbers_are_those_of_the_exported_tokenizer(whole):
    config = short(whole)
    tokenizer = MaskTokenizer.from_pretrained(str(whole / "final"))
    samples = held_out_samples(
        validation_sources(config, None), 6, masks_per_image=64, seed=config.validation.seed, rank=0, world=1
    )
    assert validate(tokenizer, samples, quantize=True, full=True) == record_of(whole)["final"]


def test_old_checkpoints_go(tmp_path):
    config = short(tmp_path / "out")
    train(dataclasses.replace(config, checkpoints=dataclasses.replace(config.checkpoints, keep=1)))
    assert checkpoints.steps(str(tmp_path / "out")) == [12]
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir() if any(path.iterdir())] == [
        "step-00000012"
    ]


def test_other_settings_are_refused_with_what_differs(whole):
    with pytest.raises(ConfigError, match=r"holds a run with other settings.*seed: before 101, now 102"):
        task_for(short(whole, seed=102))
    task_for(short(whole, workers=2, micro=2))  # these may differ


def test_a_run_that_never_quantizes_ends_too(tmp_path):
    train(short(tmp_path / "out", quantize_from=1.0))
    record = record_of(tmp_path / "out")
    assert record["final"]["quantized"] is False and "iou_continuous" not in record["final"]
    assert record["best"] is None and not (tmp_path / "out" / "best").exists()


def test_an_attempt_that_trained_nothing_may_be_corrected(tmp_path):
    task_for(short(tmp_path / "out"))
    task_for(short(tmp_path / "out", seed=102))  # no step was taken yet
    train(short(tmp_path / "out", seed=102))
    with pytest.raises(ConfigError, match="seed: before 102, now 101"):
        task_for(short(tmp_path / "out"))


def test_a_damaged_checkpoint_is_refused_and_says_what_to_delete(tmp_path):
    config = short(tmp_path / "out")
    train(config)
    (tmp_path / "out" / "record.json").unlink()
    (weights,) = (tmp_path / "out" / "checkpoints" / "step-00000012").glob("*.bin")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"bin is not the file.*Delete .*step-00000012"):
        train(config)
    storage.delete(str(weights.parent / "state.json"))
    told = train(config)
    assert told[0][0] == "resumed" and told[0][1]["step"] == 8


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path, whole):
    saved = checkpoints.load(str(whole), 12)
    with pytest.raises(CheckpointError, match=r"quantizer.*another architecture.*another --out"):
        other = trainer_of(short(tmp_path, quantizer=QuantizerFlags(num_codes=32)))
        load_state(str(whole), 12, saved.body["fingerprint"], other, kept=other.engine.untrained_state())
    with pytest.raises(
        CheckpointError, match=r"not of the architecture --model micro.*image_size.*--model tiny"
    ):
        architecture_of(short(tmp_path, start=StartConfig(tokenizer="tiny")))
    with pytest.raises(CheckpointError, match=r"--start.sam2 .* holds SAM2.1 weights and --model is micro"):
        build_trainee(short(tmp_path, start=StartConfig(sam2=str(whole / "record.json"))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "huge"}, "--model must be one of"),
        ({"steps": 0}, "--steps must be >= 1"),
        ({"quantize_from": 1.5}, "--quantize-from must be in"),
        ({"quantize_from": 0.0}, "--quantize-from 0 needs codebooks"),
        ({"corpora": ("reader=sa1b,source=x",)}, "--validation.corpora go together"),
        ({"workers": 3}, "8 does not divide among --workers 3; take 6 or 9"),
        ({"micro": 3}, r"--micro-batch 3.*take one of \[1, 2, 4, 8\]"),
        ({"steps": 1 << 30}, "held-out scenes begin"),
        ({"seed": -1}, "--seed must be >= 0"),
        ({"tracking": "http://me:secret@host"}, "must not hold a user or password"),
    ],
)
def test_impossible_configs_are_refused_by_flag(changes, message):
    with pytest.raises(ValueError, match=message):
        short("out", **changes)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (LossConfig, {"bce": -1.0}, "--bce must be >= 0"),
        (LossConfig, {"importance": 2.0}, r"--importance must be in \[0, 1\]"),
        (OptimizerConfig, {"betas": (0.9, 1.0)}, "--betas"),
        (OptimizerConfig, {"clip_norm": 0.0}, "--clip-norm must be > 0"),
        (TrainWorkerConfig, {"gpus": 2.0}, "--gpus must be 0 or 1"),
        (ValidationConfig, {"every": 0}, "--every must be >= 1"),
        (StartConfig, {"sam2": "a", "tokenizer": "b"}, "exclude each other"),
    ],
)
def test_impossible_parts_are_refused_by_flag(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        kind(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kmeans_samples": 63}, "--kmeans-samples must be >= 64, the codes"),
        ({"steps": 3, "quantize_from": 0.3}, "1 steps before quantization give at most 32"),
        ({"quantizer": QuantizerFlags(kind="fsq", num_codes=64, grid=(8, 9))}, r"--quantizer.*grid \(8, 9\)"),
        ({"quantizer": QuantizerFlags(kind="vq", num_levels=2)}, "--quantizer.*vq has one codebook"),
    ],
)
def test_a_quantizer_that_cannot_begin_is_refused_before_training(changes, message):
    with pytest.raises(ConfigError, match=message):
        check_quantize_from(short("out", **changes))


def without_later_settings(settings):
    """Returns settings as they were before these could be chosen, when there was no other way."""
    then = json.loads(json.dumps(settings))
    assert then["loss"].pop("targets") == "area"
    assert then["optimizer"].pop("warmup_share") is None
    assert then.pop("compile") is False
    assert then.pop("codebooks") == {"start": "kmeans", "decay": 0.99, "dead_below": 0.1}
    return then


def test_settings_have_the_fingerprint_that_they_had_before_their_flags_were_renamed():
    """Flags have other names, what decides the result has not; of what code did with it the version tells.
    The limit of pixels, the kind of targets, the codebooks' settings, the warm-up's share and
    compilation came later."""
    record = json.loads((SHIPPED / "tour" / "record.json").read_text(encoding="utf-8"))
    ready = prepare(resolved(dataclasses.replace(PRESETS["tour"], tracking="off")))
    then = {name: value for name, value in ready.fingerprint.items() if name != "max_image_pixels"}
    then = without_later_settings(then)
    assert shards.digest({**then, "code_version": 1}) == record["fingerprint"]


def test_the_shipped_tokenizer_is_what_the_tiny_preset_makes_and_as_good_as_its_record_says():
    folder = SHIPPED / "tiny"
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    assert record["command"] == "python jobs/train_tokenizer.py --preset tiny"
    config, before = PRESETS["tiny"], record["config"]
    now = without_later_settings(settings_of(config, without=("validation.corpora",)))
    for name in ("model", "steps", "loss", "optimizer", "sampling", "quantizer", "quantize_from", "seed"):
        assert before[name] == now[name], name
    assert (folder / "model.safetensors").stat().st_size <= 4 * 2**20
    samples = held_out_samples(
        validation_sources(config, None), 40, masks_per_image=64, seed=config.validation.seed, rank=0, world=1
    )
    result = validate(MaskTokenizer.from_pretrained("tiny"), samples, quantize=True)
    assert result["iou"] == pytest.approx(record["final"]["iou"], abs=0.03)
    assert result["iou_shuffled"] < 0.2


@pytest.mark.parametrize("corpus", [False, True])
def test_masks_too_few_for_the_codes_are_told_before_training_begins(tmp_path, corpus, capsys):
    flags = ["--model", "tiny", "--start.tokenizer", "tiny", "--steps", "6", "--out", str(tmp_path / "out")]
    if corpus:
        write_shapes(tmp_path / "shapes", num_images=8)
        source = tmp_path / "shapes/annotations/instances_train.json"
        text = f"reader=coco,source={source},images={tmp_path / 'shapes/train'}"
        flags += ["--corpora", text, "--validation.corpora", text]
    assert train_tokenizer([*flags, "--tracking", "off", "--dry-run"]) == 2
    assert "256 codes need as many embeddings" in (said := capsys.readouterr().err)
    assert "the 32 images before quantization give about" in said
    assert train_tokenizer([*flags, "--steps", "60", "--tracking", "off", "--dry-run"]) == 0
