"""Numbers of all instances of a class: COCO's AP, each question as an image of its own with one class."""

from collections.abc import Sequence
from typing import Any

from pipelines.mllm_evaluation.answers import Numbers, Row, Scoring, is_answered, name_of, with_lost
from pipelines.mllm_evaluation.of_masks import samples_of
from samtok.metrics import referring
from samtok.metrics.detection import DetectionSample, Instance, average_precision
from samtok.metrics.referring import Mode


def instances(rows: Sequence[Row], mode: Mode, scoring: Scoring) -> Numbers:
    """Returns AP, and the IoU of the union of each answer's masks. Masks have no scores, so AP ranks them by
    the order of questions and of the text. Lost questions count as such without an answer."""
    counted = [row for row in rows if mode == "strict" or is_answered(row, mode)]
    found = average_precision([_sample(row, mode) for row in counted], class_agnostic=True)
    scaled = with_lost(found, len(rows), len(scoring.lost))
    return {
        "instances": scaled,
        "targets": referring.targets(samples_of(rows, mode, scoring.lost), mode=mode),
    }


def _sample(row: Row, mode: Mode) -> DetectionSample:
    size: dict[str, Any] = {"height": row["height"], "width": row["width"]}
    known = {tuple(one["codes"]): one["rle"] for one in row[mode]["masks"]} if is_answered(row, mode) else {}
    said = [tuple(codes) for codes in row[mode]["codes"]] if known else []
    return DetectionSample(
        image_id=name_of(row),
        **size,
        truth=tuple(Instance(counts=mask["rle"]) for mask in row["truth_masks"]),
        predicted=tuple(Instance(counts=known[codes]) for codes in said),
    )
