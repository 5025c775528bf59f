"""Numbers of benchmarks whose answers are masks that are joined: GRES, RES, REC, GroundingSuite, rounds.

Beside the benchmark's own section stand ``targets``, the mean IoU of questions with a target, and ``words``,
which are compared without being decoded.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipelines.chats.lost import NOTHING_LOST, LostQuestions
from pipelines.mllm_evaluation.answers import Numbers, Row, Scoring, is_answered, unusable, used, with_lost
from samtok.metrics import grounding_suite as suite
from samtok.metrics import referring
from samtok.metrics.averages import G_ACC_DATASETS, g_acc, mean_ciou
from samtok.metrics.referring import Mode, Samples
from samtok.metrics.rounds import multi_round
from samtok.metrics.text_masks import Codes, word_scores

_NOTHING = {"intersection_px": 0, "predicted_px": 0, "box_xyxy": None}


def gres(rows: Sequence[Row], mode: Mode, scoring: Scoring) -> Numbers:
    """Returns those of generalised referring segmentation."""
    samples = samples_of(rows, mode, scoring.lost)
    found = referring.gres(samples, mode=mode, min_pixels=scoring.min_pixels)
    return {"gres": found, **_always(samples, rows, mode, scoring)}


def res(rows: Sequence[Row], mode: Mode, scoring: Scoring) -> Numbers:
    """Returns those of referring segmentation, and means over data sets if there are several; lost questions,
    whose data set is not known, are not in these."""
    samples = samples_of(rows, mode, scoring.lost)
    found = {"res": referring.res(samples, mode=mode), "averages": _averages(rows, mode)}
    return {**found, **_always(samples, rows, mode, scoring)}


def _averages(rows: Sequence[Row], mode: Mode) -> dict[str, float | None]:
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row["dataset"], []).append(row)
    if len(by_name) < 2:
        return {}
    found = {name: referring.res(samples_of(some, mode), mode=mode) for name, some in by_name.items()}
    averages = {"mean_ciou_of_data_sets": mean_ciou(found)}
    return averages | ({"g_acc": g_acc(found)} if set(found) == set(G_ACC_DATASETS) else {})


def rec(rows: Sequence[Row], mode: Mode, scoring: Scoring) -> Numbers:
    """Returns those of boxes."""
    samples = samples_of(rows, mode, scoring.lost)
    return {"rec": referring.rec(samples, mode=mode), **_always(samples, rows, mode, scoring)}


def grounding_suite(rows: Sequence[Row], mode: Mode, scoring: Scoring) -> Numbers:
    """Returns gIoU, and that of each kind of target; a sample whose tags do not say its kind counts as one
    that scores 0, and in ``without_kind``. Beside it the accuracy of boxes, over samples with an annotated
    one."""
    kinds = {place: kind for place, row in enumerate(rows) if (kind := _kind_of(row)) is not None}
    known = [rows[place] for place in kinds]
    means = suite.giou(samples_of(known, mode), list(kinds.values()), mode=mode)["giou"]
    tags = f"one of the tags {', '.join(suite.CLASSES.values())} of GroundingSuite-Eval"
    unknown = unusable(rows, known, mode, scoring, what=tags)
    found = with_lost({"giou": means.pop(suite.ALL)}, len(known), unknown + len(scoring.lost))
    found |= {f"giou_{kind.removesuffix('-object')}": value for kind, value in means.items()}
    samples = samples_of(rows, mode, scoring.lost)
    counts = {"without_kind": len(rows) - len(known)}
    boxes = _box_accuracy(known, list(kinds.values()), mode)
    return {"groundingsuite": found, "boxes": boxes, "kinds": counts, **_always(samples, rows, mode, scoring)}


def _box_accuracy(rows: Sequence[Row], kinds: Sequence[str], mode: Mode) -> dict[str, Any]:
    boxes = [json.loads(row["about"] or "{}").get("box_xyxy") for row in rows]
    there = [place for place, box in enumerate(boxes) if box is not None]
    annotated = np.array([boxes[place] for place in there], np.float64).reshape(-1, 4)
    samples = replace(samples_of([rows[place] for place in there], mode), annotated_box=annotated)
    found = suite.box_accuracy(samples, [kinds[place] for place in there], mode=mode)["accuracy"]
    return {
        "accuracy": found.pop(suite.ALL),
        **{f"accuracy_{kind.removesuffix('-object')}": value for kind, value in found.items()},
        "samples": len(there),
    }


def _kind_of(row: Row) -> str | None:
    return next((tag for tag in row["tags"] if tag in suite.CLASSES.values()), None)


def rounds(rows: Sequence[Row], mode: Mode, scoring: Scoring) -> Numbers:
    """Returns those of questions in several rounds, by round; lost questions, whose round is not known, are
    in the numbers of all."""
    samples = samples_of(rows, mode)
    found = multi_round(
        samples,
        [row["round"] for row in rows],
        [row["dataset"] for row in rows],
        history="gt" if scoring.history == "true" else "predicted",
        mode=mode,
    )
    average = {number: one or {} for number, one in found["average"].items()}
    by_round = {f"ciou_round_{number}": one.get("ciou_cumulative") for number, one in average.items()}
    return {"rounds": by_round, "multi_round": found, **res(rows, mode, scoring)}


def with_words(*own: tuple[str | None, str, str]) -> tuple[tuple[str | None, str, str], ...]:
    """Returns the headlines of a benchmark between those that all of these have."""
    return (
        ("IoU of targets", "targets", "mean_iou"),
        *own,
        ("exact words", "words", "exact_match"),
        ("exact words of targets", "words", "target_exact_match"),
        ("first code of targets", "words", "target_first_code"),
    )


def samples_of(rows: Sequence[Row], mode: Mode, lost: LostQuestions = NOTHING_LOST) -> Samples:
    """Returns answers as the metrics take them; questions without an answer, and lost ones behind all
    others, are skipped samples."""
    there = [is_answered(row, mode) for row in rows]
    predicted = [row[mode] if answered else _NOTHING for row, answered in zip(rows, there, strict=True)]
    samples = Samples(
        intersection_px=np.array([one["intersection_px"] for one in predicted], np.int64),
        predicted_px=np.array([one["predicted_px"] for one in predicted], np.int64),
        target_px=np.array([row["target_px"] for row in rows], np.int64),
        predicted_box=_boxes([one["box_xyxy"] for one in predicted]),
        target_box=_boxes([row["target_box_xyxy"] for row in rows]),
        skipped=~np.array(there, bool),
        keys=tuple(row["key"] for row in rows),
    )
    return _with_lost(samples, lost) if len(lost) else samples


def _with_lost(samples: Samples, lost: LostQuestions) -> Samples:
    """Adds lost questions; only the sum of their pixels is known, so one of them has what the others lack."""
    number = len(lost)
    target_px = np.zeros(number, np.int64)
    target_px[: lost.targets] = 1
    if lost.targets:
        target_px[0] += lost.px - lost.targets
    nothing = np.zeros(number, np.int64)
    return replace(
        samples,
        intersection_px=np.concatenate([samples.intersection_px, nothing]),
        predicted_px=np.concatenate([samples.predicted_px, nothing]),
        target_px=np.concatenate([samples.target_px, target_px]),
        predicted_box=np.concatenate([samples.predicted_box, np.zeros((number, 4), np.int64)]),
        target_box=np.concatenate([samples.target_box, np.zeros((number, 4), np.int64)]),
        skipped=np.concatenate([samples.skipped, np.ones(number, bool)]),
        keys=(*samples.keys, *(f"lost question {place}" for place in range(number))),
    )


def _always(samples: Samples, rows: Sequence[Row], mode: Mode, scoring: Scoring) -> Numbers:
    """Returns the sections that all of these benchmarks have; the samples are those of the rows."""
    targets = referring.targets(samples, mode=mode)
    return {"targets": targets, "words": words(rows, mode, scoring.lost)}


def words(rows: Sequence[Row], mode: Mode, lost: LostQuestions) -> dict[str, Any]:
    """Compares the words of answers with true ones; lost questions are wrong in "strict"."""
    counted = used(rows, mode)
    truth = [_codes(row["truth_codes"]) for row in counted]
    predicted = [_codes(row[mode]["codes"]) if is_answered(row, mode) else None for row in counted]
    if mode == "strict":
        unknown: list[Codes] = [()]  # never equal to a word, since words have codes
        truth += [*([unknown] * lost.targets), *([[]] * lost.none)]
        predicted += [None] * len(lost)
    return word_scores(truth, predicted)


def _codes(codes: Sequence[Sequence[int]]) -> list[Codes]:
    return [tuple(word) for word in codes]


def _boxes(boxes: Sequence[Sequence[int] | None]) -> np.ndarray:
    return np.array([box or (0, 0, 0, 0) for box in boxes], np.int64).reshape(len(boxes), 4)
