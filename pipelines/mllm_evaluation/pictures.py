"""Pictures of answers: the image, what was meant, what was answered, and the difference."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.reports import pictures as report_pictures
from pipelines.reports.pictures import compared, image_of
from samtok import masks
from samtok.errors import DataError, StorageError
from samtok.plots import pictures as viz

SIDE = 240


@dataclass(frozen=True)
class Drawn:
    """One answer with its pictures as (caption, JPEG), or what was wrong with the image."""

    row: Mapping[str, Any]
    iou: float | None
    pictures: Sequence[tuple[str, bytes]]
    panel: viz.Panel | None = None
    problem: str | None = None


def choose(rows: Sequence[Mapping[str, Any]], count: int, rng: np.random.Generator) -> dict[str, list[int]]:
    """Returns which answers to draw, by their place: the best and the worst of a target, and random ones.

    Best and worst are by IoU in strict mode; ties are broken at random, so they are not all of one image.
    """
    asked = [place for place, row in enumerate(rows) if row["problem"] is None]
    of_target = [place for place in rng.permutation(asked).tolist() if rows[place]["target_px"]]
    ranked = sorted(of_target, key=lambda place: iou_of(rows[place]) or 0.0)
    worst = ranked[: min(count, (len(ranked) + 1) // 2)]
    best = ranked[::-1][: min(count, len(ranked) // 2)]
    drawn = rng.choice(asked, min(count, len(asked)), replace=False).tolist() if asked else []
    return {"best": best, "worst": worst, "random": sorted(drawn)}


def iou_of(row: Mapping[str, Any]) -> float | None:
    """Returns the IoU of an answer in strict mode: 1 for a right "no target", None if it was not asked."""
    found = row["strict"]
    if found is None:
        return None
    union = found["predicted_px"] + row["target_px"] - found["intersection_px"]
    return found["intersection_px"] / union if union else 1.0


def rows_at(out: str, manifest: Mapping[str, Any], places: Iterable[int]) -> dict[int, dict[str, Any]]:
    """Reads whole rows of answers by their place in the evaluation."""
    wanted = sorted(set(places))
    found = report_pictures.rows_at(
        out, manifest["shards"], np.array(wanted, int), count="samples_in", columns=None
    )
    return dict(zip(wanted, found, strict=True))


def draw(row: Mapping[str, Any]) -> Drawn:
    """Makes the pictures of one answer; an image that is gone or broken by now says so."""
    size = {"height": row["height"], "width": row["width"]}
    iou = iou_of(row)
    try:
        image = image_of(row["image_uri"], **size)
    except (DataError, StorageError) as error:
        return Drawn(row, iou, (), problem=str(error))
    small, nothing = viz.fit(image, SIDE), np.zeros(image.shape[:2], bool)
    truth, predicted = (
        [viz.fit_mask(nothing if rle is None else masks.decode(rle, **size), SIDE)]
        for rle in (row["truth_rle"], row["strict"]["rle"])
    )
    pictures = compared(small, truth, predicted, viz.mask_colours(1), ("truth", "answer"))
    caption = f"IoU {iou or 0.0:.2f}" if row["target_px"] else "no target"
    return Drawn(row, iou, pictures, viz.Panel(small, truth, predicted, captions=[caption], title=row["key"]))
