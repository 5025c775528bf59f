"""From the table of answers to the numbers of an evaluation, and tables of them for terminal and report.

Everything follows from the committed shards alone, in their order, so a run that was killed and repeated
gives the same bytes. Beside each number stands the baseline that answers "No target." to everything: gIoU
and N-acc alone can look good where nothing was found.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.mllm_evaluation.config import BASELINE, THIS_RUN
from pipelines.mllm_evaluation.prepare import Beside
from pipelines.mllm_evaluation.rows import ANSWER_ROW
from samtok.metrics import referring
from samtok.metrics.referring import Mode, Samples
from samtok.metrics.text_masks import Codes, Reading, describe, word_scores

_LEFT_OUT = ("truth_rle", "image_uri", "question", "truth")


def read_answers(out: str, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Reads the answers of a finished evaluation, without masks and texts; raises RuntimeError if questions
    are unaccounted for, which is a defect of ours."""
    columns = [name for name in ANSWER_ROW.names if name not in (*_LEFT_OUT, "strict", "official")]
    fields: pa.StructType = ANSWER_ROW.field("strict").type
    of_prediction = [name for name in (field.name for field in fields) if name != "rle"]
    columns += [f"{mode}.{name}" for mode in referring.MODES for name in of_prediction]
    rows: list[dict[str, Any]] = []
    for record in manifest["shards"]:
        with storage.open_input(storage.join(out, record["data"]["file"])) as file:
            rows += pq.ParquetFile(file).read(columns=columns).to_pylist()
    totals = manifest["totals"]
    if not len(rows) == totals["samples_in"] == totals["samples_out"] + totals["samples_rejected"]:
        raise RuntimeError(f"{len(rows)} answers for {totals}; this is a defect of samtok")
    return rows


def samples_of(rows: Sequence[Mapping[str, Any]], mode: Mode) -> Samples:
    """Returns answers as the metrics take them; questions that could not be asked are skipped samples."""
    nothing = {"intersection_px": 0, "predicted_px": 0, "box_xyxy": None}
    predicted = [row[mode] or nothing for row in rows]
    return Samples(
        intersection_px=np.array([one["intersection_px"] for one in predicted], np.int64),
        predicted_px=np.array([one["predicted_px"] for one in predicted], np.int64),
        target_px=np.array([row["target_px"] for row in rows], np.int64),
        predicted_box=_boxes([one["box_xyxy"] for one in predicted]),
        target_box=_boxes([row["target_box_xyxy"] for row in rows]),
        skipped=np.array([row["problem"] is not None for row in rows], bool),
        keys=tuple(row["key"] for row in rows),
    )


def _boxes(boxes: Sequence[Sequence[int] | None]) -> np.ndarray:
    return np.array([box or (0, 0, 0, 0) for box in boxes], np.int64).reshape(len(boxes), 4)


def metrics_of(
    rows: Sequence[Mapping[str, Any]],
    *,
    benchmark: str,
    readings: Mapping[Mode, Reading],
    min_pixels: int = 0,
) -> dict[str, Any]:
    """Returns all numbers of an evaluation as ``metrics.json`` has them, shares in [0, 1].

    Args:
        rows: From ``read_answers``.
        benchmark: ``gres``, ``res`` or ``rec``.
        readings: The modes that were scored.
        min_pixels: As ``referring.gres`` takes it.

    Returns:
        ``counts``; then per mode ``model`` and ``no_target``, the baseline: each with the benchmark's
        metrics, ``targets``, ``words``, and the same ``by_tag``; and how the mode reads texts.
    """
    described = describe({str(mode): reading for mode, reading in readings.items()})
    modes = {}
    for mode in readings:
        score = _Scorer(benchmark, mode, min_pixels)
        modes[mode] = {
            "read": {**described[mode], "min_pixels": min_pixels},
            "model": score.with_tags(rows),
            "no_target": score.with_tags([_without_prediction(row, mode) for row in rows]),
        }
    return {"benchmark": benchmark, "counts": counts_of(rows), "modes": modes}


