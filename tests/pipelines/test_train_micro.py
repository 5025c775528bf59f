"""A small tokenizer learns to say masks by codes, from random weights, in less than a minute of CPU time."""

import dataclasses

import pytest

from pipelines.tokenizer_training.presets import PRESETS
from tests.training import record_of, train


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(600)
def test_micro_decodes_held_out_masks_from_their_codes_and_not_from_the_image_alone(tmp_path):
    micro = PRESETS["micro"]
    validation = dataclasses.replace(micro.validation, final_images=60)
    train(dataclasses.replace(micro, out=str(tmp_path), steps=400, validation=validation, tracking="off"))
    final = record_of(tmp_path)["final"]
    assert final["iou"] - final["iou_shuffled"] >= 0.15
    assert all(final[f"perplexity_{level}"] > 64 / 4 for level in range(2))
    assert final["distinct"] > final["masks"] / 3
