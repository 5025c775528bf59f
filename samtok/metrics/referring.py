"""Referring segmentation: GRES, RES and REC@0.5, from pixel counts and boxes of predictions.

Each metric has two modes. "official" gives the numbers of the public evaluators, whose rules and quirks are
named at the functions; samples without a prediction (an image that does not load) are left out of it, as
there. "strict" has no quirks, and such a sample counts as wrong. Sources: github.com/bytedance/Sa2VA,
projects/samtok/evaluation and projects/sa2va/evaluation; github.com/henghuiding/ReLA; for the keyed mean
github.com/Gorilla-Lab-SCUT/PaDT. Pixels are counted in int64, where the official GRES script adds float32.

All results are shares in [0, 1], or None where nothing of the kind was there. Each is a sum over samples of a
part over one of a whole; ``gres_terms`` and its like return what each sample adds to both, from which
``samtok.metrics.intervals`` tells how sure a share is. Loads numpy only.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from samtok import masks

Mode = Literal["official", "strict"]
MODES: tuple[Mode, ...] = ("strict", "official")

HIT_IOU = 0.5
"""Least IoU of boxes that is a hit, itself included."""

_Mask = Bool[np.ndarray, "_height _width"]


@dataclass(frozen=True)
class Samples:
    """What was predicted for questions, one entry per question.

    Attributes:
        intersection_px: Pixels in both masks.
        predicted_px: Pixels of the predicted mask; 0 means no target.
        target_px: Pixels of the true mask; 0 if there is no target.
        predicted_box: ``x0, y0, x1, y1`` of the predicted mask, far side included; anything if it is empty.
        target_box: The same of the true mask.
        skipped: Nothing could be predicted; the other entries of the prediction are 0 then.
        keys: ``{image_id}_{phrase}``, by which the keyed mean joins samples.
        annotated_box: ``x0, y0, x1, y1`` in pixels as the dataset states it, far side excluded; None if it
            is not known.
    """

    intersection_px: Int[np.ndarray, " sample"]
    predicted_px: Int[np.ndarray, " sample"]
    target_px: Int[np.ndarray, " sample"]
    predicted_box: Int[np.ndarray, "sample 4"]
    target_box: Int[np.ndarray, "sample 4"]
    skipped: Bool[np.ndarray, " sample"]
    keys: tuple[str, ...]
    annotated_box: Float[np.ndarray, "sample 4"] | None = None

    @classmethod
    def of_masks(
        cls, pairs: Iterable[tuple[_Mask, _Mask | None]], keys: Sequence[str] | None = None
    ) -> "Samples":
        """Counts pairs of a true and a predicted mask of one size; None as prediction is a skipped sample."""
        rows = [_row(target, predicted) for target, predicted in pairs]
        numbers = np.array([row[0] for row in rows], np.int64).reshape(len(rows), 3)
        boxes = np.array([row[1] for row in rows], np.int64).reshape(len(rows), 2, 4)
        return cls(
            intersection_px=numbers[:, 0],
            predicted_px=numbers[:, 1],
            target_px=numbers[:, 2],
            predicted_box=boxes[:, 0],
            target_box=boxes[:, 1],
            skipped=np.array([row[2] for row in rows], bool),
            keys=tuple(map(str, range(len(rows))) if keys is None else keys),
        )

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.target_px)

    @property
    def union_px(self) -> Int[np.ndarray, " sample"]:
        """Pixels in either mask."""
        return self.predicted_px + self.target_px - self.intersection_px

    def take(self, chosen: Bool[np.ndarray, " sample"]) -> "Samples":
        """Returns some of the samples."""
        columns = {
            name: column[chosen] for name, column in vars(self).items() if isinstance(column, np.ndarray)
        }
        return replace(self, **columns, keys=tuple(compress(self.keys, chosen)))


def check_mode(mode: str) -> None:
    """Raises ValueError for a mode that is none of ``MODES``."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}.")


@dataclass(frozen=True)
class Terms:
    """What each sample adds to a share: to its part, and to the whole that it is a part of.

    Both are 0 for a sample that does not count.
    """

    part: Shaped[np.ndarray, " sample"]
    whole: Shaped[np.ndarray, " sample"]

    def share(self, epsilon: float = 0.0) -> float | None:
        """Returns the sum of parts over that of wholes and ``epsilon``; None if there is no whole."""
        return _share(self.part.sum(), self.whole.sum(), epsilon)


def counts(samples: Samples) -> dict[str, int]:
    """Returns how many samples there are, were predicted, and were skipped."""
    skipped = int(samples.skipped.sum())
    return {"expected": len(samples), "scored": len(samples) - skipped, "skipped": skipped}


