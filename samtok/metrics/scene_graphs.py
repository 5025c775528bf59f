"""Panoptic scene graphs (PSG, the paper's Table 10): recall of triplets, R@K, and its mean over predicates.

A predicted triplet finds a true one if subject, predicate and object have the same labels, and both masks an
IoU of at least 0.5. Each mode scores an image on its own, so that no more than one image's masks are held,
and then takes means over images.

"strict" is the definition. "official" gives the numbers of the evaluation in
github.com/devinxzhang/CycleGRPO, projects/vlm/tokenmask/evaluation/psg, after
github.com/Jingkang50/OpenPSG, openpsg/evaluation/sgg_metrics.py:

- An image without a valid triplet, without a finished answer or without an answer is left out of all means.
  In strict mode it counts 0.
- Masks of one object are merged before they are compared (``merged_objects``).
- The first predicate of the list is left out of the mean over predicates, which is still divided by the
  length of the list: true predicates count from 0 there, and slot 0 is taken for the sum of all.

All predictions have one score there, so which come first is decided by how a sort breaks ties; here, in both
modes, it is the order of the text. Where a subject has no words the public script stops; here it has an empty
mask, which nothing matches. Labels are texts, so it makes no difference from what number a dataset counts
them. Loads numpy only.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import fsum
from typing import Any

import numpy as np
from jaxtyping import Bool

from samtok.errors import DataError
from samtok.metrics.referring import Mode, check_mode
from samtok.metrics.scene_graph_text import StatedTriplet

MATCH_IOU = 0.5
"""Least IoU of two masks that are the same object, itself included."""

SAME_IOU = 0.5
"""Masks of one label with a greater IoU, itself excluded, are mentions of one object."""

MERGED_SHARE = 0.8
"""A pixel stays in a merged mask if a greater share of its masks, itself excluded, has it. The public script
takes 0.994 of each mask, its score; that can matter only where 46 masks or more are merged."""

_Mask = Bool[np.ndarray, "_height _width"]


@dataclass(frozen=True, eq=False)
class Region:
    """A labelled mask, dense and at the image's size; all pixels False if the words meant none."""

    label: str
    mask: _Mask


@dataclass(frozen=True, eq=False)
class Triplet:
    """Two regions of an image and how the first one stands to the second."""

    subject: Region
    predicate: str
    object: Region

    @property
    def labels(self) -> tuple[str, str, str]:
        """Subject, predicate and object as texts."""
        return self.subject.label, self.predicate, self.object.label


@dataclass(frozen=True, kw_only=True)
class ImageMatches:
    """What was found in one image; all that recalls need.

    Attributes:
        mode: How it was matched.
        predicates: Of each true triplet; empty for an image without relations, which no mean counts.
        matches: Per prediction, the best first, the true triplets that it finds.
        skipped: There was no answer to score; ``matches`` is empty then.
    """

    mode: Mode
    predicates: tuple[str, ...]
    matches: tuple[tuple[int, ...], ...]
    skipped: bool = False

    def found(self, k: int) -> set[int]:
        """Returns which true triplets the first ``k`` predictions find; each counts once."""
        return {true for one in self.matches[:k] for true in one}


def with_masks(stated: Sequence[StatedTriplet], masks: Sequence[_Mask]) -> list[Triplet]:
    """Puts decoded masks into triplets.

    Args:
        stated: From ``scene_graph_text.read_answer``.
        masks: Two for each, in the order of ``scene_graph_text.words_of``.
    """
    pairs = zip(masks[::2], masks[1::2], strict=True)
    return [
        Triplet(Region(one.subject, first), one.predicate, Region(one.object, second))
        for one, (first, second) in zip(stated, pairs, strict=True)
    ]


