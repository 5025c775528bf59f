"""GroundingSuite-Eval (the paper's Table 5): gIoU of masks and accuracy of boxes, by kind of target.

A sample is of one of four kinds, which its ``class_id`` says. The public file has 1,011 samples of stuff, 455
of parts, 769 of several objects and 1,480 of a single one. Source: github.com/hustvl/GroundingSuite,
evaluate_grounding.py, with ``--mode mask`` and ``--mode box``.

"strict" counts a sample without a prediction that can be decoded, a skipped one of
``samtok.metrics.referring.Samples``, as 0 or as a miss. "official" leaves it out, as the public script does,
but for one place: accuracies of single kinds are over all samples of the kind, so it is a miss in these and
left out of the one over all kinds. All results are shares in [0, 1], or None. Loads numpy only.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from samtok.errors import DataError
from samtok.metrics import referring
from samtok.metrics.referring import Mode, Samples

CLASSES = {1: "stuff", 2: "part", 3: "multi-object", 4: "single-object"}
"""Kinds of targets by ``class_id``; the file has numbers only, the names are those of its README's table."""

ALL = "all"
"""Name of the result over all samples, beside those of ``CLASSES``."""

Box = tuple[float, float, float, float]


def giou(samples: Samples, class_ids: Sequence[int | str], *, mode: Mode = "strict") -> dict[str, Any]:
    """Returns the mean IoU of masks over all samples and over those of each kind.

    Two empty masks have the IoU 0, as in the public script; its file has no empty ones.

    Args:
        samples: One for each row of the file; one without a prediction, or with one that cannot be decoded,
            is skipped.
        class_ids: The kind of each, a number or a name of ``CLASSES``.
        mode: Whether skipped samples count as 0.

    Returns:
        ``giou`` and ``counts``, each with a value for ``all`` and for every name of ``CLASSES``; counts are
        those of ``referring.counts``.

    Raises:
        ValueError: If there is not one class for each sample.
        DataError: ``class_id`` for one that is unknown.
    """
    referring.check_mode(mode)
    ious = samples.intersection_px / np.maximum(samples.union_px, 1)  # 0 where it is skipped
    groups = _groups(samples, class_ids)
    used = ~samples.skipped if mode == "official" else np.ones(len(samples), bool)
    return {
        "giou": {name: _mean(ious[inside & used]) for name, inside in groups.items()},
        "counts": _counts(samples, groups),
    }


def box_accuracy(
    samples: Samples,
    class_ids: Sequence[int | str],
    *,
    predicted: Sequence[Box | None] | None = None,
    mode: Mode = "strict",
    least_iou: float = referring.HIT_IOU,
) -> dict[str, Any]:
    """Returns the share of samples whose box has at least an IoU with the annotated one.

    Args:
        samples: With annotated boxes, which are not rounded.
        class_ids: As ``giou`` takes them.
        predicted: Boxes as a model or a file states them, x0, y0, x1, y1 in pixels; None stands for none,
            which is a miss. Without them a prediction's box is that of its mask: in strict mode with its last
            row and column, as annotated boxes have them, in "official" mode without.
        mode: See the head of this module.
        least_iou: A hit's, itself included.

    Returns:
        ``accuracy`` and ``counts``, as ``giou`` returns them.

    Raises:
        ValueError: If there is not one class, and one box or None, for each sample, or no annotated boxes.
        DataError: ``class_id`` for one that is unknown.
    """
    referring.check_mode(mode)
    if samples.annotated_box is None:
        raise ValueError("these samples have no annotated boxes to compare with.")
    boxes, there = _boxes_of_masks(samples, mode) if predicted is None else _stated(predicted, len(samples))
    ious = referring.box_iou(boxes, samples.annotated_box.astype(np.float64), plus_one=False)
    hits = ((ious >= least_iou) & there & ~samples.skipped).astype(np.float64)
    groups = _groups(samples, class_ids)
    accuracy = {name: _mean(hits[inside]) for name, inside in groups.items()}
    if mode == "official":
        accuracy[ALL] = _mean(hits[~samples.skipped])
    return {"accuracy": accuracy, "counts": _counts(samples, groups)}


def read_box(value: object) -> Box | None:
    """Reads the box of a line of predictions; None for none.

    The authors' script writes ``[[x0, y0, x1, y1]]``, at which the public evaluator stops; it is read like
    the list inside.

    Raises:
        DataError: ``box`` for anything but four finite numbers.
    """
    if value is None or value == []:
        return None
    inside = value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
    if isinstance(inside, list | tuple) and len(inside) == 4 and all(map(_is_number, inside)):
        x0, y0, x1, y1 = map(float, inside)
        return x0, y0, x1, y1
    raise DataError(
        f"a predicted box is {value!r:.100}, expected four finite numbers x0, y0, x1, y1.", reason="box"
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _boxes_of_masks(
    samples: Samples, mode: Mode
) -> tuple[Float[np.ndarray, "sample 4"], Bool[np.ndarray, " sample"]]:
    last: Literal[0, 1] = 1 if mode == "strict" else 0
    boxes = samples.predicted_box.astype(np.float64) + np.array([0, 0, last, last])
    return boxes, samples.predicted_px > 0


def _stated(
    predicted: Sequence[Box | None], count: int
) -> tuple[Float[np.ndarray, "sample 4"], Bool[np.ndarray, " sample"]]:
    if len(predicted) != count:
        raise ValueError(f"there must be a box or None for each of {count} samples, got {len(predicted)}.")
    boxes = [(0.0, 0.0, 0.0, 0.0) if box is None else box for box in predicted]
    there = [box is not None for box in predicted]
    return np.array(boxes, np.float64).reshape(count, 4), np.array(there, bool)


def _groups(samples: Samples, class_ids: Sequence[int | str]) -> dict[str, Bool[np.ndarray, " sample"]]:
    if len(class_ids) != len(samples):
        raise ValueError(f"there must be a class for each of {len(samples)} samples, got {len(class_ids)}.")
    numbers = _numbers(class_ids)
    return {
        ALL: np.ones(len(samples), bool),
        **{name: numbers == number for number, name in CLASSES.items()},
    }


def _numbers(class_ids: Sequence[int | str]) -> Int[np.ndarray, " sample"]:
    known: dict[int | str, int] = {name: number for number, name in CLASSES.items()}
    known |= {number: number for number in CLASSES}
    unknown = [one for one in class_ids if one not in known]
    if unknown:
        expected = ", ".join(f"{number} ({name})" for number, name in CLASSES.items())
        raise DataError(f"class_id {unknown[0]!r} is unknown, expected {expected}.", reason="class_id")
    return np.array([known[one] for one in class_ids], np.int64)


def _counts(samples: Samples, groups: dict[str, Bool[np.ndarray, " sample"]]) -> dict[str, dict[str, int]]:
    return {name: referring.counts(samples.take(inside)) for name, inside in groups.items()}


def _mean(values: Float[np.ndarray, " sample"]) -> float | None:
    return float(values.mean()) if len(values) else None
