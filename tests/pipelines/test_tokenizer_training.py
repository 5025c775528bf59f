"""Tokenizer training: data, schedule, steps, evaluation and what is saved. A few steps of the micro model."""

import dataclasses
import json
import math

import numpy as np
import pydantic
import pytest
import torch

from pipelines.tokenizer_training import evaluate as evaluation
from pipelines.tokenizer_training.config import (
    HELD_OUT_START,
    PRESETS,
    LossConfig,
    OptimizerConfig,
    TrainTokenizerConfig,
)
from pipelines.tokenizer_training.data import area_targets, build_batch, held_out_scenes, scene_batch
from pipelines.tokenizer_training.loop import (
    TrainingDiverged,
    learning_rate,
    mean_iou,
    start_training,
    train,
    train_step,
)
from pipelines.tokenizer_training.run import train_tokenizer
from samtok.checkpoint import SHIPPED
from samtok.model.tokenizer import MaskTokenizer
from samtok.shapes import make_scene


def short(**changes) -> TrainTokenizerConfig:
    """Five steps of the micro model; the last one quantizes."""
    base = {"steps": 5, "quantize_from": 0.8, "evaluation_images": 3, "log_every": 5}
    return dataclasses.replace(PRESETS["micro"], **(base | changes))


def run(config: TrainTokenizerConfig) -> tuple[MaskTokenizer, list[dict[str, float]]]:
    """Trains on one thread and returns the model and what was reported."""
    threads, reports = torch.get_num_threads(), []
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    model = MaskTokenizer.from_preset(config.model)
    try:
        train(
            start_training(model, config),
            lambda step: scene_batch(config, step),
            config,
            lambda step, metrics: reports.append({"step": step, **metrics}),
        )
    finally:
        torch.set_num_threads(threads)
    return model, reports


@pytest.fixture(scope="module")
def trained() -> tuple[MaskTokenizer, list[dict[str, float]]]:
    return run(short())


def test_a_batch_is_a_function_of_seed_and_step():
    config = short()
    once, again, later = scene_batch(config, 3), scene_batch(config, 3), scene_batch(config, 4)
    other = scene_batch(short(seed=102), 3)
    for name, value in vars(once).items():
        assert torch.equal(value, getattr(again, name)), name
    assert not torch.equal(once.pixels, later.pixels) and not torch.equal(once.pixels, other.pixels)


def test_a_batch_holds_what_the_model_reads():
    config = short(images_per_step=4, max_masks_per_step=6)
    batch = scene_batch(config, 0)
    assert batch.pixels.shape == (4, 64, 64, 3) and batch.pixels.dtype == torch.uint8
    assert len(batch) == 6 and batch.prompts.shape == (6, 1, 16, 16) and batch.targets.shape == (6, 16, 16)
    assert batch.image_index.tolist() == sorted(batch.image_index.tolist())
    assert float(batch.boxes.min()) >= 0 and float(batch.boxes.max()) < 1


def test_the_masks_of_a_batch_belong_to_its_images():
    config = short(max_masks_per_step=5)
    batch = scene_batch(config, 2)
    for owner, target in zip(batch.image_index.tolist(), batch.targets, strict=True):
        scene = make_scene(config.seed, 2 * config.images_per_step + owner, config.world)
        of_image = area_targets([shape.mask for shape in scene.objects], 16)
        assert any(torch.equal(target, one) for one in of_image)


def test_targets_are_the_share_of_each_cell_inside_the_mask():
    mask = np.zeros((32, 64), dtype=bool)
    mask[:3, 4:7] = True  # cells span 2 rows and 4 columns
    target = area_targets([mask], 16)[0]
    assert target[0, 1] == pytest.approx(6 / 8) and target[1, 1] == pytest.approx(3 / 8)
    assert float(target.sum()) == pytest.approx(9 / 8)


def test_an_image_of_another_size_is_resized_and_an_empty_mask_refused():
    image, mask = np.zeros((50, 80, 3), dtype=np.uint8), np.ones((50, 80), dtype=bool)
    model = MaskTokenizer.from_preset("micro").config
    assert build_batch([image], [mask], [0], model).pixels.shape == (1, 64, 64, 3)
    with pytest.raises(ValueError, match="empty"):
        build_batch([image], [~mask], [0], model)


