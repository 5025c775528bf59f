"""COCO's average precision of instance masks, computed by pycocotools.

Masks are compressed COCO counts (``samtok.masks``), which are checked before pycocotools reads them. Where
scores are equal, COCO ranks by image id and then by the order of the masks of an image, so AP depends on that
order; ids that are strings are sorted as strings.
"""

import contextlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from jaxtyping import Float
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from samtok import masks
from samtok.errors import DataError

Id = str | int

AREAS = ("all", "small", "medium", "large")
"""COCO's groups of true masks, as in pycocotools: all, under 32 x 32 pixels, under 96 x 96, the others."""

MAX_DETECTIONS = 100
"""Masks of one class and image that are looked at, those with the highest scores (COCO)."""


@dataclass(frozen=True, kw_only=True)
class Instance:
    """A mask with its class.

    Attributes:
        counts: Compressed COCO counts, of the size of the image.
        category: Of one type throughout; has no meaning where AP is class-agnostic.
        score: Of a predicted mask; the higher, the earlier it is counted.
        crowd: A true mask of many objects: what lies in it is neither right nor wrong.
        area_px: Of a true mask, as the dataset states it, which decides its group of ``AREAS``; None counts
            pixels.
    """

    counts: str
    category: Id = 1
    score: float = 1.0
    crowd: bool = False
    area_px: float | None = None


@dataclass(frozen=True, kw_only=True)
class DetectionSample:
    """The true and the predicted masks of one image; ``height`` and ``width`` in pixels."""

    image_id: Id
    height: int
    width: int
    truth: tuple[Instance, ...]
    predicted: tuple[Instance, ...]


def average_precision(
    samples: Sequence[DetectionSample],
    *,
    class_agnostic: bool = False,
    max_detections: int = MAX_DETECTIONS,
) -> dict[str, Any]:
    """Returns COCO's AP of masks, in [0, 1]; nothing predicted gives 0.

    Args:
        samples: Images, with ids of one type.
        class_agnostic: All masks are of one class; else AP is the mean over classes that have true masks.

    Returns:
        ``ap``, the mean over IoUs from 0.5 to 0.95; ``ap50`` and ``ap75``; ``ap_small``, ``ap_medium`` and
        ``ap_large``; each None where no true mask is counted. ``targets``, ``crowd`` and ``predicted`` count
        masks.

    Raises:
        DataError: ``duplicate_image`` if two samples have the same id; what ``masks.parse_counts`` raises.
    """
    truth, predicted, categories = _annotations(samples, class_agnostic)
    precision = _precision(samples, truth, predicted, categories, max_detections)
    mean = {area: _mean(precision[..., place]) for place, area in enumerate(AREAS)}
    crowd = sum(annotation["iscrowd"] for annotation in truth)
    return {
        "ap": mean["all"],
        "ap50": _mean(precision[0, ..., 0]),
        "ap75": _mean(precision[5, ..., 0]),
        **{f"ap_{area}": mean[area] for area in AREAS[1:]},
        "targets": len(truth) - crowd,
        "crowd": crowd,
        "predicted": len(predicted),
    }


def _annotations(
    samples: Sequence[DetectionSample], class_agnostic: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[int]]:
    """Returns true and predicted masks as COCO's files have them, and the numbers of the classes."""
    image_numbers = {name: number for number, name in enumerate(_sorted(s.image_id for s in samples), 1)}
    if len(image_numbers) < len(samples):
        ((twice, times),) = Counter(sample.image_id for sample in samples).most_common(1)
        raise DataError(f"image {twice!r} is there {times} times, expected once.", reason="duplicate_image")
    names = {one.category for sample in samples for one in (*sample.truth, *sample.predicted)}
    class_numbers = dict.fromkeys(names, 1)
    if not class_agnostic:
        class_numbers = {name: number for number, name in enumerate(_sorted(names), 1)}
    truth: list[dict[str, Any]] = []
    predicted: list[dict[str, Any]] = []
    for sample in samples:
        for of_sample, found in ((sample.truth, truth), (sample.predicted, predicted)):
            for one in of_sample:
                place = {"id": len(found) + 1, "image_id": image_numbers[sample.image_id]}
                found.append(place | _annotation(one, class_numbers[one.category], sample))
    return truth, predicted, sorted(set(class_numbers.values()))


def _sorted(names: Iterable[Id]) -> list[Any]:
    try:
        return sorted(cast(Any, names))
    except TypeError as error:
        raise ValueError(f"ids and classes must be of one type each: {error}.") from error


def _annotation(one: Instance, category: int, sample: DetectionSample) -> dict[str, Any]:
    area = masks.area(one.counts, height=sample.height, width=sample.width)
    return {
        "category_id": category,
        "segmentation": {"size": [sample.height, sample.width], "counts": one.counts},
        "area": area if one.area_px is None else one.area_px,
        "iscrowd": int(one.crowd),
        "score": one.score,
    }


def _precision(
    samples: Sequence[DetectionSample],
    truth: list[dict[str, Any]],
    predicted: list[dict[str, Any]],
    categories: list[int],
    max_detections: int,
) -> Float[np.ndarray, "iou recall category area"]:
    """Returns precision at each IoU and recall, -1 where there is no true mask."""
    images = [
        {"id": number, "height": sample.height, "width": sample.width}
        for number, sample in enumerate(sorted(samples, key=lambda sample: sample.image_id), 1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells its progress
        run = COCOeval(_dataset(images, truth, categories), _dataset(images, predicted, categories), "segm")
        run.params.maxDets = [max_detections]
        run.evaluate()
        run.accumulate()
    return run.eval["precision"][..., 0]


def _dataset(images: list[Any], annotations: list[dict[str, Any]], categories: list[int]) -> COCO:
    data: Any = COCO()
    data.dataset = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": category} for category in categories],
    }
    data.createIndex()
    return data


def _mean(precision: np.ndarray) -> float | None:
    counted = precision[precision > -1]
    return float(counted.mean()) if counted.size else None
