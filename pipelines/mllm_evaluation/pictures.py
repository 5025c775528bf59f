"""Pictures of answers: the image, what was meant, what was answered, and the difference."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.ingestion.image_source import read_image_bytes
from samtok import images, masks
from samtok.errors import DataError, StorageError
from samtok.plots import pictures as viz

SIDE = 240
_ALPHA = 0.4
_TRUTH, _PREDICTED = viz.mask_colours(2)


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
    """Reads whole rows of answers by their place in the evaluation; only their files are read."""
    wanted, found, start = sorted(set(places)), {}, 0
    for record in manifest["shards"]:
        count = record["counts"]["samples_in"]
        inside = [place for place in wanted if start <= place < start + count]
        if inside:
            with storage.open_input(storage.join(out, record["data"]["file"])) as file:
                table = pq.ParquetFile(file).read()
            part = table.take(pa.array([place - start for place in inside])).to_pylist()
            found |= dict(zip(inside, part, strict=True))
        start += count
    return found


def draw(row: Mapping[str, Any]) -> Drawn:
    """Makes the pictures of one answer; an image that is gone or broken by now says so."""
    uri, size = row["image_uri"], {"height": row["height"], "width": row["width"]}
    try:
        image = images.decode_image(
            read_image_bytes(uri), where=uri, expected_hw=(size["height"], size["width"])
        )
    except (DataError, StorageError) as error:
        return Drawn(row, iou_of(row), (), problem=str(error))
    nothing = np.zeros(image.shape[:2], bool)
    truth = nothing if row["truth_rle"] is None else masks.decode(row["truth_rle"], **size)
    predicted = masks.decode(row["strict"]["rle"], **size)
    small = viz.fit(image, SIDE)
    first, second = viz.fit_mask(truth, SIDE), viz.fit_mask(predicted, SIDE)
    made = [
        ("truth", viz.overlay(small, [first], [_TRUTH], _ALPHA)),
        ("answer", viz.overlay(small, [second], [_PREDICTED], _ALPHA)),
        ("difference", viz.difference(first, second, small)),
    ]
    iou = iou_of(row)
    caption = f"IoU {iou or 0.0:.2f}" if row["target_px"] else "no target"
    panel = viz.Panel(small, [first], [second], captions=[caption], title=row["key"])
    return Drawn(row, iou, [(name, viz.jpeg_bytes(picture)) for name, picture in made], panel)