def gres(samples: Samples, *, mode: Mode = "strict", min_pixels: int = 0) -> dict[str, Any]:
    """Generalised referring segmentation (gRefCOCO).

    gIoU is the mean over samples of the IoU, where a sample without a target counts 1 if nothing was
    predicted and 0 otherwise; cIoU is the sum of intersections over that of unions; N-acc is the share
    of no-target samples with no prediction, T-acc that of the others with one. Emptiness is that of masks,
    not of the text; one of fewer than ``min_pixels`` counts as empty. "official" adds the epsilons of the
    reference, 1e-8 and 1e-10.

    Returns:
        ``giou``, ``ciou``, ``n_acc``, ``t_acc``; ``no_target`` and ``with_target`` count what the accuracies
        are of.
    """
    used = _used(samples, mode)
    terms = gres_terms(used, mode=mode, min_pixels=min_pixels)
    epsilon = 1e-10 if mode == "official" else 0.0
    return {
        **{name: term.share(epsilon if name == "ciou" else 0.0) for name, term in terms.items()},
        "no_target": int(terms["n_acc"].whole.sum()),
        "with_target": int(terms["t_acc"].whole.sum()),
    }


def gres_terms(samples: Samples, *, mode: Mode = "strict", min_pixels: int = 0) -> dict[str, Terms]:
    """Returns the terms of ``giou``, ``ciou``, ``n_acc`` and ``t_acc``; arguments as of ``gres``."""
    counted, kept = _counted(samples, mode), samples.predicted_px >= min_pixels
    predicted = np.where(kept, samples.predicted_px, 0)
    intersection = np.where(kept, samples.intersection_px, 0)
    union = predicted + samples.target_px - intersection
    wanted, given = samples.target_px > 0, predicted > 0
    right_none = ~wanted & ~given & ~samples.skipped
    found = wanted & given
    single = np.where(found, _ratio(intersection, union, 1e-8 if mode == "official" else 0.0), right_none)
    return {
        "giou": Terms(single * counted, counted),
        "ciou": Terms(intersection * counted, union * counted),
        "n_acc": Terms(right_none & counted, ~wanted & counted),
        "t_acc": Terms(found & counted, wanted & counted),
    }


def res(
    samples: Samples, *, mode: Mode = "strict", wanted_keys: Sequence[str] | None = None
) -> dict[str, Any]:
    """Referring segmentation of one target (RefCOCO, RefCOCO+, RefCOCOg), by its three published definitions.

    Args:
        mode: "official" adds 1e-5 to the union of the mean IoU.
        wanted_keys: Keys that the keyed mean is over; a key without a sample counts 0. None takes those of
            the samples.

    Returns:
        ``ciou_cumulative``, the sum of intersections over that of unions, what papers call cIoU; ``miou``,
        the mean over expressions, where two empty masks count 1; ``padt_dedup_miou``, what the reference's
        script prints as "RES CIoU": the mean over keys of the best IoU of the key.
    """
    used = _used(samples, mode)
    terms, single = res_terms(used, mode=mode), _ratio(used.intersection_px, used.union_px)
    return {
        "ciou_cumulative": terms["ciou_cumulative"].share(),
        "miou": terms["miou"].share(),
        "padt_dedup_miou": _keyed_mean(used.keys, single, max, wanted_keys),
    }


def res_terms(samples: Samples, *, mode: Mode = "strict") -> dict[str, Terms]:
    """Returns the terms of the numbers of ``res``; a key's are those of its first sample."""
    counted, union = _counted(samples, mode), samples.union_px
    both_empty = (union == 0) & ~samples.skipped
    single = _ratio(samples.intersection_px, union, 1e-5 if mode == "official" else 0.0) + both_empty
    return {
        "ciou_cumulative": Terms(samples.intersection_px * counted, union * counted),
        "miou": Terms(single * counted, counted),
        "padt_dedup_miou": _keyed_terms(samples.keys, _ratio(samples.intersection_px, union), max, counted),
    }


def rec(
    samples: Samples,
    *,
    mode: Mode = "strict",
    gt_box: Literal["mask", "annotation"] = "mask",
    inclusive_plus_one: bool | None = None,
) -> dict[str, Any]:
    """Referring comprehension: the share of samples whose box has an IoU of at least 0.5 with the true one.

    The predicted box is the tight box of the predicted mask. An empty prediction is a miss.

    Args:
        mode: Sets the default of ``inclusive_plus_one``, and which of the samples of one key the keyed
            accuracy takes: the last one in "official", a hit if there is one in "strict".
        gt_box: Take the true box from the true mask, as the reference does, or from the annotation, rounded
            to pixels, as PaDT does.
        inclusive_plus_one: Boxes of masks include their far side, so a width is ``x1 - x0 + 1``. The official
            scripts leave out the 1, so an object of one pixel's width is never hit. None: only in "strict".

    Raises:
        ValueError: If boxes of annotations are asked for and there are none.
    """
    used = _used(samples, mode)
    terms = rec_terms(used, mode=mode, gt_box=gt_box, inclusive_plus_one=inclusive_plus_one)
    return {name: term.share() for name, term in terms.items()}