def test_held_out_scenes_are_beyond_all_training_scenes():
    config = PRESETS["tiny"]
    assert config.steps * config.images_per_step <= HELD_OUT_START
    scenes = held_out_scenes(config.world, seed=config.seed, count=2)
    assert [scene.index for scene in scenes] == [HELD_OUT_START, HELD_OUT_START + 1]
    with pytest.raises(ValueError, match="held-out scenes begin"):
        short(steps=HELD_OUT_START)


def test_the_learning_rate_rises_and_falls_to_its_last_share():
    config = OptimizerConfig(lr=1.0, warmup_steps=10, final_lr_share=0.02)
    rates = [learning_rate(step, 101, config) for step in range(101)]
    assert (
        rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0) and rates[10] == pytest.approx(1.0)
    )
    assert rates[55] == pytest.approx(0.02 + 0.98 * 0.5) and rates[100] == pytest.approx(0.02)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_every_step_sets_its_learning_rate():
    config = short()
    state = start_training(MaskTokenizer.from_preset("micro"), config)
    for step in range(2):
        reported = train_step(state, scene_batch(config, step), config, step)
        expected = learning_rate(step, 5, config.optimizer)
        assert [group["lr"] for group in state.optimizer.param_groups] == [expected]
        assert reported["lr"] == expected


