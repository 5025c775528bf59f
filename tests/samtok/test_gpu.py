"""The tokenizer on a GPU gives what it gives on the CPU. Skipped where there is none."""

import numpy as np
import pytest
import torch

from samtok.model.tokenizer import MaskTokenizer
from samtok.shapes import WorldConfig, make_scene

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(("dtype", "allowed"), [(None, 0.0), (torch.bfloat16, 0.2)])
def test_codes_on_the_gpu_are_those_of_the_cpu(dtype: torch.dtype | None, allowed: float):
    scenes = [make_scene(0, index, WorldConfig()) for index in range(32)]
    batch = [scene.image for scene in scenes]
    masks = [[thing.mask for thing in scene.objects] for scene in scenes]
    on_cpu = MaskTokenizer.from_pretrained("tiny").encode_batch(batch, masks)
    on_gpu = MaskTokenizer.from_pretrained("tiny", device="cuda", dtype=dtype).encode_batch(batch, masks)
    differing = np.concatenate([(a != b).any(axis=1) for a, b in zip(on_cpu, on_gpu, strict=True)])
    assert differing.mean() <= allowed + 0.01


def test_masks_come_back_from_the_gpu():
    scene = make_scene(0, 1, WorldConfig())
    tokenizer = MaskTokenizer.from_pretrained("tiny", device="cuda")
    made = tokenizer.reconstruct(scene.image, [thing.mask for thing in scene.objects])
    assert made.iou.mean() > 0.6
