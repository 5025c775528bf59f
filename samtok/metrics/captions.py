"""Captions of images against their references: CIDEr and METEOR, as pycocoevalcap 1.2 computes them.

CIDEr (Vedantam et al. 2015, arXiv 1411.5726) is computed here, in the variant CIDEr-D that evaluators print
under that name. METEOR 1.5 is a Java program (``samtok.metrics.meteor``). Both take words as
``samtok.metrics.caption_tokens`` makes them. The public script for grounded captions hides both behind a
third metric that fails without a network (SPICE); these are called one by one.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from samtok.errors import DataError
from samtok.metrics import meteor as meteor_program
from samtok.metrics.caption_tokens import words_of
from samtok.metrics.referring import MODES, Mode

MAX_N = 4
"""CIDEr counts sequences of 1 to this many words."""

LENGTH_SIGMA = 6.0
"""Width in words of CIDEr-D's penalty on a difference in length (Vedantam et al. 2015, section 5)."""

_Ngram = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CaptionSample:
    """A caption and what it should say.

    Attributes:
        image_id: Unique among the samples of an evaluation.
        references: At least one true caption.
        predicted: None if there is none; an empty caption is one that scores 0.
    """

    image_id: str
    references: tuple[str, ...]
    predicted: str | None


@dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """Scores of captions.

    Attributes:
        score: Of all captions together; None if there are none, or if the metric cannot be computed here.
        segments: Of each caption that is scored, in order. In "official" these leave out samples without a
            prediction.
        missing: What the metric needs and does not find, such as "needs Java"; None if nothing.
    """

    score: float | None
    segments: tuple[float, ...] = ()
    missing: str | None = None


def cider(
    samples: Sequence[CaptionSample], *, mode: Mode = "strict", tokenized: bool = False
) -> CaptionScores:
    """Returns CIDEr, in [0, 10] for each caption and as mean over captions.

    Sequences of words are weighted by how few images have them in their references, so one image alone scores
    0, and scores of different sets of images cannot be compared.

    Args:
        mode: "official" leaves out samples without a prediction, and has brackets as words as
            pycocoevalcap has them; in "strict" such a sample has an empty caption.
        tokenized: The texts are words with spaces between them already, and are taken as they are.

    Raises:
        DataError: ``duplicate_image`` if two samples have the same id, ``no_reference`` if one has none.
    """
    used = _used(samples, mode)
    split = _split(mode, tokenized)
    references = [[_ngrams(split(text)) for text in sample.references] for sample in used]
    images_with = Counter(ngram for counts in references for ngram in set().union(*counts))
    weigh = _Weights(images_with, max(1, len(used)))
    segments = []
    for sample, counts in zip(used, references, strict=True):
        predicted = weigh.of(_ngrams(split(sample.predicted or "")))
        similar = [_similarity(predicted, weigh.of(reference)) for reference in counts]
        segments.append(10 * sum(similar) / len(similar))
    return CaptionScores(score=sum(segments) / len(segments) if segments else None, segments=tuple(segments))


def meteor(
    samples: Sequence[CaptionSample],
    *,
    mode: Mode = "strict",
    tokenized: bool = False,
    limit_s: float = meteor_program.LIMIT_S,
) -> CaptionScores:
    """Returns METEOR, in [0, 1]: that of all captions together, which is not the mean of the segments.

    Without Java or pycocoevalcap the score is None and ``missing`` says which. Arguments as for ``cider``.

    Args:
        limit_s: Seconds after which the program is stopped.

    Raises:
        DataError: As ``cider``.
        SamtokError: The program fails or does not end in time.
    """
    used = _used(samples, mode)
    missing = meteor_program.missing()
    if missing or not used:
        return CaptionScores(score=None, missing=missing)
    split = _split(mode, tokenized)
    score, segments = meteor_program.scores(
        [split(sample.predicted or "") for sample in used],
        [[split(text) for text in sample.references] for sample in used],
        limit_s=limit_s,
    )
    return CaptionScores(score=score, segments=tuple(segments))


def counts(samples: Sequence[CaptionSample]) -> dict[str, int]:
    """Returns how many samples there are, have a prediction, and have none."""
    skipped = sum(sample.predicted is None for sample in samples)
    return {"expected": len(samples), "scored": len(samples) - skipped, "skipped": skipped}


def _used(samples: Sequence[CaptionSample], mode: Mode) -> list[CaptionSample]:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}.")
    seen: set[str] = set()
    for sample in samples:
        if sample.image_id in seen:
            raise DataError(
                f"two captions have the image id {sample.image_id!r}, expected one for each image; all "
                "references of an image belong into one sample.",
                reason="duplicate_image",
            )
        if not sample.references:
            raise DataError(
                f"image {sample.image_id!r} has no reference caption, expected at least one.",
                reason="no_reference",
            )
        seen.add(sample.image_id)
    return [sample for sample in samples if mode == "strict" or sample.predicted is not None]


def _split(mode: Mode, tokenized: bool) -> Callable[[str], list[str]]:
    return str.split if tokenized else lambda text: words_of(text, mode=mode)


def _ngrams(words: Sequence[str]) -> Counter[_Ngram]:
    """Counts sequences of 1 to ``MAX_N`` words."""
    return Counter(
        tuple(words[start : start + n]) for n in range(1, MAX_N + 1) for start in range(len(words) - n + 1)
    )


@dataclass(frozen=True)
class _Vector:
    """A caption's weights of sequences, their norm for each length, and how many pairs of words it has."""

    weights: dict[_Ngram, float]
    norms: tuple[float, ...]
    num_pairs: int


class _Weights:
    """Weighs sequences by the share of images that do not have them in their references."""

    def __init__(self, images_with: Counter[_Ngram], num_images: int) -> None:
        self.images_with, self.log_images = images_with, math.log(num_images)

    def of(self, ngrams: Counter[_Ngram]) -> _Vector:
        weights = {
            ngram: count * (self.log_images - math.log(max(1, self.images_with[ngram])))
            for ngram, count in ngrams.items()
        }
        squares = [0.0] * MAX_N
        for ngram, weight in weights.items():
            squares[len(ngram) - 1] += weight**2
        num_pairs = sum(count for ngram, count in ngrams.items() if len(ngram) == 2)
        return _Vector(weights, tuple(map(math.sqrt, squares)), num_pairs)


def _similarity(predicted: _Vector, reference: _Vector) -> float:
    """Returns the mean over lengths of the clipped cosine, with the penalty on a difference in length."""
    products = [0.0] * MAX_N
    for ngram, weight in predicted.weights.items():
        true = reference.weights.get(ngram, 0.0)
        products[len(ngram) - 1] += min(weight, true) * true
    norms = [a * b for a, b in zip(predicted.norms, reference.norms, strict=True)]
    cosines = [product / norm for product, norm in zip(products, norms, strict=True) if norm]
    difference = predicted.num_pairs - reference.num_pairs  # pycocoevalcap takes pairs for the length
    return sum(cosines) / MAX_N * math.exp(-(difference**2) / (2 * LENGTH_SIGMA**2))
