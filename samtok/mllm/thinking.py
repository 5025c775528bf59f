"""Splits what a model wrote into its thought and its answer, as the authors' scripts do. Loads no torch."""

import re
from typing import NamedTuple

_TAGS = re.compile(r"</?(?:think|answer)>")


class Thought(NamedTuple):
    """A text in two; both are None if it has no tags between them."""

    think: str | None
    answer: str | None


def between(text: str, start: str, end: str) -> tuple[str, str] | None:
    """Returns what stands between the first ``start`` and the ``end`` that follows it, and what comes after;
    None without them. Linear, while a pattern ``start(.*?)end`` takes the square of the text's length."""
    _, opened, rest = text.partition(start)
    inside, closed, after = rest.partition(end)
    return (inside, after) if opened and closed else None


def split_thinking(text: str) -> Thought:
    """Splits a text that should be ``<think> ... </think><answer> ... </answer>``.

    The first pair of each counts. If one of the two pairs is missing, what comes after ``<answer>`` is the
    answer, else what comes after ``</think>``, and what comes before is the thought; tags are left out.
    """
    think, answer = between(text, "<think>", "</think>"), between(text, "<answer>", "</answer>")
    if think and answer:
        return Thought(think[0], answer[0])
    for tag in ("<answer>", "</think>"):
        head, found, tail = text.partition(tag)
        if found:
            return Thought(_TAGS.sub("", head), _TAGS.sub("", tail))
    return Thought(None, None)


def answer_of(text: str) -> str:
    """Returns the part that the authors' GRES script scores: the answer, or all of a text without tags."""
    answer = split_thinking(text).answer
    return text if answer is None else answer
