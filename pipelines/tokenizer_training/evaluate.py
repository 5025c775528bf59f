"""How well a tokenizer says the masks of held-out scenes, and whether it uses its codes at all.

IoU is taken at image size. A decoder can score by looking at the image alone, so every number comes with the
same number for codes that were shuffled among all masks: only the difference is due to the codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from samtok.masks import iou
from samtok.metrics.codebook import LevelUsage, distinct, histogram, usage
from samtok.model.backbone import ImageFeatures
from samtok.model.prompts import mask_prompts, normalized_boxes
from samtok.model.tokenizer import MaskTokenizer
from samtok.shapes import Scene


@dataclass(frozen=True)
class Evaluation:
    """Means over all masks; IoU in [0, 1] at image size, logits cut at 0."""

    images: int
    masks: int
    iou: float
    """Through the codes."""
    iou_continuous: float
    """With z handed to the decoder as it is."""
    iou_shuffled: float
    """With the codes of another mask, drawn among all masks."""
    levels: tuple[LevelUsage, ...]
    """Use of each codebook."""
    distinct: int
    """Different code tuples."""


@dataclass(frozen=True)
class Probe:
    """A cheap look while training: IoU, and IoU with embeddings shuffled among the masks."""

    iou: float
    iou_shuffled: float


@torch.inference_mode()
def evaluate(model: MaskTokenizer, scenes: Sequence[Scene], *, seed: int = 0) -> Evaluation:
    """Measures a tokenizer; ``seed`` draws the shuffling."""
    z = embed(model, scenes)
    codes = model.quantizer.encode(z)
    order = _shuffled(len(z), seed)
    quantized = model.quantizer.decode(codes)
    levels = usage(histogram(codes.cpu().numpy(), model.num_codes))
    return Evaluation(
        images=len(scenes),
        masks=len(z),
        iou=float(ious(model, scenes, quantized).mean()),
        iou_continuous=float(ious(model, scenes, z).mean()),
        iou_shuffled=float(ious(model, scenes, quantized[order]).mean()),
        levels=tuple(levels),
        distinct=distinct(codes.cpu().numpy()),
    )


@torch.inference_mode()
def probe(model: MaskTokenizer, scenes: Sequence[Scene], *, quantize: bool, seed: int = 0) -> Probe:
    """Measures with codes, or with z itself before the codebooks are set."""
    z = embed(model, scenes)
    embeddings = model.quantizer.decode(model.quantizer.encode(z)) if quantize else z
    shuffled = embeddings[_shuffled(len(z), seed)]
    return Probe(float(ious(model, scenes, embeddings).mean()), float(ious(model, scenes, shuffled).mean()))


@torch.inference_mode()
def embed(model: MaskTokenizer, scenes: Sequence[Scene]) -> Float[Tensor, "mask dim"]:
    """Returns z of all masks, in the order of scenes and shapes."""
    return torch.cat([_embed_one(model, scene) for scene in scenes])


def _embed_one(model: MaskTokenizer, scene: Scene) -> Tensor:
    masks = [shape.mask for shape in scene.objects]
    prompts = mask_prompts(masks, model.config.mask_size, model.device)
    boxes = torch.from_numpy(normalized_boxes(masks)).to(model.device)
    return model.embed_masks(_repeated(model, scene).coarse, prompts, boxes).float()


@torch.inference_mode()
def ious(
    model: MaskTokenizer, scenes: Sequence[Scene], embeddings: Float[Tensor, "mask dim"]
) -> Float[np.ndarray, " mask"]:
    """Decodes one embedding per mask and compares at image size."""
    scores, start = [], 0
    for scene in scenes:
        of_scene = embeddings[start : start + len(scene.objects)]
        start += len(scene.objects)
        logits = model.decode_embeddings(_repeated(model, scene), of_scene)
        decoded = model.masks_from_logits(logits, scene.size_hw)
        scores += [iou(a.mask, b) for a, b in zip(scene.objects, decoded, strict=True)]
    return np.array(scores)


def _repeated(model: MaskTokenizer, scene: Scene) -> ImageFeatures:
    """Returns the features of a scene's image, once per mask."""
    owners = torch.zeros(len(scene.objects), dtype=torch.int64, device=model.device)
    return model.features_of([scene.image]).of_masks(owners)


def _shuffled(count: int, seed: int) -> Tensor:
    """Returns an order in which (with more than one mask) nothing stays in its place."""
    cycle = torch.from_numpy(np.random.default_rng(seed).permutation(count))
    order = torch.empty_like(cycle)
    order[cycle] = cycle.roll(1)
    return order
