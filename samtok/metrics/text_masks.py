"""From what a model wrote to the masks that it means: read words, decode them, join them.

Two readings are known. "strict" takes well-formed words only, all of them where an answer may
have several masks (GRES) and the first one where it has one (RES, REC), and cuts logits at 0. "official"
reproduces the authors' scripts: their repairs of broken words, one slot per level where there is one mask,
and logits cut at 0.5. Where those scripts stop, on words that no decoder takes, this gives no mask.

Loads torch only through the tokenizer that it is given.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool

from samtok import words
from samtok.errors import DataError
from samtok.metrics.referring import Mode, Terms

if TYPE_CHECKING:
    from samtok.model.backbone import ImageFeatures
    from samtok.model.tokenizer import MaskTokenizer

Codes = tuple[int, ...]


@dataclass(frozen=True)
class Reading:
    """How a text becomes masks.

    Attributes:
        malformed: What becomes of a broken word: one of ``samtok.words.POLICIES``.
        combine: ``union`` of all words, the ``first`` word, or the authors' ``single_slot``, where later
            codes overwrite earlier ones and ``malformed`` has no meaning.
        threshold: On logits. 0 is probability one half.
    """

    malformed: Literal["drop", "depth1", "reference"] = "drop"
    combine: Literal["union", "first", "single_slot"] = "union"
    threshold: float = 0.0

    @classmethod
    def of(cls, mode: Mode, *, several: bool) -> "Reading":
        """Returns how answers are read that may have several masks (GRES, GCG) or one (RES, REC)."""
        if mode == "official":
            return cls("reference", "union" if several else "single_slot", 0.5)
        return cls("drop", "union" if several else "first", 0.0)


def read_text(text: str, reading: Reading, *, num_codes: int, num_levels: int) -> words.LenientParse:
    """Returns the codes of the masks that a text means, and how many of its words are broken.

    A text beyond what ``single_slot`` can read, where the authors' script stops, has no masks.

    Raises:
        ValueError: If the authors' reading is asked for other than two levels.
    """
    policy = "drop" if reading.combine == "single_slot" else reading.malformed
    found = words.parse_words_lenient(text, num_codes=num_codes, num_levels=num_levels, policy=policy)
    if reading.combine == "union":
        return found
    if reading.combine == "first":
        return replace(found, codes=found.codes[:1])
    try:
        slot = words.parse_words_single_slot(text, num_codes=num_codes, num_levels=num_levels)
    except DataError:
        slot = None
    return replace(found, codes=[] if slot is None else [slot])


def decode_unions(
    tokenizer: "MaskTokenizer",
    features: "ImageFeatures",
    answers: Sequence[Sequence[Codes]],
    size_hw: tuple[int, int],
    *,
    threshold: float,
    each: Callable[[Codes, Bool[np.ndarray, "height width"]], None] | None = None,
) -> list[Bool[np.ndarray, "height width"]]:
    """Returns for each answer about one image the union of its masks, at the image's size.

    Every different word is decoded once, whatever the number of answers that have it, as ``decode_words``
    does, and ``each`` gets it. No masks give an empty union. ``features`` are those of the one image.
    """
    owners: dict[Codes, list[int]] = {}
    for number, answer in enumerate(answers):
        for codes in answer:
            owners.setdefault(codes, []).append(number)
    unions = [np.zeros(size_hw, bool) for _ in answers]
    for codes, mask in decode_words(tokenizer, features, owners, size_hw, threshold=threshold):
        for number in owners[codes]:
            unions[number] |= mask
        if each is not None:
            each(codes, mask)
    return unions


def decode_words(
    tokenizer: "MaskTokenizer",
    features: "ImageFeatures",
    wanted: Iterable[Codes],
    size_hw: tuple[int, int],
    *,
    threshold: float,
) -> Iterator[tuple[Codes, Bool[np.ndarray, "height width"]]]:
    """Yields the mask of each word about one image at the image's size; the words must be distinct.

    A code less than the tokenizer's levels gives a coarser mask; ``samtok.words.INVALID_CODE`` means code 0,
    as in the authors' decoder. ``features`` are those of the one image.
    """
    spelt: dict[Codes, list[Codes]] = {}
    for codes in wanted:
        spelt.setdefault(tuple(max(code, 0) for code in codes), []).append(codes)
    for length in sorted({len(codes) for codes in spelt}):
        same = [codes for codes in spelt if len(codes) == length]
        chunks = tokenizer.logits_of(features, np.array(same, np.int64), [0] * len(same))
        for valid, logits in zip(same, chain.from_iterable(chunks), strict=True):
            (mask,) = tokenizer.masks_from_logits(logits[None], size_hw, threshold)
            for codes in spelt[valid]:
                yield codes, mask


def word_scores(
    truth: Sequence[Sequence[Codes]], predicted: Sequence[Sequence[Codes] | None]
) -> dict[str, Any]:
    """Compares words without decoding them; the order of the masks of an answer is free.

    A sample without a prediction, None, is wrong.

    Returns:
        ``exact_match``: the share of samples whose masks have exactly the true codes;
        ``target_exact_match``: that of samples with a target; ``target_first_code``: the share of those whose
        first codes are right, that is, of which the place is.
    """
    return {name: term.share() for name, term in word_terms(truth, predicted).items()}


def word_terms(
    truth: Sequence[Sequence[Codes]], predicted: Sequence[Sequence[Codes] | None]
) -> dict[str, Terms]:
    """Returns the terms of the numbers of ``word_scores``."""
    pairs = list(zip(truth, predicted, strict=True))
    exact, first = (np.array([_same(*pair, depth) for pair in pairs], bool) for depth in (None, 1))
    wanted = np.array([bool(codes) for codes in truth], bool)
    return {
        "exact_match": Terms(exact, np.ones(len(pairs), bool)),
        "target_exact_match": Terms(exact & wanted, wanted),
        "target_first_code": Terms(first & wanted, wanted),
    }


def _same(truth: Sequence[Codes], predicted: Sequence[Codes] | None, depth: int | None) -> bool:
    if predicted is None:
        return False
    return Counter(tuple(c[:depth]) for c in truth) == Counter(tuple(c[:depth]) for c in predicted)


def describe(readings: Mapping[str, Reading]) -> dict[str, dict[str, Any]]:
    """Returns readings as plain values, for the record that stands beside every number."""
    return {
        name: {
            "malformed": None if reading.combine == "single_slot" else reading.malformed,
            "combine": reading.combine,
            "mask_threshold": reading.threshold,
        }
        for name, reading in readings.items()
    }
