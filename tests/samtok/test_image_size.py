"""How large an MLLM sees images: limits that are saved with its processor."""

import json
from pathlib import Path

import numpy as np
import pytest

from samtok.errors import ConfigError, DataError
from samtok.mllm.adapters import load_adapter, save_pretrained
from samtok.mllm.image_size import limit_pixels
from samtok.mllm.registry import family_of
from tests.tiny_mllm import QWEN, build, chat, loaded, picture

PHOTO = np.zeros((3000, 4000, 3), np.uint8)
"""12 Mpx, as a telephone takes them."""
CELL = 14 * 14
"""Pixels that become one token of a tiny model."""


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize("family", QWEN)
def test_a_photograph_is_reduced_and_not_rejected_and_an_export_keeps_the_limits(family: str, tmp_path: Path):
    adapter = loaded(build(tmp_path / "before", family))
    limit_pixels(adapter.processor, max_pixels=16_777_216)
    with pytest.raises(DataError, match="--image.max-pixels") as raised:
        adapter.encode(chat(), [PHOTO], max_tokens=4096)
    assert raised.value.reason == "too_long"
    limit_pixels(adapter.processor, min_pixels=10 * CELL, max_pixels=100 * CELL)
    save_pretrained(adapter.load_model(tmp_path / "before"), adapter, tmp_path / "after")
    exported = load_adapter(tmp_path / "after")
    for image, low, high in (
        (PHOTO, 80, 100),
        (picture(0, (20, 20)), 10, 20),
        (picture(0, (140, 70)), 50, 50),
    ):
        sample = exported.encode(chat(), [image], max_tokens=200)
        tokens = int(sample.mm_token_type_ids.sum())
        assert low <= tokens <= high
        assert sample.vision["pixel_values"].nbytes == 3 * tokens * CELL  # a byte per value that is seen
    older = [("preprocessor_config.json", None)] if family_of(family).older else []
    for file, part in (("processor_config.json", "image_processor"), *older):
        body = json.loads((tmp_path / "after" / file).read_text())
        size = {"shortest_edge": 10 * CELL, "longest_edge": 100 * CELL}
        assert (body[part] if part else body)["size"] == size


def test_limits_that_cannot_be_are_refused(tmp_path: Path):
    adapter = loaded(build(tmp_path / "qwen"))  # whose images all have 56 x 56 pixels
    limit_pixels(adapter.processor)
    with pytest.raises(ConfigError, match="--image.min-pixels 3136 is above --image.max-pixels 1000"):
        limit_pixels(adapter.processor, max_pixels=1000)
    tiles = loaded(build(tmp_path / "plm", "perception_lm"))
    with pytest.raises(ConfigError, match="a PerceptionLMImageProcessor has no limits of pixels"):
        limit_pixels(tiles.processor, min_pixels=1)