def match_image(
    truth: Sequence[Triplet],
    predicted: Sequence[Triplet] | None,
    *,
    mode: Mode = "strict",
    stuff: Collection[str] | None = None,
) -> ImageMatches:
    """Finds the true triplets of an image among the predictions, after repeats were taken out of both.

    Args:
        truth: Of the dataset. A pair of regions may have several predicates.
        predicted: In the order of the text; None if there is no answer (in "official" mode also if it is not
            finished, which ``scene_graph_text.Answer.used`` says).
        mode: Whether objects are merged before.
        stuff: Labels that have no instances (grass, sky); "official" needs them.

    Raises:
        ValueError: If masks differ in size, or "official" mode does not know what is stuff.
    """
    check_mode(mode)
    if mode == "official" and stuff is None:
        raise ValueError("mode 'official' merges the masks of stuff; name its classes by stuff.")
    true = _distinct(truth)
    predicates = tuple(one.predicate for one in true)
    if predicted is None:
        return ImageMatches(mode=mode, predicates=predicates, matches=(), skipped=True)
    ranked = without_repeats(predicted)
    if mode == "official":
        ranked = merged_objects(ranked, stuff or ())
    return ImageMatches(mode=mode, predicates=predicates, matches=matches_of(true, ranked))


def matches_of(truth: Sequence[Triplet], predicted: Sequence[Triplet]) -> tuple[tuple[int, ...], ...]:
    """Returns, for each prediction, the places of the true triplets that it finds; it may be several."""
    return tuple(tuple(place for place, true in enumerate(truth) if _finds(one, true)) for one in predicted)


def without_repeats(predicted: Sequence[Triplet]) -> list[Triplet]:
    """Leaves out a prediction with the labels of an earlier one and nearly its masks."""
    kept: list[Triplet] = []
    for one in predicted:
        if not any(other.labels == one.labels and _least_iou(other, one) > SAME_IOU for other in kept):
            kept.append(one)
    return kept


def merged_objects(predicted: Sequence[Triplet], stuff: Collection[str]) -> list[Triplet]:
    """Gives all mentions of an object one mask, as the public evaluation does.

    Things of one label are one object if their IoU with its first mention, subjects before objects, is above
    0.5; all stuff of one label is one object. The mask is what more than 0.8 of the mentions have, so it is
    nearly their intersection.
    """
    regions = [*(one.subject for one in predicted), *(one.object for one in predicted)]
    merged = list(regions)
    for group in _objects(regions, stuff):
        share = np.mean([regions[place].mask for place in group], axis=0)
        for place in group:
            merged[place] = replace(regions[place], mask=share > MERGED_SHARE)
    count = len(predicted)
    return [
        replace(one, subject=merged[place], object=merged[count + place])
        for place, one in enumerate(predicted)
    ]


def recalls(
    images: Sequence[ImageMatches],
    *,
    predicates: Sequence[str],
    ks: Iterable[int] = (20, 50, 100),
    mode: Mode = "strict",
) -> dict[str, Any]:
    """Returns R@K and mR@K over images.

    R@K is the mean over images of the share of true triplets that the first K predictions find. For mR@K the
    same share of each predicate's triplets is averaged over the images that have it, then over all
    predicates of the list; one that no image has counts 0.

    Args:
        images: From ``match_image``, in any order.
        predicates: The dataset's list, in its order.
        ks: How many predictions count.
        mode: As the images were matched.

    Returns:
        ``recall_K`` and ``mean_recall_K`` for each K, None if no image counts; ``counts``, where ``images``
        is the sum of ``without_relations``, ``skipped``, ``empty`` (answers without a valid triplet) and
        ``scored``. Strict means are over the last three of these, official ones over the last.

    Raises:
        ValueError: If images were matched in another mode, a K is below 1, or predicates repeat or are none.
        DataError: ``unknown_predicate`` if a true one is not in the list.
    """
    check_mode(mode)
    wanted = [image for image in images if image.predicates]
    _check(wanted, predicates, mode)
    used = [image for image in wanted if image.matches] if mode == "official" else wanted
    result: dict[str, Any] = {}
    for k in ks:
        if k < 1:
            raise ValueError(f"K must be at least 1, got {k}.")
        result[f"recall_{k}"] = _mean([len(image.found(k)) / len(image.predicates) for image in used])
        result[f"mean_recall_{k}"] = _mean_recall(used, predicates, k, mode) if used else None
    skipped = sum(image.skipped for image in wanted)
    scored = sum(bool(image.matches) for image in wanted)
    return result | {
        "counts": {
            "images": len(images),
            "without_relations": len(images) - len(wanted),
            "skipped": skipped,
            "empty": len(wanted) - skipped - scored,
            "scored": scored,
        }
    }


