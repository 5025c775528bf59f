"""Numbers of descriptions that a language model judges: DLC-Bench and VideoRefer-Bench-D.

The judge is asked once, of all answers together; single tags and the baseline have no judgements and so no
numbers. Lost questions are only counted.
"""

import json
from collections.abc import Sequence

from pipelines.mllm_evaluation.answers import Numbers, Row, Scoring, is_answered, name_of, text_of
from samtok.errors import DataError
from samtok.metrics import judged_dlc, judged_videorefer
from samtok.metrics.judged import Ask
from samtok.metrics.judged_dlc import DlcMask, DlcWording
from samtok.metrics.judged_videorefer import VideoReferItem, VideoReferWording
from samtok.metrics.referring import Mode

NEEDS_JUDGE = "needs --judge.kind"


def dlc_asks(rows: Sequence[Row], scoring: Scoring) -> list[Ask]:
    """Returns what the judge is asked about descriptions of regions: each of a mask's own questions; raises
    DataError ``question`` if none has any."""
    wording = _dlc_wording(scoring)
    masks = [mask for row in rows if (mask := _dlc_mask(row, scoring, "strict")) is not None]
    if rows and not masks:
        raise DataError(
            "no question of the chats has what judges a description (class_name and questions); "
            "--benchmark dlc needs chats of DLC-Bench.",
            reason="question",
        )
    return [ask for mask in masks for ask in mask.asks(wording)]


def dlc(rows: Sequence[Row], mode: Mode, scoring: Scoring) -> Numbers:
    """Returns those of DLC-Bench; regions without its questions are counted in ``without_questions``."""
    if not scoring.is_whole or scoring.replies is None:
        return {"dlc": _unjudged("pos", "neg", "avg")}
    masks = [mask for row in rows if (mask := _dlc_mask(row, scoring, mode)) is not None]
    found = judged_dlc.dlc(masks, scoring.replies, mode=mode)
    return {"dlc": found | {"without_questions": len(rows) - len(masks)}}


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


def _dlc_mask(row: Row, scoring: Scoring, mode: Mode) -> DlcMask | None:
    """Returns the mask of a question; None without questions, or with some that nobody can be asked."""
    about = json.loads(row["about"] or "{}")
    try:
        return DlcMask.of_payload(name_of(row), about, _caption(row, scoring, mode), _dlc_wording(scoring))
    except DataError:
        return None  # counted


def _dlc_wording(scoring: Scoring) -> DlcWording:
    return scoring.wording if isinstance(scoring.wording, DlcWording) else judged_dlc.WORDING


def _item(row: Row, scoring: Scoring, mode: Mode) -> VideoReferItem:
    return VideoReferItem(item_id=name_of(row), truth=row["truth"], predicted=_caption(row, scoring, mode))


def _caption(row: Row, scoring: Scoring, mode: Mode) -> str | None:
    return text_of(row, scoring) if is_answered(row, mode) else None
