"""Answered questions as scores are made of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.chats.lost import NOTHING_LOST, LostQuestions
from pipelines.chats.psg import NO_VOCABULARY, PsgVocabulary
from pipelines.mllm_evaluation.rows import ANSWER_ROW
from samtok.errors import DataError
from samtok.metrics.judged import Replies, Wording
from samtok.metrics.referring import MODES, Mode
from samtok.mllm.thinking import answer_of

Row = Mapping[str, Any]
"""An answer, in the shape of ``rows.ANSWER_ROW`` without what ``read_answers`` leaves out."""

Numbers = dict[str, dict[str, Any]]
"""Sections of a benchmark's numbers, such as ``gres``, ``targets`` and ``words``."""

_LEFT_OUT = ("truth_rle", "asked_rle", "question")


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What decides the numbers besides the answers."""

    num_codes: int = 256
    num_levels: int = 2
    min_pixels: int = 0
    """GRES: a predicted mask with fewer pixels counts as no target."""
    thinking: bool = False
    """Answers have thoughts before them, which are not scored."""
    history: Literal["true", "predicted"] = "true"
    """What stood before later questions of a chat."""
    psg: PsgVocabulary = NO_VOCABULARY
    """Scene graphs: what is not in the lists is not scored."""
    similarity: Callable[[str, str], float] | None = None
    """Grounded captions: of two phrases, in [0, 1]; None where there is no text encoder."""
    wording: Wording | None = None
    """Judged benchmarks: of what the judge is asked; None is ours."""
    replies: Replies | None = None
    """Judged benchmarks: of the judge, by the names of its asks; None without a judge."""
    is_whole: bool = False
    """These are all answers of the model: what is dear is computed, such as METEOR."""
    lost: LostQuestions = NOTHING_LOST
    """Questions that never came here; wrong answers in "strict", left out in "official"."""


PLAIN = Scoring()
"""The defaults."""


def read_answers(out: str, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Reads the answers of a finished evaluation, without the unions of masks; raises RuntimeError if
    questions are unaccounted for, which is a defect of ours."""
    columns = [name for name in ANSWER_ROW.names if name not in (*_LEFT_OUT, *MODES)]
    fields: pa.StructType = ANSWER_ROW.field("strict").type
    of_prediction = [name for name in (field.name for field in fields) if name != "rle"]
    columns += [f"{mode}.{name}" for mode in MODES for name in of_prediction]
    rows: list[dict[str, Any]] = []
    for record in manifest["shards"]:
        with storage.open_input(storage.join(out, record["data"]["file"])) as file:
            rows += pq.ParquetFile(file).read(columns=columns).to_pylist()
    totals = manifest["totals"]
    if not len(rows) == totals["samples_in"] == totals["samples_out"] + totals["samples_rejected"]:
        raise RuntimeError(f"{len(rows)} answers for {totals}; this is a defect of samtok")
    return rows


def is_answered(row: Row, mode: Mode) -> bool:
    """Returns whether there is an answer to score: in "official" a thought without an answer is one."""
    return row["problem"] is None and (mode == "official" or not row["unfinished"])


def text_of(row: Row, scoring: Scoring) -> str:
    """Returns the part of an answer that is scored."""
    return answer_of(row["generated"]) if scoring.thinking else row["generated"]


def name_of(row: Row) -> str:
    """Returns what no other question of the corpus is called."""
    return f"{row['sample_id']}#{row['turn']}"


def with_lost(found: Mapping[str, Any], scored: int, lost: int) -> dict[str, Any]:
    """Returns means over so many answers as means over lost ones too, which score 0; counts stay."""
    share = scored / (scored + lost) if scored else 1.0
    return {name: value * share if isinstance(value, float) else value for name, value in found.items()}


def unusable(rows: Sequence[Row], known: Sequence[Any], mode: Mode, scoring: Scoring, *, what: str) -> int:
    """Returns how many rows cannot be scored because of their truth, as lost ones: none in "official".

    Raises:
        DataError: ``truth`` if that is so of all answers.
    """
    if scoring.is_whole and rows and not known:
        raise DataError(
            f"none of the {len(rows)} questions has {what}, so nothing can be scored.", reason="truth"
        )
    return len(rows) - len(known) if mode == "strict" else 0


def used(rows: Sequence[Row], mode: Mode) -> list[Row]:
    """Returns the rows that count: all in "strict", in "official" those with an answer."""
    return [row for row in rows if mode == "strict" or is_answered(row, mode)]
