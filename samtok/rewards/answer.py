"""The part of a response that is scored, and the mask words in it."""

import re
from dataclasses import dataclass

from samtok import words
from samtok.mllm.thinking import split_thinking
from samtok.rewards.response import Codes, Question, Response

_IN_SHAPE = r"<\|mt_start\|>(?:<\|mt_[0-9]{{4,9}}\|>){{{levels}}}<\|mt_end\|>"


@dataclass(frozen=True)
class Answer:
    """The answer of a response.

    Attributes:
        text: What is scored; None if a thinking response has no tag where its answer begins, so that nothing
            of it can be scored.
        words: Codes of each mask in the order of the text, repeated ones included.
        num_stray: Start tokens that begin no readable word: a code is missing or of another level, or the
            end token is missing. Such a word is no mask.
        num_misplaced: How many of the stray ones have the shape of a word, with codes of wrong levels. The
            pattern of the paper's reward counts these as words, though they are never true.
        num_malformed: Pieces of mask words that are not exactly a word: stray starts, codes outside of
            words, and words with codes too many, which are read all the same.
    """

    text: str | None
    words: tuple[Codes, ...] = ()
    num_stray: int = 0
    num_misplaced: int = 0
    num_malformed: int = 0


def read(question: Question, response: Response) -> Answer:
    """Reads the answer of a response; never fails on text.

    A prompt that asks for a thought is answered by what stands between the first ``<answer>`` and its end;
    without such a pair by what follows ``<answer>``, else ``</think>``; without any of them by nothing.
    Otherwise the whole response is the answer. Broken words are left out (``samtok.words``, policy "drop").
    """
    text = split_thinking(response.text).answer if question.thinking else response.text
    if text is None:
        return Answer(None)
    found = _parse(text, question)
    in_shape = re.findall(_IN_SHAPE.format(levels=question.num_levels), text)
    return Answer(
        text=text,
        words=tuple(found.codes),
        num_stray=text.count(words.START) - len(found.codes),
        num_misplaced=sum(not _parse(word, question).codes for word in in_shape),
        num_malformed=found.num_malformed,
    )


def _parse(text: str, question: Question) -> words.LenientParse:
    return words.parse_words_lenient(text, num_codes=question.num_codes, num_levels=question.num_levels)
