"""Images that several sequences of a batch share are encoded once.

The responses to a prompt differ only after it. With a vision encoder of hundreds of millions of weights,
encoding the image again for each of them costs more than all else.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from samtok.mllm.chat import Encoded
from samtok.mllm.family import Adapter


def vision_inputs(
    model: PreTrainedModel, adapter: Adapter, prompts: Sequence[Encoded], repeats: Sequence[int]
) -> dict[str, Any]:
    """Returns the vision inputs of a batch in which each prompt stands several times, or never, in order.

    Gradients flow through all repetitions into the one pass of the encoder. A batch without repetitions goes
    the same way: ZeRO wants gradients to come in one order on all workers, whatever their batches are.
    Families that cannot share get their pixels repeated.
    """
    kept = [(prompt, count) for prompt, count in zip(prompts, repeats, strict=True) if count]
    if not adapter.shares_images:
        repeated = [prompt for prompt, count in kept for _ in range(count)]
        return adapter.vision_inputs(repeated, model.device)
    vision = adapter.vision_inputs([prompt for prompt, _ in kept], model.device)
    if not vision:
        return vision
    grids = vision["image_grid_thw"]
    order = _order([len(prompt.vision.get("image_grid_thw", ())) for prompt, _ in kept], [c for _, c in kept])
    features = model.get_image_features(vision["pixel_values"], grids, return_dict=True)  # pyright: ignore
    features.pooler_output = tuple(features.pooler_output[image] for image in order)
    depths = getattr(features, "deepstack_features", None)
    if depths is not None:
        features.deepstack_features = [tuple(depth[image] for image in order) for depth in depths]
    return {"mm_encoder_outputs": {"image": features}, "image_grid_thw": grids[torch.tensor(order)]}


def _order(images: Sequence[int], repeats: Sequence[int]) -> list[int]:
    order: list[int] = []
    first = 0
    for count, times in zip(images, repeats, strict=True):
        order += list(range(first, first + count)) * times
        first += count
    return order
