"""The answers of a finished evaluation as columns: what was asked, and what each answer adds to metrics."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.tools.board.runs import Run
from samtok.errors import DataError
from samtok.metrics import grounding_suite, referring
from samtok.metrics.referring import Mode, Samples, Terms
from samtok.metrics.text_masks import word_terms

WHO = ("dataset", "split", "image_id", "sample_id", "turn")
UNFINISHED = "unfinished"
"""Column: a thought was asked for and no answer came; earlier evaluations have none."""
_PIXELS = (
    *("problem", "key", "target_px", "target_box_xyxy"),
    *(".intersection_px", ".predicted_px", ".box_xyxy"),
)
_DRAWN = (*_PIXELS, "image_uri", "height", "width", "truth_rle", ".rle", "question", "truth", "generated")

OfAnswers = Callable[["Answers", Mapping[str, Any]], Mapping[str, Terms]]


@dataclass(frozen=True)
class Scored:
    """How answers of a benchmark become terms of the metrics of its section.

    Attributes:
        terms: From answers, and what ``metrics.json`` says of how their mode reads texts, to terms with an
            entry per answer.
        columns: What that needs of the table of answers; ``.name`` is of the prediction of the mode.
    """

    terms: OfAnswers
    columns: tuple[str, ...] = _PIXELS


SCORED: Mapping[str, Scored] = {
    "gres": Scored(
        lambda answers, read: referring.gres_terms(
            answers.samples, mode=answers.mode, min_pixels=read.get("min_pixels", 0)
        )
    ),
    "res": Scored(lambda answers, read: referring.res_terms(answers.samples, mode=answers.mode)),
    "rec": Scored(lambda answers, read: referring.rec_terms(answers.samples, mode=answers.mode)),
    "rounds": Scored(lambda answers, read: answers.terms_of_rounds(), (*_PIXELS, "round")),
    "groundingsuite": Scored(lambda answers, read: answers.terms_of_kinds(), (*_PIXELS, "tags")),
}
"""By section, which has the name of its benchmark. Others have numbers without intervals."""

_BESIDE: Mapping[str, tuple[str, ...]] = {"rounds": ("res",)}
"""Sections of other benchmarks that one has too."""

SHARED: Mapping[str, Scored] = {
    "targets": Scored(lambda answers, read: referring.targets_terms(answers.samples, mode=answers.mode)),
    "words": Scored(lambda answers, read: answers.word_terms(), ("problem", "truth_codes", ".codes")),
}
"""Sections that several benchmarks have."""


@dataclass(frozen=True)
class Answers:
    """The answers of a run in the order of its data files; columns that its files lack are not there.

    ``drawable`` says whether whole rows have what pictures of them need.
    """

    table: pa.Table
    mode: Mode
    drawable: bool

    @cached_property
    def who(self) -> list[tuple[Any, ...]]:
        """Data set, split, image, sample and turn of each question."""
        return list(zip(*(self.table[name].to_pylist() for name in WHO), strict=True))

    @cached_property
    def order(self) -> list[int]:
        """Places of the questions by ``who``, so that runs can be laid beside each other."""
        return sorted(range(len(self.who)), key=self.who.__getitem__)

    @cached_property
    def tags(self) -> list[list[str]]:
        """Tags of each question."""
        there = "tags" in self.table.column_names
        return self.table["tags"].to_pylist() if there else [[] for _ in self.who]

    @cached_property
    def answered(self) -> list[bool]:
        """Whether each question has an answer: it could be asked, and in "strict" its thought had an end."""
        found = [problem is None for problem in self.table["problem"].to_pylist()]
        if self.mode == "official" or UNFINISHED not in self.table.column_names:
            return found
        ended = [not one for one in self.table[UNFINISHED].to_pylist()]
        return [asked and end for asked, end in zip(found, ended, strict=True)]

    @cached_property
    def samples(self) -> Samples:
        """Answers as metrics of pixels take them."""
        table, answered = self.table, np.array(self.answered, bool)
        return Samples(
            intersection_px=_numbers(self.predicted("intersection_px")) * answered,
            predicted_px=_numbers(self.predicted("predicted_px")) * answered,
            target_px=_numbers(table["target_px"]),
            predicted_box=_boxes(self.predicted("box_xyxy")),
            target_box=_boxes(table["target_box_xyxy"]),
            skipped=~answered,
            keys=tuple(table["key"].to_pylist()),
        )

    @property
    def ious(self) -> np.ndarray:
        """IoU of each answer in [0, 1]: 1 for a right "no target", NaN if it was not asked."""
        samples, union = self.samples, self.samples.union_px
        iou = np.where(union == 0, 1.0, samples.intersection_px / np.maximum(union, 1))
        return np.where(samples.skipped, np.nan, iou)

    def predicted(self, name: str) -> pa.ChunkedArray:
        """Returns a column of the predictions; null where a question was not asked."""
        return self.table.select([self.mode]).flatten()[f"{self.mode}.{name}"]

    def terms(self, benchmark: str, read: Mapping[str, Any]) -> dict[str, Terms]:
        """Returns what each answer adds to each metric, by ``section/metric``, as far as that is known of the
        benchmark and its columns are there. ``read`` is as in ``Scored``."""
        found: dict[str, Terms] = {}
        for section, scored in _scored(benchmark).items():
            if _has(self.table.schema, self.mode, scored.columns):
                found |= {f"{section}/{name}": term for name, term in scored.terms(self, read).items()}
        return found

    def terms_of_rounds(self) -> dict[str, Terms]:
        """Returns the terms of each round's cIoU; of several data sets it is a mean that they do not give."""
        ciou = referring.res_terms(self.samples, mode=self.mode)["ciou_cumulative"]
        numbers = self.table["round"].to_numpy()
        there = {number: numbers == number for number in np.unique(numbers).tolist()}
        return {
            f"ciou_round_{number}": Terms(ciou.part * inside, ciou.whole * inside)
            for number, inside in there.items()
        }

    def terms_of_kinds(self) -> dict[str, Terms]:
        """Returns the terms of GroundingSuite-Eval's mean IoUs: of all, and of each kind of target."""
        found: dict[str, Terms] = {}
        known = np.zeros(len(self.samples), bool)
        ious = np.nan_to_num(np.where(self.samples.union_px > 0, self.ious, 0.0))
        counted = np.array([there or self.mode == "strict" for there in self.answered], bool)
        for kind in grounding_suite.CLASSES.values():
            inside = np.array([kind in tags for tags in self.tags], bool)
            known |= inside
            name = f"giou_{kind.removesuffix('-object')}"
            found[name] = Terms(ious * inside * counted, inside & counted)
        # What is of no kind scores 0 in "strict" and is left out in "official".
        whole = known & counted if self.mode == "official" else counted
        return {"giou": Terms(ious * known * counted, whole), **found}

    def word_terms(self) -> dict[str, Terms]:
        """Returns the terms of words; as metrics do, "official" leaves out what has no answer."""
        truth = [_codes(codes) for codes in self.table["truth_codes"].to_pylist()]
        answered = zip(self.predicted("codes").to_pylist(), self.answered, strict=True)
        predicted = [_codes(codes or []) if there else None for codes, there in answered]
        counted = np.array([there or self.mode == "strict" for there in self.answered], bool)
        found = word_terms(truth, predicted).items()
        return {name: Terms(term.part & counted, term.whole & counted) for name, term in found}


