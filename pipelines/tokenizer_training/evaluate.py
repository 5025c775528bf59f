"""How well a tokenizer reconstructs held-out masks while it is trained, and whether it uses its codes at all.

IoU is taken at image size. A decoder can score by the image alone, so the same is measured with
the codes of masks of another image: only the difference is due to the codes. Every image is encoded once.
``pipelines.tokenizer_evaluation`` measures finished tokenizers on whole corpora.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipelines.tokenizer_training.sources import Sample
from samtok.errors import DataError
from samtok.masks import RunMask, iou
from samtok.metrics.codebook import distinct, histogram, usage
from samtok.model.backbone import ImageFeatures
from samtok.model.prompts import MaskPrompts
from samtok.model.tokenizer import MaskTokenizer
from samtok.ranks import gather_rows


@torch.inference_mode()
def validate(
    tokenizer: MaskTokenizer, samples: Iterable[Sample], *, quantize: bool, full: bool = False
) -> dict[str, Any]:
    """Measures; collective over workers, each of which has images of its own. Raises DataError if no worker
    had a mask.

    Args:
        tokenizer: In evaluation mode or not; it is left as it was.
        quantize: Through the codes, or through z before the codebooks are set.
        full: Also measure with z itself.

    Returns:
        Means over all ``masks`` of all workers, with IoU in [0, 1] at image size: ``iou``; ``iou_shuffled``,
        with what belongs to masks of another image, NaN where there was only one; ``iou_continuous``, with z
        itself, if it was asked for; and ``below_half``, the share of masks with an IoU under one half. Of the
        codes ``perplexity_0`` and so on, ``used_0``, and ``distinct`` tuples, 0 unless ``quantized``.
    """
    was_training = tokenizer.training
    tokenizer.eval()
    columns = 3 + (tokenizer.num_levels if quantize else 0)
    rows = list(_rows(tokenizer, samples, quantize=quantize, full=full))
    table = torch.cat(rows) if rows else torch.empty(0, columns)
    table = gather_rows(table.double().to(tokenizer.device)).cpu().numpy()
    tokenizer.train(was_training)
    if not len(table):
        raise DataError(
            "there is no usable mask to validate on; check --validation.corpora and --sampling.min-area-px.",
            reason="no_masks",
        )
    return _summary(tokenizer, table, quantize=quantize, full=full)


def _summary(tokenizer: MaskTokenizer, table: np.ndarray, *, quantize: bool, full: bool) -> dict[str, Any]:
    scores, shuffled, continuous = table[:, :3].T
    codes = table[:, 3:].astype(np.int64)
    levels = usage(histogram(codes, tokenizer.num_codes)) if quantize else []
    others = shuffled[~np.isnan(shuffled)]
    return {
        "masks": len(table),
        "iou": float(scores.mean()),
        "iou_shuffled": float(others.mean()) if len(others) else float("nan"),
        "below_half": float((scores < 0.5).mean()),
        "quantized": quantize,
        **({"iou_continuous": float(continuous.mean())} if full and quantize else {}),
        "distinct": distinct(codes) if quantize else 0,
        **{f"perplexity_{i}": level.perplexity for i, level in enumerate(levels)},
        **{f"used_{i}": level.used for i, level in enumerate(levels)},
    }


def _rows(
    tokenizer: MaskTokenizer, samples: Iterable[Sample], *, quantize: bool, full: bool
) -> Iterator[Float[Tensor, "mask column"]]:
    """Yields per image and mask: IoU, IoU with another image's embeddings, IoU with z, codes."""
    previous: Tensor | None = None
    for sample in samples:
        features = tokenizer.features_of([sample.image])
        z = embed(tokenizer, features, sample.masks)
        codes = tokenizer.quantizer.encode(z)
        decoded = tokenizer.quantizer.decode(codes) if quantize else z
        unknown = np.full(len(z), np.nan)
        foreign = None if previous is None else previous[torch.arange(len(z)).to(z.device) % len(previous)]
        columns = [
            _ious(tokenizer, features, sample, decoded),
            unknown if foreign is None else _ious(tokenizer, features, sample, foreign),
            _ious(tokenizer, features, sample, z) if full and quantize else unknown,
        ]
        numbers = torch.from_numpy(np.stack(columns, axis=1))
        yield torch.cat([numbers, codes.cpu().double()], dim=1) if quantize else numbers
        previous = decoded


def embed(
    tokenizer: MaskTokenizer, features: ImageFeatures, masks: Sequence[RunMask]
) -> Float[Tensor, "mask dim"]:
    """Returns z of the masks of one image."""
    owners = torch.zeros(len(masks), dtype=torch.int64, device=tokenizer.device)
    soft, boxes = MaskPrompts.of(masks, tokenizer.config.mask_size).on(tokenizer.device)
    with tokenizer.autocast():
        return tokenizer.embed_masks(features.coarse[owners], soft, boxes).float()


def _ious(
    tokenizer: MaskTokenizer, features: ImageFeatures, sample: Sample, embeddings: Tensor
) -> np.ndarray:
    owners = torch.zeros(len(embeddings), dtype=torch.int64, device=tokenizer.device)
    with tokenizer.autocast():
        logits = tokenizer.decode_embeddings(features.of_masks(owners), embeddings).float()
    decoded = tokenizer.masks_from_logits(logits, sample.image.shape[:2])
    return np.array([iou(a.dense(), b) for a, b in zip(sample.masks, decoded, strict=True)])
