"""Numbers of captions: those with masks in them (GCG), and those of regions.

METEOR needs Java and takes a quarter of a minute, so it is computed of all answers together and not of the
baseline and single tags. Lost questions count as answers that say nothing.
"""

from collections.abc import Sequence
from typing import Any

from pipelines.mllm_evaluation.answers import (
    Numbers,
    Row,
    Scoring,
    is_answered,
    name_of,
    text_of,
    unusable,
    used,
    with_lost,
)
from samtok.metrics import captions, grounded_captions
from samtok.metrics.captions import CaptionSample
from samtok.metrics.grounded_captions import GroundedCaption, exact_match
from samtok.metrics.grounded_texts import read_answer
from samtok.metrics.referring import Mode
from samtok.metrics.text_masks import Codes

NEEDS_BERT = "needs --gcg-similarity"


def codes(text: str, mode: Mode, num_codes: int, num_levels: int) -> list[Codes]:
    """Returns the codes of each mask that a caption names."""
    return list(read_answer(text, mode=mode, num_codes=num_codes, num_levels=num_levels).codes)


def gcg(rows: Sequence[Row], mode: Mode, scoring: Scoring) -> Numbers:
    """Returns those of grounded captions: of masks, of phrases with masks, and of the captions themselves.

    ``recall_exact`` takes equal phrases only; ``recall`` is that of the public evaluator, and None without
    its text encoder.
    """
    known = [(row, true) for row in rows if (true := _truth(row, scoring)) is not None]
    unread = unusable(rows, known, mode, scoring, what="a true caption with a mask for each of its words")
    truth = [true for _, true in known]
    predicted = [_predicted(row, mode, scoring) for row, _ in known]
    exact = grounded_captions.gcg(truth, predicted, similarity=exact_match, mode=mode)
    similar = scoring.similarity and grounded_captions.recall(
        truth, predicted, similarity=scoring.similarity, mode=mode
    )
    found = {name: value for name, value in exact.items() if name != "recall"}
    found |= {"recall": similar, "recall_exact": exact["recall"]}
    found |= _of_texts(grounded_captions.caption_samples(truth, predicted), mode, scoring)
    if scoring.similarity is None:
        found["recall_missing"] = NEEDS_BERT
    found = with_lost(found, len(known), unread + len(scoring.lost))
    return {"gcg": found | {"unread_truths": len(rows) - len(known)}}


def regions(rows: Sequence[Row], mode: Mode, scoring: Scoring) -> Numbers:
    """Returns those of captions of regions: how near they are to the true ones, and how many are equal."""
    samples = [
        CaptionSample(
            image_id=name_of(row),
            references=(row["truth"],),
            predicted=text_of(row, scoring) if is_answered(row, mode) else None,
        )
        for row in rows
    ]
    counted = used(rows, mode)
    equal = [is_answered(row, mode) and _same(text_of(row, scoring), row["truth"]) for row in counted]
    found = _of_texts(samples, mode, scoring)
    found["exact"] = sum(equal) / len(equal) if equal else None
    return {"captions": with_lost(found, len(rows), len(scoring.lost))}


def _of_texts(samples: Sequence[CaptionSample], mode: Mode, scoring: Scoring) -> dict[str, Any]:
    found: dict[str, Any] = {"cider": captions.cider(samples, mode=mode).score, "meteor": None}
    if scoring.is_whole:
        meteor = captions.meteor(samples, mode=mode)
        found["meteor"] = meteor.score
        if meteor.missing:
            found["meteor_missing"] = meteor.missing
    return found


def _truth(row: Row, scoring: Scoring) -> GroundedCaption | None:
    """Returns the true caption; None for a text that has other words than masks."""
    said = read_answer(row["truth"], num_codes=scoring.num_codes, num_levels=scoring.num_levels)
    if len(said.codes) != len(row["truth_masks"]):
        return None
    return _grounded(row, said.caption, said.phrases, [mask["rle"] for mask in row["truth_masks"]])


def _predicted(row: Row, mode: Mode, scoring: Scoring) -> GroundedCaption | None:
    if not is_answered(row, mode):
        return None
    text, levels = text_of(row, scoring), scoring.num_levels
    said = read_answer(text, mode=mode, num_codes=scoring.num_codes, num_levels=levels)
    known = {tuple(one["codes"]): one["rle"] for one in row[mode]["masks"]}
    return _grounded(row, said.caption, said.phrases, [known[one] for one in said.codes])


def _grounded(row: Row, caption: str, phrases: Sequence[str], rles: Sequence[str]) -> GroundedCaption:
    return GroundedCaption(
        image_id=name_of(row),
        height=row["height"],
        width=row["width"],
        caption=caption,
        phrases=tuple(phrases),
        rles=tuple(rles),
    )


def _same(first: str, second: str) -> bool:
    return first.split() == second.split()
