"""Numbers of benchmarks whose answers are masks that are joined: GRES, RES, REC, GroundingSuite, rounds.

Beside the benchmark's own section stand ``targets``, the mean IoU of questions with a target, and ``words``,
which are compared without being decoded.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipelines.chats.lost import NOTHING_LOST, LostQuestions
from pipelines.mllm_evaluation.answers import Numbers, Row, Scoring, is_answered, used
from samtok.errors import DataError
from samtok.metrics import grounding_suite as suite
from samtok.metrics import referring
from samtok.metrics.referring import Mode, Samples
from samtok.metrics.rounds import multi_round
from samtok.metrics.text_masks import Codes, word_scores

_NOTHING = {"intersection_px": 0, "predicted_px": 0, "box_xyxy": None}


def gres(rows: Sequence[Row], mode: Mode, scoring: Scoring) -> Numbers:
    """Returns those of generalised referring segmentation."""
    return _sections("gres", lambda s: referring.gres(s, mode=mode, min_pixels=scoring.min_pixels))(
        rows, mode, scoring
    )


def res(rows: Sequence[Row], mode: Mode, scoring: Scoring) -> Numbers:
    """Returns those of referring segmentation."""
    return _sections("res", lambda s: referring.res(s, mode=mode))(rows, mode, scoring)


def rec(rows: Sequence[Row], mode: Mode, scoring: Scoring) -> Numbers:
    """Returns those of boxes."""
    return _sections("rec", lambda s: referring.rec(s, mode=mode))(rows, mode, scoring)


def grounding_suite(rows: Sequence[Row], mode: Mode, scoring: Scoring) -> Numbers:
    """Returns gIoU by kind of target; raises DataError ``class_id`` for chats whose tags do not say it."""
    kinds = [_kind_of(row) for row in rows]
    means = suite.giou(samples_of(rows, mode), kinds, mode=mode)["giou"]
    of_all = means.pop(suite.ALL)
    share = len(rows) / (len(rows) + len(scoring.lost)) if rows else 1.0
    found = {"giou": None if of_all is None else of_all * share}
    found |= {f"giou_{kind.removesuffix('-object')}": value for kind, value in means.items()}
    plain = _sections("res", lambda s: referring.res(s, mode=mode))(rows, mode, scoring)
    return {"groundingsuite": found, **{name: plain[name] for name in ("targets", "words")}}


def _kind_of(row: Row) -> str:
    kind = next((tag for tag in row["tags"] if tag in suite.CLASSES.values()), None)
    if kind is None:
        raise DataError(
            f"sample {row['sample_id']!r} has none of the tags {', '.join(suite.CLASSES.values())}, by which "
            "--benchmark groundingsuite groups its samples. Give chats of GroundingSuite-Eval.",
            reason="class_id",
        )
    return kind


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


def _sections(
    name: str, metric: Callable[[Samples], dict[str, Any]]
) -> Callable[[Sequence[Row], Mode, Scoring], Numbers]:
    def numbers(rows: Sequence[Row], mode: Mode, scoring: Scoring) -> Numbers:
        samples = samples_of(rows, mode, scoring.lost)
        return {
            name: metric(samples),
            "targets": referring.targets(samples, mode=mode),
            "words": words(rows, mode, scoring.lost),
        }

    return numbers


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
