"""A step of the mask tokenizer's training: image encoder frozen, mask encoder, decoder and codes learnt.

The networks and losses of production, and plain AdamW in the place of its engines.
"""

import copy
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from samtok.losses import mask_losses
from samtok.model.backbone import normalize
from samtok.model.prompts import MaskPrompts
from samtok.model.tokenizer import MaskTokenizer
from tests.benchmarks.gpu.place import Found, Place

LOSS = {"num_points": 12544, "oversample": 3.0, "importance": 0.75}  # the authors' config


def step(place: Place) -> Found:
    """Measures steps with so many images, each with the paper's 32 masks."""
    rows, problems = [], []
    for dtype in ("bfloat16", "float32"):
        for images in place.sizes.training_images:
            row, losses = _step(place, dtype, images)
            rows.append(row)
            if not all(map(math.isfinite, losses)):
                problems.append(f"losses {losses} in {dtype} are not finite.")
    note = (
        f"{place.sizes.training_masks} masks an image, weights in float32, autocast to the type, the image "
        "encoder frozen and run in every step, losses at 12,544 points a mask; AdamW, without an engine."
    )
    return Found(rows, note, problems)


def _step(place: Place, dtype: str, images: int) -> tuple[dict[str, object], list[float]]:
    place.forget_memory()
    model = copy.deepcopy(place.tokenizer).train()
    trained = list(_trained(model))
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=place.device == "cuda")
    pictures, listed = map(list, zip(*place.scenes((images, place.sizes.training_masks)), strict=True))
    flat = [mask for own in listed for mask in own]
    size = model.config.mask_size
    owners = torch.arange(images, device=place.device).repeat_interleave(place.sizes.training_masks)
    pixels = normalize(torch.from_numpy(np.stack(pictures)).to(place.device))
    prompts, boxes = MaskPrompts.of(flat, size).on(place.device)
    keys = torch.arange(len(flat), device=place.device)
    losses: list[Tensor] = []

    def take() -> None:
        with torch.autocast(place.device, torch.bfloat16, enabled=dtype == "bfloat16"):
            features = model.embed_images(pixels).of_masks(owners)
            z = model.embed_masks(features.coarse, prompts, boxes).float()
            quantized = model.quantizer(z)
            logits = model.decode_embeddings(features, quantized.embeddings).float()
        found = mask_losses(logits, prompts[:, 0], keys, **LOSS)  # pyright: ignore
        loss = found.bce + found.dice + quantized.commitment
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())

    took = place.median_s(take)
    return {
        "dtype": dtype,
        "images": images,
        "masks": len(flat),
        "trained_m": sum(weight.numel() for weight in trained) / 1e6,
        "step_ms": 1e3 * took,
        "masks_per_s": len(flat) / took,
        "peak_gib": place.peak_gib(),
        "first_loss": float(losses[0]),
        "last_loss": float(losses[-1]),
    }, [float(loss) for loss in losses]


def _trained(model: MaskTokenizer) -> Iterator[nn.Parameter]:
    """Sets what production trains, and yields it."""
    for name, parameter in model.named_parameters():
        kept = not name.startswith(("image_encoder.", "prompt_encoder.", "no_mem_embed"))
        parameter.requires_grad_(kept and "iou_prediction_head" not in name and "pred_obj_score" not in name)
        if parameter.requires_grad:
            yield parameter
