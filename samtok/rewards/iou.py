"""A reward of pixels: the IoU of what a response's words decode to with the true masks of its question.

Needs the tokenizer of the words and the image, so a worker that has both computes it, for all responses about
an image at once. Torch loads with the tokenizer.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, UInt8

from samtok import masks
from samtok.errors import DataError
from samtok.metrics.text_masks import decode_unions
from samtok.rewards.answer import Answer, read
from samtok.rewards.response import Codes, Question, Response

if TYPE_CHECKING:
    from samtok.model.backbone import ImageFeatures
    from samtok.model.tokenizer import MaskTokenizer

NAME = "iou"
"""Of this component beside those of other rewards."""


class IouReward:
    """Scores responses by the union of their decoded words.

    Args:
        threshold: On logits of decoded masks. 0 is probability one half.
        max_words: A response with more different words than this, and than its truth has, earns 0 and is not
            decoded, so that naming everything does not hold up training.
    """

    def __init__(self, tokenizer: "MaskTokenizer", *, threshold: float = 0.0, max_words: int = 64) -> None:
        if max_words < 1:
            raise ValueError(f"max_words must be >= 1, got {max_words}.")
        self.tokenizer, self.threshold, self.max_words = tokenizer, threshold, max_words

    @classmethod
    def from_pretrained(cls, uri: str, *, device: str = "cpu", threshold: float = 0.0) -> "IouReward":
        """Loads the tokenizer; see ``MaskTokenizer.from_pretrained`` for names and errors."""
        from samtok.model.tokenizer import MaskTokenizer

        return cls(MaskTokenizer.from_pretrained(uri, device=device), threshold=threshold)

    def score(
        self,
        image: UInt8[np.ndarray, "height width 3"],
        questions: Sequence[Question],
        responses: Sequence[Response],
    ) -> list[float]:
        """Returns the IoU in [0, 1] of every response, all about one image, which is encoded once if any
        response or truth has words.

        The truth is the union of the original masks in the question's record, found by their codes; where
        the record has none, of the decoded true words. Without a target a response earns 1 if it names no
        mask, else 0; with one, a response without readable words earns 0. What is malformed is no mask, so
        a no-target with it is not right; elsewhere it costs nothing here, and something in ``mask`` only.

        Args:
            image: RGB, uint8, at the size of the record's masks.
            questions: The question of each response; those of one group may be the same object.

        Raises:
            ValueError: If the lengths differ, or the tokenizer has other codes than the questions.
            DataError: If a mask of a record does not fit the image.
        """
        height, width, _ = image.shape
        return self.score_encoded(
            lambda: self.tokenizer.features_of([image]), (height, width), questions, responses
        )

    def score_encoded(
        self,
        features: "Callable[[], ImageFeatures]",
        size_hw: tuple[int, int],
        questions: Sequence[Question],
        responses: Sequence[Response],
    ) -> list[float]:
        """As ``score``, of an image of a height and width that may have been encoded before."""
        if len(questions) != len(responses):
            raise ValueError(f"got {len(questions)} questions for {len(responses)} responses.")
        have = self.tokenizer.num_codes, self.tokenizer.num_levels
        for question in questions:
            if (question.num_codes, question.num_levels) != have:
                raise ValueError(
                    f"the question has {question.num_codes} codes on {question.num_levels} levels, its "
                    f"tokenizer {have[0]} on {have[1]}; give the one that made the words."
                )
        answers = [read(question, response) for question, response in zip(questions, responses, strict=True)]
        named = [self._decodable(*pair) for pair in zip(questions, answers, strict=True)]
        distinct = {id(question): question for question in questions}
        parts = {key: _true_parts(question) for key, question in distinct.items()}
        wanted = [*named, *(codes for _, codes in parts.values())]
        if any(wanted):
            unions = decode_unions(self.tokenizer, features(), wanted, size_hw, threshold=self.threshold)
        else:
            unions = [np.zeros(size_hw, bool) for _ in wanted]
        truths = {
            key: _union(distinct[key], rles, decoded)
            for (key, (rles, _)), decoded in zip(parts.items(), unions[len(named) :], strict=True)
        }
        values = []
        for question, answer, codes, union in zip(questions, answers, named, unions, strict=False):
            if answer.text is None:
                values.append(0.0)
            elif not question.truth:
                values.append(float(not answer.words and not answer.num_malformed))
            else:
                values.append(masks.iou(union, truths[id(question)]) if codes else 0.0)
        return values

    def _decodable(self, question: Question, answer: Answer) -> list[Codes]:
        distinct = list(dict.fromkeys(answer.words)) if question.truth else []
        return distinct if len(distinct) <= max(self.max_words, len(question.truth)) else []


def _true_parts(question: Question) -> tuple[list[str], list[Codes]]:
    """Returns the original masks of the truth as counts, and the codes of the masks that have none."""
    originals: dict[Codes, list[str]] = defaultdict(list)
    for mask in question.record.get("masks", ()):
        if mask["rle"] is not None:
            originals[tuple(mask["codes"])].append(mask["rle"])
    counts, rest = [], []
    for codes in question.truth:
        if originals[codes]:
            counts.append(originals[codes].pop(0))
        else:
            rest.append(codes)
    return counts, rest


def _union(
    question: Question, counts: Sequence[str], decoded: Bool[np.ndarray, "height width"]
) -> Bool[np.ndarray, "height width"]:
    if not counts:
        return decoded
    height, width = decoded.shape
    try:
        original = masks.decode(masks.union(counts, height=height, width=width), height=height, width=width)
    except DataError as error:
        raise DataError(
            f"true masks of sample {question.record.get('sample_id')!r} do not fit its image of {height} x "
            f"{width} pixels: {error}",
            reason=error.reason,
        ) from error
    return decoded | original
