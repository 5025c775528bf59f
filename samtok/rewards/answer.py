"""The part of a response that is scored, and the mask words in it."""

import math
import re
from dataclasses import dataclass

from samtok import words
from samtok.mllm.thinking import split_thinking
from samtok.rewards.response import Codes, Question, Response

_IN_SHAPE = r"<\|mt_start\|>(?:<\|mt_[0-9]{{4,9}}\|>){{{levels}}}<\|mt_end\|>"
_CODE = re.compile(r"<\|mt_[0-9]{4,9}\|>")


@dataclass(frozen=True)
class Answer:
    """The answer of a response.

    Attributes:
        text: What is scored; None if a thinking response has no tag where its answer begins, so that nothing
            of it can be scored.
        words: Codes of each mask in the order of the text, repeated ones included.
        num_misplaced: Words with codes of wrong levels, which are no masks. The pattern of the paper's reward
            counts these as words, though they are never true; all else that is malformed is free there.
        num_malformed: Stretches of mask tokens that are not exactly a word: starts and ends without one,
            codes outside of words, words with a code missing or of another level, and words with codes too
            many, which are read all the same. A stretch ends with an end token, before a start token, and
            where other text follows.
        num_broken: The predictions that the malformed stretches are taken for: one each, and together at
            least so many that the answer has a prediction for every ``num_levels`` codes of its text, those
            left over being one more. The authors' scripts pair all codes as they come, whatever stands
            around them, and find no more masks than that; nor does any other reading.
    """

    text: str | None
    words: tuple[Codes, ...] = ()
    num_misplaced: int = 0
    num_malformed: int = 0
    num_broken: int = 0


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
    most = math.ceil(len(_CODE.findall(text)) / question.num_levels)
    return Answer(
        text=text,
        words=tuple(found.codes),
        num_misplaced=sum(not _parse(word, question).codes for word in in_shape),
        num_malformed=found.num_malformed,
        num_broken=max(found.num_malformed, most - len(found.codes)),
    )


def _parse(text: str, question: Question) -> words.LenientParse:
    return words.parse_words_lenient(text, num_codes=question.num_codes, num_levels=question.num_levels)