def counts_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Counts questions, what could not be asked, broken words, and answers that were cut."""
    asked = [row for row in rows if row["problem"] is None]
    return {
        "expected": len(rows),
        "scored": len(asked),
        "skipped": len(rows) - len(asked),
        "no_target": sum(row["target_px"] == 0 for row in rows),
        "malformed_words": sum(row["num_malformed"] for row in asked),
        "answers_with_malformed": sum(row["num_malformed"] > 0 for row in asked),
        "answers_cut": sum(bool(row["cut"]) for row in asked),
        "tokens": sum(row["num_tokens"] for row in asked),
    }


class _Scorer:
    """Scores rows in one mode."""

    def __init__(self, benchmark: str, mode: Mode, min_pixels: int) -> None:
        self.benchmark, self.min_pixels = benchmark, min_pixels
        self.mode: Mode = mode

    def with_tags(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        tags = sorted({tag for row in rows for tag in row["tags"]})
        of_tags = {tag: self.section([row for row in rows if tag in row["tags"]]) for tag in tags}
        return {**self.section(rows), "by_tag": of_tags}

    def section(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        samples = samples_of(rows, self.mode)
        return {
            "counts": referring.counts(samples),
            self.benchmark: self._benchmark(samples),
            "targets": referring.targets(samples, mode=self.mode),
            "words": self._words(rows),
        }

    def _benchmark(self, samples: Samples) -> dict[str, Any]:
        if self.benchmark == "gres":
            return referring.gres(samples, mode=self.mode, min_pixels=self.min_pixels)
        return {"res": referring.res, "rec": referring.rec}[self.benchmark](samples, mode=self.mode)

    def _words(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        used = [row for row in rows if self.mode == "strict" or row["problem"] is None]
        predicted = [None if row["problem"] is not None else _codes(row[self.mode]["codes"]) for row in used]
        return word_scores([_codes(row["truth_codes"]) for row in used], predicted)


def _codes(codes: Sequence[Sequence[int]]) -> list[Codes]:
    return [tuple(word) for word in codes]


def _without_prediction(row: Mapping[str, Any], mode: Mode) -> dict[str, Any]:
    """Returns a row as if it had been answered with "No target."."""
    nothing = {"codes": [], "intersection_px": 0, "predicted_px": 0, "box_xyxy": None}
    return {**row, mode: nothing, "problem": None}


HEADLINES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "gres": (
        ("gIoU", "gres", "giou"),
        ("cIoU", "gres", "ciou"),
        ("N-acc", "gres", "n_acc"),
        ("T-acc", "gres", "t_acc"),
    ),
    "res": (
        ("cIoU", "res", "ciou_cumulative"),
        ("mIoU", "res", "miou"),
        ("mIoU by key (PaDT)", "res", "padt_dedup_miou"),
    ),
    "rec": (
        ("Acc@0.5", "rec", "accuracy"),
        ("Acc@0.5 by key (PaDT)", "rec", "padt_dedup_accuracy"),
    ),
}
"""Names in tables, and where their numbers are in a section of the metrics."""

_ALWAYS = (
    ("IoU of targets", "targets", "mean_iou"),
    ("exact words", "words", "exact_match"),
    ("exact words of targets", "words", "target_exact_match"),
    ("first code of targets", "words", "target_first_code"),
)


def headlines(benchmark: str, section: Mapping[str, Any]) -> dict[str, float | None]:
    """Returns the numbers that tables show, by their names."""
    places = (*_ALWAYS[:1], *HEADLINES[benchmark], *_ALWAYS[1:])
    return {name: section[part][key] for name, part, key in places}


def percent(share: float | None) -> str:
    """Returns a share as papers print it: times 100, two decimals; none is ``-``."""
    return "-" if share is None else f"{100 * share:.2f}"


def table_of(metrics: Mapping[str, Any], beside: Beside, mode: str) -> list[list[str]]:
    """Returns the table of one mode as texts: a head, then a line per number, times 100.

    Its columns are this run, the baseline and other runs.
    """
    own = metrics["modes"][mode]
    others = {name: found["modes"][mode]["model"] for name, found in beside.items() if mode in found["modes"]}
    columns = {THIS_RUN: own["model"], BASELINE: own["no_target"], **others}
    numbers = [headlines(metrics["benchmark"], section) for section in columns.values()]
    lines = [[name, *(percent(found[name]) for found in numbers)] for name in numbers[0]]
    return [[f"{mode}, x 100", *columns], *lines]


def tag_table(metrics: Mapping[str, Any], mode: str) -> list[list[str]]:
    """Returns this run's numbers by tag as texts: a head, then a line per tag."""
    found = metrics["modes"][mode]["model"]
    sections = {**found["by_tag"], "all": found}
    names = list(headlines(metrics["benchmark"], found))
    lines: list[list[str]] = []
    for tag, section in sections.items():
        numbers = headlines(metrics["benchmark"], section)
        lines.append([tag, str(section["counts"]["expected"]), *(percent(numbers[name]) for name in names)])
    return [["tag", "questions", *names], *lines]
