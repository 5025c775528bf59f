"""Which masks of an image a step trains on, where there are more than it takes.

Three policies, set by ``SamplingConfig`` and applied in this order:

- ``skip`` and ``min_area_px`` leave out masks that are never trained on (``why_unusable``);
- ``drop_nested`` leaves out masks that lie in a larger one, so that wholes are seen and not their parts;
- ``pick`` draws without replacement: ``uniform`` takes all masks alike, ``area`` in proportion to the root of
  their area, about their width in pixels. SA-1B has many tiny masks; most of a step would go to them.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from pycocotools import mask as coco

from pipelines.tokenizer_training.config import SamplingConfig

NESTED_SHARE = 0.9
"""Share of a mask's area that must lie in a larger mask for it to count as a part of that one."""

_NEVER = ("empty", "box_only")  # flags of entries without pixels


def why_unusable(flags: Sequence[str], policy: SamplingConfig) -> str | None:
    """Returns the first flag that keeps a mask out of training, or None; its area is not looked at."""
    return next((flag for flag in (*policy.skip, *_NEVER) if flag in flags), None)


def pick_masks(
    rles: Sequence[str],
    areas_px: Sequence[int],
    *,
    size_hw: tuple[int, int],
    most: int,
    policy: SamplingConfig,
    draw: np.random.Generator,
) -> list[int]:
    """Returns the positions of the masks to train on, ascending, at most ``most``.

    Args:
        rles: Compressed COCO counts of usable masks of one image; checked ones, none empty.
        areas_px: Their areas, above 0.
        most: Most masks to pick, at least 1.
        draw: Used only where there are more masks than that.
    """
    left = without_nested(rles, areas_px, size_hw) if policy.drop_nested else list(range(len(rles)))
    return [left[i] for i in draw_masks([areas_px[i] for i in left], most=most, policy=policy, draw=draw)]


def draw_masks(
    areas_px: Sequence[int], *, most: int, policy: SamplingConfig, draw: np.random.Generator
) -> list[int]:
    """Draws at most ``most`` positions without replacement, ascending; as ``pick_masks``, nesting aside."""
    if len(areas_px) <= most:
        return list(range(len(areas_px)))
    weights = np.sqrt(np.asarray(areas_px, np.float64)) if policy.pick == "area" else 1.0
    # The first of exponential clocks with these rates to ring, then the next: drawing without replacement.
    rings = draw.exponential(size=len(areas_px)) / weights
    return sorted(np.argsort(rings, kind="stable")[:most].tolist())


def without_nested(rles: Sequence[str], areas_px: Sequence[int], size_hw: tuple[int, int]) -> list[int]:
    """Returns the positions of masks that do not lie in a larger one, ascending; never none of some.

    A mask lies in another if ``NESTED_SHARE`` of its area does. Of masks of equal area the first counts as
    the larger, so of equal masks one stays.
    """
    if len(rles) < 2:
        return list(range(len(rles)))
    coded = cast(Any, [{"size": list(size_hw), "counts": rle.encode()} for rle in rles])
    inside = np.asarray(coco.iou(coded, coded, [1] * len(rles)))  # crowd: intersection over the first's area
    order = np.lexsort((np.arange(len(rles)), -np.asarray(areas_px)))
    rank = np.empty(len(rles), np.int64)
    rank[order] = np.arange(len(rles))
    is_larger = rank[None, :] < rank[:, None]  # column than row
    return np.flatnonzero(~((inside >= NESTED_SHARE) & is_larger).any(axis=1)).tolist()