def read_answers(run: Run, mode: Mode) -> Answers:
    """Reads the answers of a run without masks and texts.

    Raises:
        DataError: If they are not as many as ``metrics.json`` says, or do not say whom they are of.
    """
    wanted = dict.fromkeys(name for one in _scored(run.benchmark).values() for name in one.columns)
    tables, drawable = [], True
    for record in run.manifest["shards"]:
        with storage.open_input(storage.join(run.uri, record["data"]["file"])) as stream:
            file = pq.ParquetFile(stream)
            schema = file.schema_arrow
            tables.append(file.read(columns=_there(schema, mode, (*WHO, "tags", UNFINISHED, *wanted))))
            drawable &= _has(schema, mode, _DRAWN)
    table = pa.concat_tables(tables) if tables else pa.table({name: [] for name in WHO})
    if missing := [name for name in WHO if name not in table.column_names]:
        raise DataError(f"the answers of {run.uri} have no {', '.join(missing)}.", reason="columns")
    expected = run.counts.get("expected", len(table))
    if len(table) not in (expected, expected - (run.lost or 0)):  # what is lost may have no row
        raise DataError(
            f"{run.uri} has {len(table)} answers, its metrics.json counts {expected} questions. Run the "
            "command of the evaluation again.",
            reason="counts",
        )
    return Answers(table, mode, drawable)


def _scored(benchmark: str) -> dict[str, Scored]:
    sections = (benchmark, *_BESIDE.get(benchmark, ()))
    return {**{name: SCORED[name] for name in sections if name in SCORED}, **SHARED}


def _there(schema: pa.Schema, mode: str, columns: Sequence[str]) -> list[str]:
    """Returns those of the columns that a table has, as Parquet names them."""
    kind = schema.field(mode).type if mode in schema.names else pa.struct([])
    fields = {f"{mode}.{kind.field(number).name}" for number in range(kind.num_fields)}
    full = [mode + name if name.startswith(".") else name for name in columns]
    return [name for name in full if name in fields or name in schema.names]


def _has(schema: pa.Schema, mode: str, columns: Sequence[str]) -> bool:
    return len(_there(schema, mode, columns)) == len(columns)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    return column.fill_null(0).to_numpy().astype(np.int64)


def _boxes(column: pa.ChunkedArray) -> np.ndarray:
    boxes = [box or (0, 0, 0, 0) for box in column.to_pylist()]
    return np.array(boxes, np.int64).reshape(len(boxes), 4)


def _codes(codes: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    return [tuple(word) for word in codes]
