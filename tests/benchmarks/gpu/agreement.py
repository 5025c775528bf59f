"""Whether the mask tokenizer gives the same words elsewhere: on another device, in batches, in bfloat16.

Weights are random, so nothing here says how good words are. Codebooks are set by the embeddings of a sample
of masks (``Place.tokenizer``), else all masks would have the same word and agree whatever the arithmetic.
"""

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samtok.masks import iou
from samtok.metrics.codebook import distinct
from samtok.model.precision import tf32
from samtok.model.tokenizer import MaskTokenizer
from tests.benchmarks.gpu.place import Found, Place

LEAST_EQUAL = 0.97
"""Share of codes that must be equal in float32; those that differ lie between two entries of a codebook."""
MOST_APART = 1e-2
"""Largest difference of embeddings in float32, as a share of how much they spread from mask to mask."""
MOST_PIXELS = 1e-3
"""Share of decoded pixels that may differ in float32."""
LEAST_DISTINCT = 0.5
"""Share of the masks that must have words of their own, or their agreement says nothing."""

RANDOM = (
    "Random weights, codebooks by k-means on embeddings of other masks. `most_apart` is the largest "
    "difference of embeddings, as a share of their spread from mask to mask. Decoded masks are cut at the "
    "median of their logits, so that half of the pixels are inside."
)


class _Side:
    """Embeddings, codes and logits of masks, with the images in one batch."""

    def __init__(self, model: MaskTokenizer, scenes: list[tuple[np.ndarray, list[np.ndarray]]]) -> None:
        masks = [mask for _, masks in scenes for mask in masks]
        self.owners = [index for index, (_, masks) in enumerate(scenes) for _ in masks]
        self.model, self.features = model, model.features_of([image for image, _ in scenes])
        z = torch.cat(list(model.embeddings_of(self.features, masks, self.owners))).float()
        self.codes = model.quantizer.encode(z).cpu().numpy()
        self.z = z.cpu()

    def logits(self, codes: np.ndarray) -> Tensor:
        """Decodes codes with the features of the masks' images."""
        return torch.cat(list(self.model.logits_of(self.features, codes, self.owners))).cpu()


def parity(place: Place) -> Found:
    """Compares float32 on the CPU, mask by mask, with float32 on the device, all images and masks at once."""
    alone = place.on_cpu()
    alone.max_masks = 1
    scenes: list[Any] = []
    sides: list[_Side] = []
    for scene in place.scenes(place.sizes.parity):
        if sides and time.monotonic() > place.until:
            break
        scenes.append(scene)
        sides.append(_Side(alone, [scene]))
    z = torch.cat([side.z for side in sides])
    codes = np.concatenate([side.codes for side in sides])
    with tf32(False):
        other = _Side(place.tokenizer, scenes)
        logits = other.logits(codes)
    reference = torch.cat([side.logits(side.codes) for side in sides])
    cut = _medians(reference)
    row = _row(codes, other.codes, z, other.z)
    row["different_pixels"] = float(((reference > cut) != (logits > cut)).float().mean())
    problems = [
        f"{name} is {row[name]:.4g}, expected {wanted}."
        for name, wanted, wrong in (
            ("equal_codes", f"at least {LEAST_EQUAL}", row["equal_codes"] < LEAST_EQUAL),
            ("most_apart", f"at most {MOST_APART}", row["most_apart"] > MOST_APART),
            ("different_pixels", f"at most {MOST_PIXELS}", row["different_pixels"] > MOST_PIXELS),
        )
        if wrong
    ]
    note = f"float32 on the CPU, mask by mask, against {place.device} in one batch, without TF32. {RANDOM}"
    return Found([row], note, problems + _degenerate(row))


def bfloat16(place: Place) -> Found:
    """Compares float32 with bfloat16 on the device; each decodes its own words in its own type."""
    scenes = list(place.scenes(place.sizes.agreement))
    with tf32(False), place.tokenizer_in("float32") as model:
        exact = _Side(model, scenes)
        reference = exact.logits(exact.codes)
    with place.tokenizer_in("bfloat16") as model:
        rough = _Side(model, scenes)
        logits = rough.logits(rough.codes)
    cut = _medians(reference)
    inside, same = (reference > cut).numpy(), (logits > cut).numpy()
    others = (reference.roll(1, dims=0) > cut).numpy()
    ious = [iou(a, b) for a, b in zip(inside, same, strict=True)]
    row = _row(exact.codes, rough.codes, exact.z, rough.z)
    row |= {"iou": float(np.mean(ious)), "lowest_iou": float(np.min(ious))}
    row["iou_of_other_masks"] = float(np.mean([iou(a, b) for a, b in zip(inside, others, strict=True)]))
    note = "float32 against autocast in bfloat16, images encoded anew, each decoding its own words; "
    note += f"`iou_of_other_masks` is that of a mask with the one before it. {RANDOM}"
    return Found([row], note, _degenerate(row))


def _row(codes: np.ndarray, other: np.ndarray, z: Tensor, other_z: Tensor) -> dict[str, Any]:
    equal = codes == other
    spread = float(z.std(dim=0).square().mean().sqrt())
    return {
        "masks": len(codes),
        "distinct_words": distinct(codes),
        "equal_codes": float(equal.mean()),
        **{f"equal_level_{level}": float(share) for level, share in enumerate(equal.mean(axis=0))},
        "equal_words": float(equal.all(axis=1).mean()),
        "spread": spread,
        "most_apart": float((z - other_z).abs().max()) / spread,
    }


def _degenerate(row: dict[str, Any]) -> list[str]:
    if row["distinct_words"] >= LEAST_DISTINCT * row["masks"]:
        return []
    return [f"{row['masks']} masks have {row['distinct_words']} words, too few for their agreement to count."]


def _medians(logits: Tensor) -> Tensor:
    """Returns a value per mask that no pixel has, so that rounding does not move pixels across it."""
    values = logits.flatten(1).sort(dim=1).values
    middle = values.shape[1] // 2
    return values[:, middle - 1 : middle + 1].mean(dim=1)[:, None, None]
