"""Splits what a model wrote into its thought and its answer, as the authors' scripts do. Loads no torch."""

import re
from typing import NamedTuple

_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_TAGS = re.compile(r"</?(?:think|answer)>")


class Thought(NamedTuple):
    """A text in two; both are None if it has no tags between them."""

    think: str | None
    answer: str | None


def split_thinking(text: str) -> Thought:
    """Splits a text that should be ``<think> ... </think><answer> ... </answer>``.

    The first pair of each counts. If one of the two pairs is missing, what comes after ``<answer>`` is the
    answer, else what comes after ``</think>``, and what comes before is the thought; tags are left out.
    """
    think, answer = _THINK.search(text), _ANSWER.search(text)
    if think and answer:
        return Thought(think[1], answer[1])
    for tag in ("<answer>", "</think>"):
        head, found, tail = text.partition(tag)
        if found:
            return Thought(_TAGS.sub("", head), _TAGS.sub("", tail))
    return Thought(None, None)


def answer_of(text: str) -> str:
    """Returns the part that the authors' GRES script scores: the answer, or all of a text without tags."""
    answer = split_thinking(text).answer
    return text if answer is None else answer
