"""Losses on decoded masks: cross-entropy and Dice on points sampled by uncertainty (paper, section 2.1).

Points are chosen as in PointRend (section 3.3) and Mask2Former: draw more than are needed, keep those whose
logit is closest to 0, fill up with uniform ones. Where the logits have no more pixels than points, sampling
would only add noise, so all pixels are used. Weights and numbers of points are the caller's
(``LossConfig`` of tokenizer training has the authors').

The points of a mask are a function of its key, whatever other masks are beside it and wherever it is
computed: a step may be cut into micro-batches and spread over devices without changing its loss.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


class MaskLosses(NamedTuple):
    """Both losses, unweighted, as means over masks; both are 0 for no masks."""

    bce: Float[Tensor, ""]
    dice: Float[Tensor, ""]


def mask_losses(
    logits: Float[Tensor, "mask height width"],
    targets: Float[Tensor, "mask target_height target_width"],
    keys: Int[Tensor, " mask"],
    *,
    num_points: int,
    oversample: float,
    importance: float,
) -> MaskLosses:
    """Compares logits with soft masks.

    Args:
        logits: Values before the sigmoid.
        targets: Share of each pixel that is inside, in [0, 1]; at least as large as the logits.
        keys: Any int64 per mask, from which its points follow; not used when all pixels are.
        num_points: Points per mask (12544 in the authors' config).
        oversample: Candidates for each uncertain point that is kept.
        importance: Share of the points that are kept for being uncertain, in [0, 1].

    Raises:
        ValueError: If the targets are smaller than the logits.
    """
    (height, width), target_size = logits.shape[1:], targets.shape[1:]
    if height > target_size[0] or width > target_size[1]:
        raise ValueError(
            f"targets must be at least as large as the logits {(height, width)}, got {tuple(target_size)}."
        )
    if height * width <= num_points:
        at_logits = logits.flatten(1)
        at_targets = functional.adaptive_avg_pool2d(targets[:, None], (height, width)).flatten(1)
    else:
        with torch.no_grad():
            points = uncertain_points(
                logits, keys, num_points=num_points, oversample=oversample, importance=importance
            )
            at_targets = at_points(targets, points)
        at_logits = at_points(logits, points)
    return MaskLosses(binary_cross_entropy(at_logits, at_targets), dice(at_logits, at_targets))


def binary_cross_entropy(
    logits: Float[Tensor, "mask point"], targets: Float[Tensor, "mask point"]
) -> Float[Tensor, ""]:
    """Returns the mean over all points of all masks."""
    total = functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    return total / max(logits.numel(), 1)


def dice(logits: Float[Tensor, "mask point"], targets: Float[Tensor, "mask point"]) -> Float[Tensor, ""]:
    """Returns the mean over masks of ``1 - (2 p.t + 1) / (sum p + sum t + 1)``.

    The 1 keeps an empty target that is predicted empty at a loss of 0.
    """
    inside = logits.sigmoid()
    overlap = (inside * targets).sum(dim=1)
    score = (2 * overlap + 1) / (inside.sum(dim=1) + targets.sum(dim=1) + 1)
    return (1 - score).sum() / max(len(logits), 1)


def at_points(
    maps: Float[Tensor, "mask height width"], points: Float[Tensor, "mask point 2"]
) -> Float[Tensor, "mask point"]:
    """Reads maps at (x, y) points in [0, 1] by bilinear interpolation.

    The centre of the first pixel is at half a pixel; beyond the outer pixel centres a map fades to 0.
    """
    grid = 2 * points[:, :, None] - 1
    return functional.grid_sample(maps[:, None], grid, mode="bilinear", align_corners=False)[:, 0, :, 0]


def uncertain_points(
    logits: Float[Tensor, "mask height width"],
    keys: Int[Tensor, " mask"],
    *,
    num_points: int,
    oversample: float,
    importance: float,
) -> Float[Tensor, "mask num_points 2"]:
    """Draws (x, y) points in [0, 1]: first the uncertain ones, then uniform ones.

    Raises:
        ValueError: If ``oversample`` is below 1 or ``importance`` outside [0, 1].
    """
    if oversample < 1 or not 0 <= importance <= 1:
        raise ValueError(
            f"oversample must be >= 1 and importance in [0, 1], got {oversample} and {importance}."
        )
    num_uncertain, num_candidates = int(importance * num_points), int(oversample * num_points)
    drawn = uniform_points(keys, num_candidates + num_points - num_uncertain).to(logits.dtype)
    candidates, uniform = drawn[:, :num_candidates], drawn[:, num_candidates:]
    certainty = at_points(logits, candidates).abs()
    kept = certainty.topk(num_uncertain, dim=1, largest=False).indices
    uncertain = candidates.gather(1, kept[:, :, None].expand(-1, -1, 2))
    return torch.cat([uncertain, uniform], dim=1)


def uniform_points(keys: Int[Tensor, " mask"], points: int) -> Float[Tensor, "mask points 2"]:
    """Returns points in [0, 1) that follow from each key alone, the same on every device.

    The numbers are those of SplitMix64 (Steele, Lea and Flood 2014) started at the key.
    """
    counter = torch.arange(1, 2 * points + 1, device=keys.device)
    x = keys[:, None] + counter * _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    x = x ^ _shifted(x, 31)
    return (_shifted(x, 40).float() / 2**24).unflatten(1, (points, 2))


def _signed(constant: int) -> int:
    return constant - 2**64


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shifts 64 bits to the right and fills up with zeros; torch itself repeats the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
