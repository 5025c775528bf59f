"""Numbers of scene graphs (PSG): triplets of an answer, each with two masks, against those of the truth."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from pipelines.mllm_evaluation.answers import Numbers, Row, Scoring, is_answered, text_of, unusable, with_lost
from samtok import masks
from samtok.errors import DataError
from samtok.metrics.referring import Mode
from samtok.metrics.scene_graph_text import StatedTriplet, read_answer, words_of
from samtok.metrics.scene_graphs import ImageMatches, Triplet, match_image, recalls, with_masks
from samtok.metrics.text_masks import Codes, Reading, read_text

KS = (20, 50, 100)


def codes(text: str, mode: Mode, num_codes: int, num_levels: int) -> list[Codes]:
    """Returns the codes of each mask that an answer names."""
    found = [
        _codes_of(words, mode, num_codes, num_levels)
        for words in words_of(read_answer(text, mode=mode).triplets)
    ]
    return [one for one in found if one is not None]


def _codes_of(words: str, mode: Mode, num_codes: int, num_levels: int) -> Codes | None:
    reading = Reading.of(mode, several=False)
    return next(iter(read_text(words, reading, num_codes=num_codes, num_levels=num_levels).codes), None)


def psg(rows: Sequence[Row], mode: Mode, scoring: Scoring) -> Numbers:
    """Returns R@K and mR@K; predicates are those of the vocabulary, else those that the truth has."""
    known = [(row, truth) for row in rows if (truth := _truth(row)) is not None]
    unread = unusable(rows, known, mode, scoring, what="a true scene graph with a mask for each of its words")
    truths = [truth for _, truth in known]
    predicates = scoring.psg.predicates or tuple(
        sorted({one.predicate for one in chain.from_iterable(truths)})
    )
    if scoring.is_whole and rows and not any(truths):
        raise DataError(f"none of the {len(rows)} questions has a true relation to score.", reason="truth")
    if not predicates:
        return {"psg": {f"{name}_{k}": None for k in KS for name in ("recall", "mean_recall")}}
    images = [_match(row, truth, mode, scoring) for row, truth in known]
    found = recalls(images, predicates=predicates, ks=KS, mode=mode)
    found = with_lost(found, len(known), unread + len(scoring.lost))
    return {"psg": found | {"unread_truths": len(rows) - len(known)}}


def _truth(row: Row) -> list[Triplet] | None:
    """Returns the true triplets, whose masks are in the order of the words; None for other words."""
    stated = read_answer(row["truth"]).triplets
    if len(words_of(stated)) != len(row["truth_masks"]):
        return None
    return with_masks(stated, [_decoded(row, mask["rle"]) for mask in row["truth_masks"]])


def _match(row: Row, truth: Sequence[Triplet], mode: Mode, scoring: Scoring) -> ImageMatches:
    stated = _stated(row, mode, scoring) if is_answered(row, mode) else None
    predicted = None if stated is None else with_masks(stated, _masks_of(row, stated, mode, scoring))
    return match_image(truth, predicted, mode=mode, stuff=scoring.psg.stuff)


def _stated(row: Row, mode: Mode, scoring: Scoring) -> Sequence[StatedTriplet] | None:
    found = read_answer(
        text_of(row, scoring),
        classes=scoring.psg.categories or None,
        predicates=scoring.psg.predicates or None,
        mode=mode,
    )
    return found.used(mode)


def _masks_of(row: Row, stated: Sequence[StatedTriplet], mode: Mode, scoring: Scoring) -> list[np.ndarray]:
    """Returns the mask of each text; one that means none is empty."""
    known = {tuple(one["codes"]): one["rle"] for one in row[mode]["masks"]}
    sizes = scoring.num_codes, scoring.num_levels
    found = [_codes_of(words, mode, *sizes) for words in words_of(stated)]
    return [_decoded(row, None if one is None else known[one]) for one in found]


def _decoded(row: Row, rle: str | None) -> np.ndarray:
    size: dict[str, Any] = {"height": row["height"], "width": row["width"]}
    return np.zeros((row["height"], row["width"]), bool) if rle is None else masks.decode(rle, **size)
