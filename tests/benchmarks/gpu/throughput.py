"""How fast the mask tokenizer is, and how much of what the machine can do that is.

Production's own calls (``MaskTokenizer.encode_batch`` and the pieces that it is made of), at its settings:
images of 1024 px, four at once, 64 masks at once.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from samtok.model.backbone import normalize
from samtok.model.prompts import MaskPrompts
from tests.benchmarks.gpu.place import Found, Place, flops_of

DTYPES = ("bfloat16", "float32")


def images(place: Place) -> Found:
    """Measures the image encoder by itself, and with its way from pixels of the host."""
    rows = [_encoder(place, dtype, count) for dtype in DTYPES for count in (1, place.tokenizer.max_images)]
    side = place.sizes.tokenizer.image_size
    return Found(rows, f"Image encoder at {side} px, random weights; FLOPs counted by torch.")


def _encoder(place: Place, dtype: str, count: int) -> dict[str, Any]:
    batch = [image for image, _ in place.scenes((count, 1))]
    place.forget_memory()
    with place.tokenizer_in(dtype) as model:
        pixels = normalize(torch.from_numpy(np.stack(batch)).to(place.device))

        def encode() -> None:
            with torch.inference_mode(), model.autocast():
                model.embed_images(pixels)

        flops, alone = flops_of(encode), place.median_s(encode)
        whole = place.median_s(lambda: model.features_of(batch))
    return {
        "dtype": dtype,
        "images_at_once": count,
        "encoder_images_per_s": count / alone,
        "with_transfer_images_per_s": count / whole,
        "tflop_per_image": flops / count / 1e12,
        "share_of_peak": place.share_of_peak(flops, alone, dtype),
        "peak_gib": place.peak_gib(),
    }


def masks(place: Place) -> Found:
    """Measures words of images with 1, 32 and 100 masks each, and masks out of words."""
    rows = [_words(place, dtype, count) for dtype in DTYPES for count in place.sizes.masks]
    note = (
        f"{place.tokenizer.max_images} images at once; images/s and masks/s are of `encode_batch`: pixels "
        "to codes. Milliseconds are of one image: `prompts` are small masks and boxes, a part of `encode` "
        "(masks to codes); `decode` makes logits of codes, `full` masks at the image's size of logits. "
        "Float32 has torch's default products: TF32 in convolutions."
    )
    return Found(rows, note)


def _words(place: Place, dtype: str, count: int) -> dict[str, Any]:
    side, number = place.sizes.tokenizer.image_size, place.tokenizer.max_images
    batch, wanted = map(list, zip(*place.scenes((number, count)), strict=True))
    flat = [mask for some in wanted for mask in some]
    owners = [index for index, some in enumerate(wanted) for _ in some]
    place.forget_memory()
    with place.tokenizer_in(dtype) as model:
        features = model.features_of(batch)
        codes = model.codes_of(features, flat, owners)
        logits = list(model.logits_of(features, codes, owners))

        work: dict[str, Callable[[], object]] = {
            "whole": lambda: model.encode_batch(batch, wanted),
            "prompts": lambda: MaskPrompts.of(flat, model.config.mask_size).on(model.device),
            "encode": lambda: model.codes_of(features, flat, owners),
            "decode": lambda: list(model.logits_of(features, codes, owners)),
            "full": lambda: [model.masks_from_logits(one, (side, side)) for one in logits],
        }
        took = {name: place.median_s(one) for name, one in work.items()}
        flops = {name: flops_of(work[name]) for name in ("encode", "decode")}
    return {
        "dtype": dtype,
        "masks": count,
        "images_per_s": number / took["whole"],
        "masks_per_s": number * count / took.pop("whole"),
        **{f"{name}_ms": 1e3 * one / number for name, one in took.items()},
        **{f"{name}_share_of_peak": place.share_of_peak(flops[name], took[name], dtype) for name in flops},
        "peak_gib": place.peak_gib(),
    }
