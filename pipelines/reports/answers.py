"""Answers in mask words as pictures: the true masks, those of one answer or of several, where they differ.

Rows are those of a table of answers: image, question, ``truth_rle`` and, per mode of scoring, a prediction
with ``rle`` and pixel counts.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.reports.pictures import compared, image_of
from samtok import masks
from samtok.errors import DataError, StorageError
from samtok.plots import pictures as viz

SIDE = 240
"""Pixels of the longer side of a picture."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Drawn:
    """One answer with its pictures as (caption, JPEG), or what was wrong with the image."""

    row: Row
    iou: float | None
    pictures: Sequence[tuple[str, bytes]]
    panel: viz.Panel | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Beside:
    """Answers of several runs to one question, by the names of the runs.

    ``pictures`` are the truth, then a difference per run in the order of ``rows``; they are (caption, JPEG).
    """

    rows: Mapping[str, Row]
    pictures: Sequence[tuple[str, bytes]]
    problem: str | None = None


def iou_of(row: Row, mode: str = "strict") -> float | None:
    """Returns the IoU of an answer: 1 for a right "no target", None if it was not asked."""
    found = row[mode]
    if found is None:
        return None
    union = found["predicted_px"] + row["target_px"] - found["intersection_px"]
    return found["intersection_px"] / union if union else 1.0


def is_text(row: Row) -> bool:
    """Returns whether an answer is text alone: none of its masks counts, true or predicted."""
    return not row["target_px"] and not (row["strict"] or {}).get("predicted_px")


def likeness(row: Row) -> float:
    """Returns how near an answer is to the truth, in [0, 1]: the IoU of a target; else the share of words
    that both texts have (F1)."""
    if row["target_px"]:
        return iou_of(row) or 0.0
    truth, answer = (Counter((row[name] or "").lower().split()) for name in ("truth", "generated"))
    total = truth.total() + answer.total()
    return 2 * (truth & answer).total() / total if total else 1.0


def draw(row: Row) -> Drawn:
    """Makes the pictures of one answer; an image that is gone or broken by now says so."""
    iou = iou_of(row)
    try:
        image = _image(row)
    except (DataError, StorageError) as error:
        return Drawn(row, iou, (), problem=str(error))
    small, asked = viz.fit(image, SIDE), row["asked_rle"]
    region = [] if asked is None else [_mask(row, asked)]
    pictures = compared(small, region, None, viz.mask_colours(2)[1:], ("asked about", "")) if region else []
    if region and is_text(row):
        texts = [f"truth: {row['truth']}", f"answer: {row['generated']}"]
        return Drawn(row, iou, pictures, viz.Panel(small, region, captions=texts, title=row["key"]))
    truth, predicted = [_truth(row)], [_predicted(row, "strict")]
    pictures += compared(small, truth, predicted, viz.mask_colours(1), ("truth", "answer"))
    caption = f"IoU {iou or 0.0:.2f}" if row["target_px"] else "no target"
    return Drawn(row, iou, pictures, viz.Panel(small, truth, predicted, captions=[caption], title=row["key"]))


def draw_beside(rows: Mapping[str, Row], mode: str = "strict") -> Beside:
    """Makes the pictures of answers to one question; one that could not be asked has no mask."""
    one = next(iter(rows.values()))
    try:
        small = viz.fit(_image(one), SIDE)
    except (DataError, StorageError) as error:
        return Beside(rows, (), problem=str(error))
    truth = _truth(one)
    pictures = [("truth", viz.overlay(small, [truth], viz.mask_colours(1), 0.35))]
    for name, row in rows.items():
        pictures.append((name, viz.difference(truth, _predicted(row, mode), small)))
    return Beside(rows, [(name, viz.jpeg_bytes(picture)) for name, picture in pictures])


def _image(row: Row) -> np.ndarray:
    return image_of(row["image_uri"], height=row["height"], width=row["width"])


def _truth(row: Row) -> np.ndarray:
    return _mask(row, row["truth_rle"])


def _predicted(row: Row, mode: str) -> np.ndarray:
    return _mask(row, None if row[mode] is None else row[mode]["rle"])


def _mask(row: Row, rle: str | None) -> np.ndarray:
    size = {"height": row["height"], "width": row["width"]}
    whole = np.zeros((row["height"], row["width"]), bool) if rle is None else masks.decode(rle, **size)
    return viz.fit_mask(whole, SIDE)
