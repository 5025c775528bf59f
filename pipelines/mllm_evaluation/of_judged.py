"""Numbers of descriptions that a language model judges: DLC-Bench, MDVP-Bench and VideoRefer-Bench-D.

The judge is asked once, of all answers together; single tags and the baseline have no judgements and so no
numbers. Lost questions are only counted.
"""

import json
import logging
from collections.abc import Sequence

from pipelines.ingestion.image_source import read_image
from pipelines.mllm_evaluation.answers import Numbers, Row, Scoring, is_answered, name_of, text_of
from samtok.errors import DataError
from samtok.metrics import judged_dlc, judged_mdvp, judged_videorefer
from samtok.metrics.judged import Ask
from samtok.metrics.judged_dlc import DlcMask, DlcWording
from samtok.metrics.judged_mdvp import MdvpRegion, MdvpWording
from samtok.metrics.judged_videorefer import VideoReferItem, VideoReferWording
from samtok.metrics.referring import Mode
from samtok.plots.boxes import numbered_boxes

log = logging.getLogger(__name__)

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


def mdvp_asks(rows: Sequence[Row], scoring: Scoring) -> list[Ask]:
    """Returns what the judge is asked: to rate the descriptions of an image's regions beside the true ones,
    and is shown the image with their boxes. An image that is gone by now is not asked about."""
    wording = scoring.wording if isinstance(scoring.wording, MdvpWording) else MdvpWording()
    known = _mdvp_rows(rows, scoring)
    by_image: dict[str, list[Row]] = {}
    for row, region in known:
        by_image.setdefault(region.image_id, []).append(row)
    asks = []
    for pair in judged_mdvp.pairs([region for _, region in known]):
        shown = by_image[pair.image_id]
        try:
            image = read_image(shown[0]["image_uri"], expected_hw=(shown[0]["height"], shown[0]["width"]))
        except DataError as error:
            log.warning("%s is not judged: %s", pair.image_id, error)
            continue
        asks.append(pair.ask(numbered_boxes(image, [_box(row) for row in shown]), wording))
    return asks


def mdvp(rows: Sequence[Row], mode: Mode, scoring: Scoring) -> Numbers:
    """Returns those of MDVP-Bench, where 1 is as good as the truth; regions whose tags do not say which kind
    of image theirs is are counted in ``without_phase``."""
    if not scoring.is_whole or scoring.replies is None:
        return {"mdvp": _unjudged(*judged_mdvp.GROUPS)}
    regions = [region for _, region in _mdvp_rows(rows, scoring)]
    replies = {**dict.fromkeys(region.image_id for region in regions), **scoring.replies}
    found = judged_mdvp.mdvp(regions, replies, mode=mode)
    return {"mdvp": found | {"without_phase": len(rows) - len(regions)}}


def _mdvp_rows(rows: Sequence[Row], scoring: Scoring) -> list[tuple[Row, MdvpRegion]]:
    """Returns the answers of known phases as regions; raises DataError ``phase`` if there are none."""
    found = []
    for row in rows:
        phase = next((phase for tag in row["tags"] if (phase := _phase(tag)) is not None), None)
        if phase is None:
            continue
        region = MdvpRegion(
            image_id=f"{row['dataset']}/{row['image_id']}",
            phase=phase,
            question=json.loads(row["about"] or "{}").get("question") or "Describe each marked region.",
            truth=row["truth"],
            predicted=_caption(row, scoring, "strict"),
        )
        found.append((row, region))
    if rows and not found:
        raise DataError(
            f"no question of the chats has a tag that begins with one of {', '.join(judged_mdvp.PHASES)}; "
            "--benchmark mdvp needs chats of MDVP-Bench.",
            reason="phase",
        )
    return found


def _box(row: Row) -> tuple[int, int, int, int] | None:
    if row["asked_box_xyxy"] is None:
        return None
    x0, y0, x1, y1 = row["asked_box_xyxy"]
    return x0, y0, x1, y1


def _phase(tag: str) -> str | None:
    try:
        return judged_mdvp.phase_of(tag)
    except DataError:
        return None


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
