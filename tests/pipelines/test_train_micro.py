"""A small tokenizer learns to say masks by codes, from random weights, in less than a minute of CPU time."""

import dataclasses

import pytest
import torch

from pipelines.tokenizer_training.config import PRESETS
from pipelines.tokenizer_training.data import held_out_scenes, scene_batch
from pipelines.tokenizer_training.evaluate import evaluate
from pipelines.tokenizer_training.loop import start_training, train
from samtok.model.tokenizer import MaskTokenizer


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_micro_decodes_held_out_masks_from_their_codes_and_not_from_the_image_alone():
    config = dataclasses.replace(PRESETS["micro"], steps=400, evaluation_images=60)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    model = MaskTokenizer.from_preset(config.model)
    try:
        state = start_training(model, config)
        train(state, lambda step: scene_batch(config, step), config, lambda step, metrics: None)
        scenes = held_out_scenes(config.world, seed=config.evaluation_seed, count=config.evaluation_images)
        result = evaluate(model, scenes)
    finally:
        torch.set_num_threads(threads)
    assert result.iou - result.iou_shuffled >= 0.15
    assert all(level.perplexity > model.num_codes / 4 for level in result.levels)
    assert result.distinct > result.masks / 3