def rec_terms(
    samples: Samples,
    *,
    mode: Mode = "strict",
    gt_box: Literal["mask", "annotation"] = "mask",
    inclusive_plus_one: bool | None = None,
) -> dict[str, Terms]:
    """Returns the terms of the numbers of ``rec``, whose arguments these are; a key's are those of its first
    sample."""
    counted = _counted(samples, mode)
    plus_one = mode == "strict" if inclusive_plus_one is None else inclusive_plus_one
    target = samples.target_box.astype(np.float64) if gt_box == "mask" else _annotated(samples, plus_one)
    iou = box_iou(samples.predicted_box.astype(np.float64), target, plus_one=plus_one)
    there = (samples.predicted_px > 0) & ((samples.target_px > 0) | (gt_box == "annotation"))
    hits = ((iou >= HIT_IOU) & there).astype(np.float64)
    choose = max if mode == "strict" else lambda _, last: last
    return {
        "accuracy": Terms(hits * counted, counted),
        "padt_dedup_accuracy": _keyed_terms(samples.keys, hits, choose, counted),
    }


def targets(samples: Samples, *, mode: Mode = "strict") -> dict[str, Any]:
    """Mean IoU over the samples that have a target: what "No target." as constant answer cannot raise."""
    used = _used(samples, mode)
    wanted = used.take(used.target_px > 0)
    return {"mean_iou": targets_terms(wanted, mode=mode)["mean_iou"].share(), "num": len(wanted)}


def targets_terms(samples: Samples, *, mode: Mode = "strict") -> dict[str, Terms]:
    """Returns the terms of ``mean_iou`` of ``targets``."""
    wanted = (samples.target_px > 0) & _counted(samples, mode)
    return {"mean_iou": Terms(_ratio(samples.intersection_px, samples.union_px) * wanted, wanted)}


def box_iou(
    a: Float[np.ndarray, "sample 4"], b: Float[np.ndarray, "sample 4"], *, plus_one: bool
) -> Float[np.ndarray, " sample"]:
    """Returns the IoU of boxes ``x0, y0, x1, y1``; 0 where neither has an area.

    With ``plus_one`` the far side belongs to the box, so sides are one longer than the difference.
    """
    one = 1.0 if plus_one else 0.0
    overlap = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) + one
    inside = np.clip(overlap, 0, None).prod(axis=1)
    areas = [np.clip(box[:, 2:] - box[:, :2] + one, 0, None).prod(axis=1) for box in (a, b)]
    return _ratio(inside, areas[0] + areas[1] - inside)


def _row(target: _Mask, predicted: _Mask | None) -> tuple[tuple[int, int, int], tuple[Any, Any], bool]:
    nothing = (0, 0, 0, 0)
    target_box = masks.box_of(target) or nothing
    if predicted is None:
        return (0, 0, int(target.sum())), (nothing, target_box), True
    if predicted.shape != target.shape:
        raise ValueError(f"masks must have the same size, got {predicted.shape} and {target.shape}.")
    numbers = int((target & predicted).sum()), int(predicted.sum()), int(target.sum())
    return numbers, (masks.box_of(predicted) or nothing, target_box), False


def _used(samples: Samples, mode: Mode) -> Samples:
    return samples.take(_counted(samples, mode))


def _counted(samples: Samples, mode: Mode) -> Bool[np.ndarray, " sample"]:
    check_mode(mode)
    return ~samples.skipped if mode == "official" else np.ones(len(samples), bool)


def _annotated(samples: Samples, plus_one: bool) -> Float[np.ndarray, "sample 4"]:
    """Returns annotated boxes in pixels; the far side is included where widths get their 1 back."""
    if samples.annotated_box is None:
        raise ValueError("these samples have no annotated boxes; use gt_box='mask'.")
    box = np.round(samples.annotated_box)
    return box - np.array([0, 0, 1, 1]) if plus_one else box


def _ratio(part: np.ndarray, whole: np.ndarray, epsilon: float = 0.0) -> Float[np.ndarray, " sample"]:
    return part / (np.where(whole == 0, 1, whole) + epsilon)


def _share(part: Any, whole: Any, epsilon: float = 0.0) -> float | None:
    return float(part / (whole + epsilon)) if whole else None


def _keyed_mean(
    keys: Sequence[str],
    values: Float[np.ndarray, " sample"],
    choose: Callable[[float, float], float],
    wanted: Sequence[str] | None = None,
) -> float | None:
    best = _of_keys(keys, values, choose)
    chosen = list(best.values()) if wanted is None else [best.get(key, 0.0) for key in wanted]
    return float(np.mean(chosen)) if chosen else None


def _of_keys(
    keys: Sequence[str], values: Float[np.ndarray, " sample"], choose: Callable[[float, float], float]
) -> dict[str, float]:
    best: dict[str, float] = {}
    for key, value in zip(keys, values.tolist(), strict=True):
        best[key] = choose(best[key], value) if key in best else value
    return best


def _keyed_terms(
    keys: Sequence[str],
    values: Float[np.ndarray, " sample"],
    choose: Callable[[float, float], float],
    counted: Bool[np.ndarray, " sample"],
) -> Terms:
    """Returns terms in which the first counted sample of a key stands for all of them."""
    first: dict[str, int] = {}
    for place in np.flatnonzero(counted).tolist():
        first.setdefault(keys[place], place)
    best = _of_keys(list(compress(keys, counted)), values[counted], choose)
    part, whole = np.zeros(len(keys)), np.zeros(len(keys), bool)
    for key, place in first.items():
        part[place], whole[place] = best[key], True
    return Terms(part, whole)
