"""Cheap ways to answer, without looking: what a reward must not pay as much as the truth.

By kind of question; each policy makes its answer out of the true one. ``earnings`` scores them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import Literal

from pipelines.grpo.reward.components import CAPTION_WEIGHTS, format_weights
from samtok.rewards import Question
from samtok.rewards.captions import is_caption
from samtok.words import END, START, format_words, word_of

Kind = Literal["target", "no target", "caption"]

NONE = "No target."
STRAY_PAIRS = 3
"""Codes of so many masks follow the answer of the policy of stray codes."""

_WORD = re.compile(rf"{re.escape(START)}(?:<\|mt_[0-9]+\|>)+{re.escape(END)}")
_TAG_OR_TOKEN = re.compile(r"(<[^<>]*>)|\w+")
_GIBBERISH = "lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A way to answer.

    Attributes:
        answer: The text to answer a question with; None where it is the truth itself, or cannot be said.
        remedy: What is to be done if this earns as much as the truth.
    """

    name: str
    answer: Callable[[Question], str | None]
    remedy: str = ""


def kind_of(question: Question) -> Kind:
    """Returns which policies a question is for."""
    if is_caption(question):
        return "caption"
    return "target" if question.truth else "no target"


def _truth(question: Question) -> str:
    return question.text


def _words(question: Question) -> list[str]:
    return [format_words(codes, num_codes=question.num_codes) for codes in question.truth]


def _some_codes(question: Question) -> str:
    """Returns the codes of a mask, the first of each level, without start and end."""
    levels = range(question.num_levels)
    return "".join(word_of(level, 0, num_codes=question.num_codes) for level in levels)


def _stray(question: Question) -> str:
    return question.text + _some_codes(question) * STRAY_PAIRS


def _too_long(question: Question) -> str:
    return question.text.replace(END, _some_codes(question) + END)


def _endless(question: Question) -> str:
    return question.text.replace(END, "")


def _one_word(question: Question) -> str | None:
    return _words(question)[0] if len(question.truth) > 1 else None


def _twice(question: Question) -> str:
    return f"{question.text} {question.text}"


def _near(question: Question) -> str | None:
    """Returns the answer with other last codes, so that no word is true."""
    known, text = set(question.truth), question.text
    for codes in known:
        others = [(*codes[:-1], code) for code in range(question.num_codes)]
        other = next((each for each in others if each not in known), None)
        if other is None:
            return None
        old, new = (format_words(each, num_codes=question.num_codes) for each in (codes, other))
        text = text.replace(old, new)
    return text


def _words_alone(question: Question) -> str:
    return ", ".join(_words(question))


def _gibberish(question: Question) -> str:
    """Returns the caption with other tokens, as many; words and marks stay."""
    others = cycle(_GIBBERISH.split())
    return _TAG_OR_TOKEN.sub(lambda found: found[1] or next(others), question.text)


def _swapped(question: Question) -> str | None:
    """Returns the caption with each word in the place of the one before it, the first in that of the last."""
    words = _WORD.findall(question.text)
    if len(set(words)) < 2:
        return None
    others = iter([*words[1:], words[0]])
    return _WORD.sub(lambda _: next(others), question.text)


def _without_words(question: Question) -> str | None:
    return _WORD.sub("", question.text) if question.truth else None


_COUNT = "with --reward.count-malformed the component mask counts it"
_PARTIAL = "a lower --reward.partial pays less for it"
_CAPTION = f"--reward.weights {format_weights(CAPTION_WEIGHTS)} tells it from the truth"

_TRUTH = Policy(name="the truth", answer=_truth)
_MALFORMED = (
    Policy(name="the truth, then stray codes", answer=_stray, remedy=_COUNT),
    Policy(name="codes too many in each word", answer=_too_long, remedy=_COUNT),
)

POLICIES: dict[Kind, tuple[Policy, ...]] = {
    "target": (
        _TRUTH,
        Policy(name=NONE, answer=lambda _: NONE),
        Policy(name="one true word", answer=_one_word),
        Policy(name="everything twice", answer=_twice),
        Policy(name="the last codes wrong", answer=_near, remedy=_PARTIAL),
        Policy(name="no word ends", answer=_endless),
        *_MALFORMED,
    ),
    "no target": (
        _TRUTH,
        Policy(name="a word", answer=lambda question: START + _some_codes(question) + END),
        Policy(name="codes without start and end", answer=_some_codes, remedy=_COUNT),
        Policy(name="a word without its end", answer=lambda q: START + _some_codes(q), remedy=_COUNT),
        Policy(name="a word without codes", answer=lambda _: START + END, remedy=_COUNT),
    ),
    "caption": (
        _TRUTH,
        Policy(name="words alone", answer=_words_alone, remedy=_CAPTION),
        Policy(name="gibberish with the right words", answer=_gibberish, remedy=_CAPTION),
        Policy(name="phrases swapped", answer=_swapped, remedy=_CAPTION),
        Policy(name="the caption without masks", answer=_without_words),
        Policy(name="one true word", answer=_one_word),
        Policy(name="everything twice", answer=_twice),
        *_MALFORMED,
    ),
}
"""By kind of question, the truth first."""