def _mean_recall(used: Sequence[ImageMatches], predicates: Sequence[str], k: int, mode: Mode) -> float:
    shares: dict[str, list[float]] = {}
    for image in used:
        found = [image.predicates[place] for place in image.found(k)]
        for predicate in set(image.predicates):
            share = found.count(predicate) / image.predicates.count(predicate)
            shares.setdefault(predicate, []).append(share)
    counted = predicates[1:] if mode == "official" else predicates
    return fsum(_mean(shares.get(predicate, [])) or 0.0 for predicate in counted) / len(predicates)


def _check(images: Sequence[ImageMatches], predicates: Sequence[str], mode: Mode) -> None:
    if not predicates or len(set(predicates)) != len(predicates):
        raise ValueError(f"predicates must be different, and at least one; got {list(predicates)!r:.200}.")
    for image in images:
        if image.mode != mode:
            raise ValueError(f"an image was matched in mode {image.mode!r}, the recalls are {mode!r}.")
        if unknown := set(image.predicates) - set(predicates):
            raise DataError(
                f"a true triplet has the predicate {min(unknown)!r}, which is not among the "
                f"{len(predicates)} of the list.",
                reason="unknown_predicate",
            )


def _distinct(truth: Sequence[Triplet]) -> list[Triplet]:
    """Leaves out true triplets that are there twice: the same labels and the same masks."""
    kept: list[Triplet] = []
    for one in truth:
        if not any(other.labels == one.labels and _has_masks_of(other, one) for other in kept):
            kept.append(one)
    return kept


def _has_masks_of(a: Triplet, b: Triplet) -> bool:
    return np.array_equal(a.subject.mask, b.subject.mask) and np.array_equal(a.object.mask, b.object.mask)


def _finds(predicted: Triplet, true: Triplet) -> bool:
    return predicted.labels == true.labels and _least_iou(predicted, true) >= MATCH_IOU


def _least_iou(a: Triplet, b: Triplet) -> float:
    return min(_iou(a.subject.mask, b.subject.mask), _iou(a.object.mask, b.object.mask))


def _iou(a: _Mask, b: _Mask) -> float:
    """Unlike ``samtok.masks.iou``, two empty masks have nothing in common here."""
    if a.shape != b.shape:
        raise ValueError(f"masks must have the same size, got {a.shape} and {b.shape}.")
    either = int(np.count_nonzero(a | b))
    return int(np.count_nonzero(a & b)) / either if either else 0.0


def _objects(regions: Sequence[Region], stuff: Collection[str]) -> Iterator[list[int]]:
    """Returns the places of the mentions of each object; every place is in one of them."""
    by_label: dict[str, list[int]] = {}
    for place, region in enumerate(regions):
        by_label.setdefault(region.label, []).append(place)
    for label, places in by_label.items():
        if label in stuff:
            yield places
            continue
        while places:
            first, others = regions[places[0]].mask, places[1:]
            same = [place for place in others if _iou(first, regions[place].mask) > SAME_IOU]
            yield [places[0], *same]
            places = [place for place in others if place not in same]


def _mean(values: Sequence[float]) -> float | None:
    """Exact before it is rounded, so that the order of images does not matter."""
    return fsum(values) / len(values) if values else None