def test_mean_iou_counts_logits_above_zero_and_targets_from_one_half():
    targets = torch.tensor([[[0.5, 0.4], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    logits = torch.tensor([[[1.0, 2.0], [-1.0, 0.0]], [[-1.0, -1.0], [0.0, -1.0]]])
    assert float(mean_iou(logits, targets)) == pytest.approx((1 / 3 + 1) / 2)


def test_steps_change_the_weights_of_encoder_and_decoder(trained):
    torch.manual_seed(short().seed)
    before = MaskTokenizer.from_preset("micro").state_dict()
    after = trained[0].state_dict()
    for part in ("image_encoder", "prompt_encoder", "mask_encoder", "mask_decoder"):
        changed = [
            name for name in before if name.startswith(part) and not torch.equal(before[name], after[name])
        ]
        assert changed, part


def test_the_same_seed_gives_the_same_weights_bit_for_bit(trained):
    again, reports = run(short())
    assert reports == trained[1]
    for name, value in trained[0].state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_quantization_begins_at_its_step_with_codebooks_from_kmeans():
    config = short(steps=6, quantize_from=0.7)
    assert config.quantization_step == 4
    torch.manual_seed(0)
    state = start_training(MaskTokenizer.from_preset("micro"), config)
    reported = []
    for step in range(6):
        before = state.model.quantizer.codebooks.clone()
        reported.append(train_step(state, scene_batch(config, step), config, step))
        moved = (state.model.quantizer.codebooks - before).abs().amax(dim=(1, 2))
        assert (
            bool((moved > 0).all()) if step >= 4 else bool((moved == 0).all())
        )  # both levels, at every step
    assert ["loss_commitment" in metrics for metrics in reported] == [False] * 4 + [True] * 2
    assert ["perplexity_1" in metrics for metrics in reported] == [False] * 4 + [True] * 2


def test_kmeans_sees_the_latest_embeddings_only():
    config = short(steps=8, quantize_from=0.9, kmeans_samples=64)
    state = start_training(MaskTokenizer.from_preset("micro"), config)
    sizes = []
    for step in range(6):
        train_step(state, scene_batch(config, step), config, step)
        sizes.append([len(z) for z in state.recent])
    assert all(sum(kept) < 64 + kept[0] for kept in sizes)
    assert sum(sizes[-1]) >= 64 and len(sizes[-1]) < 6


def test_a_loss_that_is_no_number_ends_training_with_its_parts():
    config = short()
    state = start_training(MaskTokenizer.from_preset("micro"), config)
    batch = scene_batch(config, 0)
    with torch.no_grad():
        state.model.no_mem_embed.fill_(math.nan)
    weight = state.box_head[0].weight.clone()
    with pytest.raises(TrainingDiverged, match=r"loss is nan at step 0 \(bce nan.*optimizer.lr"):
        train_step(state, batch, config, 0)
    assert torch.equal(weight, state.box_head[0].weight)


def test_loss_weights_are_applied(trained):
    for metrics in trained[1]:
        expected = 2 * metrics["loss_bce"] + metrics["loss_dice"] + 2 * metrics["loss_box"]
        expected += 0.25 * metrics.get("loss_commitment", 0)
        assert metrics["loss"] == pytest.approx(expected, rel=1e-5)


def test_with_as_many_codes_as_masks_quantized_equals_continuous(trained):
    model = MaskTokenizer.from_preset("micro")
    model.load_state_dict(trained[0].state_dict())
    scenes = held_out_scenes(short().world, seed=3, count=30)
    z = evaluation.embed(model.eval(), scenes)[:64]
    scenes = scenes[: np.searchsorted(np.cumsum([len(scene.objects) for scene in scenes]), 64, side="right")]
    model.quantizer.start(z.repeat(2, 1), torch.Generator().manual_seed(0))
    result = evaluation.evaluate(model, scenes)
    assert result.masks > 50 and result.images == len(scenes)
    assert result.iou == pytest.approx(result.iou_continuous, abs=0.01)
    assert result.distinct > 0.9 * result.masks
    assert result.levels[0].used + result.levels[0].dead == 64


def test_shuffling_leaves_nothing_in_its_place():
    for count in (2, 3, 50):
        order = evaluation._shuffled(count, 1).tolist()
        assert sorted(order) == list(range(count)) and all(i != j for i, j in enumerate(order))


def test_a_run_saves_a_tokenizer_that_loads_and_a_record(tmp_path):
    threads = torch.get_num_threads()
    config = short(out=str(tmp_path / "out"))
    try:
        assert train_tokenizer(config) == 0
        expected = run(config)[0]
    finally:
        torch.set_num_threads(threads)
    scene = held_out_scenes(config.world, seed=1, count=1)[0]
    masks = [shape.mask for shape in scene.objects]
    loaded = MaskTokenizer.from_pretrained(config.out)
    assert loaded.encode(scene.image, masks).tolist() == expected.encode(scene.image, masks).tolist()
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["config"]["steps"] == 5 and record["seed"] == config.seed
    assert record["measured"]["images"] == 3 and record["times"]["training_cpu_s"] >= 0
    assert {"torch", "commit"} <= set(record["versions"])


def test_a_diverged_run_saves_nothing_and_has_an_exit_code(tmp_path):
    out = tmp_path / "out"
    hot = short(out=str(out), optimizer=OptimizerConfig(lr=1e30, warmup_steps=0))
    assert train_tokenizer(hot) == TrainingDiverged.exit_code
    assert not out.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "huge"}, "--model must be one of"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"quantize_from": 1.0}, "--quantize-from must be between 0 and 1"),
        ({"kmeans_samples": 63}, "at least the 64 codes"),
    ],
)
def test_impossible_configs_are_refused_by_flag(changes, message):
    with pytest.raises(ValueError, match=message):
        short(**changes)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (LossConfig, {"bce": -1.0}, "--loss.bce"),
        (LossConfig, {"importance": 2.0}, "--loss.importance"),
        (OptimizerConfig, {"betas": (0.9, 1.0)}, "--optimizer.betas"),
        (OptimizerConfig, {"clip_norm": 0.0}, "--optimizer.clip-norm"),
    ],
)
def test_impossible_losses_and_schedules_are_refused_by_flag(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        kind(**changes)


def test_the_shipped_tokenizer_is_what_the_tiny_preset_makes_and_as_good_as_its_record_says():
    folder = SHIPPED / "tiny"
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    assert record["command"] == "python jobs/train_tokenizer.py --preset tiny"
    config = pydantic.TypeAdapter(TrainTokenizerConfig).validate_python(record["config"])
    assert config == PRESETS["tiny"]
    assert (folder / "model.safetensors").stat().st_size <= 4 * 2**20
    scenes = held_out_scenes(config.world, seed=config.evaluation_seed, count=40)
    result = evaluation.evaluate(MaskTokenizer.from_pretrained("tiny"), scenes)
    assert result.iou == pytest.approx(record["measured"]["iou"], abs=0.03)
    assert result.iou_shuffled < 0.2
