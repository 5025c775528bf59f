"""Pre-training of the tiny vision encoder: dense labels, learning, and the weights that ship."""

import json

import pytest
import torch

from samtok.errors import CheckpointError
from samtok.mllm.tiny.config import TinyConfig
from samtok.mllm.tiny.models import vision_of
from samtok.mllm.tiny.vision import (
    RECORD_FILE,
    SHIPPED,
    VisionTraining,
    labels_of,
    load_vision,
    pretrain,
    sizes_of,
)
from samtok.shapes import TOUR_WORLD, WorldConfig, make_scene

LARGE_SHAPES = WorldConfig(
    kinds=("circle", "triangle", "ring", "cross"),
    colours=("red", "yellow", "green", "blue"),
    large_share=1.0,
    max_objects=3,
)
"""Shapes that cover enough of the few tokens of a small encoder."""

SMALL = TinyConfig(image_size=28, vision_layers=1, vision_dim=32, dim=32)


def test_labels_say_shares_kinds_colours_and_boxes_of_tokens():
    scenes = [make_scene(5, index, TOUR_WORLD) for index in range(3)]
    labels = labels_of(scenes, tokens_per_side=4)
    assert labels.kinds.shape == (3, 16, 5) and labels.colours.shape == (3, 16, 4)
    torch.testing.assert_close(labels.kinds.sum(dim=-1), torch.ones(3, 16))
    torch.testing.assert_close(labels.colours.sum(dim=-1), 1 - labels.kinds[..., 0])
    for number, scene in enumerate(scenes):
        first = scene.objects[0]
        share = labels.kinds[number, :, 1 + TOUR_WORLD.kinds.index(first.kind)].sum() * 32 * 32
        same = sum(int(o.mask.sum()) for o in scene.objects if o.kind == first.kind)
        assert float(share) == pytest.approx(same)
        token = int(labels.shares[number].argmax())
        boxes = [o.box_xyxy for o in scene.objects]
        centres = [((x0 + x1) / 256, (y0 + y1) / 256) for x0, y0, x1, y1 in boxes]
        assert tuple(labels.boxes[number, token, :2].tolist()) in [pytest.approx(c) for c in centres]


def test_scenes_that_do_not_fit_the_tokens_are_refused():
    with pytest.raises(ValueError, match="multiple of 5 pixels"):
        labels_of([make_scene(5, 0, TOUR_WORLD)], tokens_per_side=5)


def run(steps: int) -> tuple[dict[str, float], list[int], torch.Tensor]:
    """Trains a small encoder; returns its last eval, the steps of evals, and one of its weights."""
    training = VisionTraining(steps=steps, scenes=200, images_per_step=16, evals=2)
    visual, processor = vision_of(SMALL, seed=3)
    steps_seen: list[int] = []
    found = pretrain(visual, processor, LARGE_SHAPES, training, lambda step, _: steps_seen.append(step))
    return found, steps_seen, next(visual.parameters()).detach()


@pytest.mark.slow
def test_an_encoder_learns_colours_in_seconds():
    found, steps_seen, _ = run(200)
    assert steps_seen == [100, 200] and found["colour"] > 0.8, found


@pytest.mark.slow
def test_the_same_training_gives_the_same_weights():
    assert torch.equal(run(10)[2], run(10)[2])


@pytest.mark.slow
@pytest.mark.numerics
def test_the_encoder_that_ships_fits_the_default_sizes_and_knows_kinds():
    visual, _ = vision_of(TinyConfig(), seed=0)
    before = next(visual.parameters()).clone()
    load_vision(visual, TinyConfig())
    assert not torch.equal(before, next(visual.parameters()))
    record = json.loads((SHIPPED / RECORD_FILE).read_text())
    assert record["sizes"] == sizes_of(TinyConfig())
    assert record["held_out"]["kind"] > 0.8 and record["held_out"]["colour"] > 0.95


@pytest.mark.slow
@pytest.mark.numerics
def test_other_sizes_and_a_missing_folder_are_refused(tmp_path):
    visual, _ = vision_of(SMALL, seed=0)
    with pytest.raises(CheckpointError, match=r"image_size 28, there 56.*--vision random"):
        load_vision(visual, SMALL)
    with pytest.raises(CheckpointError, match="no pre-trained vision encoder in"):
        load_vision(visual, TinyConfig(), tmp_path)
