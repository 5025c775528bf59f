"""Numbers of descriptions that a language model judges: DLC-Bench and VideoRefer-Bench-D.

The judge is asked once, of all answers together; single tags and the baseline have no judgements and so no
numbers. Lost questions are only counted.
"""

import json
from collections.abc import Sequence

from pipelines.mllm_evaluation.answers import Numbers, Row, Scoring, is_answered
from samtok.errors import DataError
from samtok.metrics import judged_dlc, judged_videorefer
from samtok.metrics.judged import Ask
from samtok.metrics.judged_dlc import DlcMask, DlcWording
from samtok.metrics.judged_videorefer import VideoReferItem, VideoReferWording
from samtok.metrics.referring import Mode
from samtok.mllm.thinking import answer_of

NEEDS_JUDGE = "needs --judge.kind"


def dlc_asks(rows: Sequence[Row], scoring: Scoring) -> list[Ask]:
    """Returns what the judge is asked about descriptions of regions: each of a mask's own questions."""
    wording = _dlc_wording(scoring)
    return [ask for row in rows for ask in _dlc_mask(row, scoring, "strict").asks(wording)]


def dlc(rows: Sequence[Row], mode: Mode, scoring: Scoring) -> Numbers:
    """Returns those of DLC-Bench; raises DataError ``class_name`` or ``question`` for regions of others."""
    if not scoring.is_whole or scoring.replies is None:
        return {"dlc": _unjudged("pos", "neg", "avg")}
    masks = [_dlc_mask(row, scoring, mode) for row in rows]
    return {"dlc": judged_dlc.dlc(masks, scoring.replies, mode=mode)}


def videorefer_asks(rows: Sequence[Row], scoring: Scoring) -> list[Ask]:
    """Returns what the judge is asked: to compare each description with the true one."""
    wording = scoring.wording if isinstance(scoring.wording, VideoReferWording) else VideoReferWording()
    return [ask for row in rows for ask in _item(row, scoring, "strict").asks(wording)]


def videorefer(rows: Sequence[Row], mode: Mode, scoring: Scoring) -> Numbers:
    """Returns those of VideoRefer-Bench-D, from 0 to 5."""
    if not scoring.is_whole or scoring.replies is None:
        return {"videorefer": _unjudged("avg", *judged_videorefer.DIMENSIONS)}
    items = [_item(row, scoring, mode) for row in rows]
    return {"videorefer": judged_videorefer.videorefer(items, scoring.replies, mode=mode)}


def _unjudged(*names: str) -> dict[str, str | None]:
    return {**dict.fromkeys(names, None), **{f"{name}_missing": NEEDS_JUDGE for name in names}}


def _dlc_mask(row: Row, scoring: Scoring, mode: Mode) -> DlcMask:
    about = json.loads(row["about"] or "{}")
    if "questions" not in about:
        raise DataError(
            f"sample {row['sample_id']!r} has no questions that judge it. Give chats of DLC-Bench.",
            reason="question",
        )
    return DlcMask.of_payload(_name(row), about, _text(row, scoring, mode), _dlc_wording(scoring))


def _dlc_wording(scoring: Scoring) -> DlcWording:
    return scoring.wording if isinstance(scoring.wording, DlcWording) else judged_dlc.WORDING


def _item(row: Row, scoring: Scoring, mode: Mode) -> VideoReferItem:
    return VideoReferItem(item_id=_name(row), truth=row["truth"], predicted=_text(row, scoring, mode))


def _name(row: Row) -> str:
    return f"{row['sample_id']}#{row['turn']}"


def _text(row: Row, scoring: Scoring, mode: Mode) -> str | None:
    if not is_answered(row, mode):
        return None
    return answer_of(row["generated"]) if scoring.thinking else row["generated"]
