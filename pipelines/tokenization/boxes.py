"""What SAM2 predicts for boxes and points without masks (``box_masks``), and how it gets into rows.

Masks whose score is high enough get the flag ``from_prompt``; the others are filtered. Loads no torch.
"""

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipelines import schema
from pipelines.ingestion.reader import PROMPTS
from pipelines.rejects import FILTER

COLUMN = "predicted"
"""Of a chunk: JSON of image key -> mask id -> counts (None for a mask without pixels) and score."""

LOW_SCORE = "low_score"

Predicted = Mapping[str, tuple[str | None, float]]


def prompt_of(mask: Mapping[str, Any]) -> str | None:
    """Returns the flag of a mask that has only a box or a point; None for another."""
    return next((flag for flag in PROMPTS if flag in mask["flags"]), None)


def masks_in(batch: pa.Table) -> dict[str, Predicted]:
    """Returns what was predicted for the images of a chunk, by their keys."""
    if COLUMN not in batch.column_names:
        return {}
    return json.loads(batch[COLUMN][0].as_py())


def with_masks(
    row: dict[str, Any], predicted: Predicted, rejects: list[dict[str, Any]], min_score: float
) -> dict[str, Any]:
    """Puts predicted masks in a row; what has too low a score is left out, and a reject of the filter."""
    kept = []
    for mask in row["masks"]:
        if mask["mask_id"] not in predicted:
            kept.append(mask)
            continue
        counts, score = predicted[mask["mask_id"]]
        others = [flag for flag in mask["flags"] if flag not in PROMPTS]
        if score >= min_score and counts is not None:
            flags = [*others, schema.FROM_PROMPT]
            kept.append({**mask, "rle": counts, "box_xyxy": None, "flags": flags})
            continue
        which = f"mask {mask['mask_id']} of image {row['image_id']}"
        message = f"{which} was predicted with a score of {score:.2f}"
        if counts is None:
            message += " and has no pixels"
        message += f"; --boxes.min-score of tokenize_corpus is {min_score:g}"
        name = (FILTER, row["dataset"], row["image_id"], LOW_SCORE, message)
        rejects.append(schema.reject(*name, mask_id=mask["mask_id"], num_masks=1))
    return {**row, "masks": kept}
