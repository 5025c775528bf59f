"""The form of a response, whatever it names: the tags of thinking, and repetition."""

import re
from collections import Counter

from samtok import words
from samtok.rewards.response import Question, Response

MOST_REPEATS = 3
"""A mask word may occur this often (the follow-up's rule for grounded captions), and so may a sentence."""

_TAG = re.compile(r"</?(?:think|answer)>")
_TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
_END_OF_TURN = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")
_SENTENCE_END = re.compile(r"[.!?\n]+")


def format_reward(question: Question, response: Response) -> float:
    """Returns 1 if the response has the form that its prompt asks for, else 0.

    A thinking prompt asks for ``<think> ... </think><answer> ... </answer>`` and nothing around it but space
    and the end of the turn (the pattern of EasyR1's ``r1v``), with every tag once: of two answers only the
    first would be scored. Any other prompt allows none of the four tags.
    """
    text = _without_end(response.text)
    tags = _TAG.findall(text)
    if not question.thinking:
        return float(not tags)
    whole = text.startswith("<think>") and text.endswith("</answer>")
    return float(tags == _TAGS and whole and text.partition("</think>")[2].lstrip().startswith("<answer>"))


def no_repeat_reward(question: Question, response: Response) -> float:
    """Returns 0 if a mask word or a sentence occurs too often, thought included, else 1.

    Sentences end at ``. ! ?`` or a new line and are compared without case and spacing.
    """
    found = words.parse_words_lenient(
        response.text, num_codes=question.num_codes, num_levels=question.num_levels
    )
    sentences = (" ".join(part.casefold().split()) for part in _SENTENCE_END.split(response.text))
    counts = Counter(found.codes).values(), Counter(filter(None, sentences)).values()
    return float(all(count <= MOST_REPEATS for of_kind in counts for count in of_kind))


def _without_end(text: str) -> str:
    """Returns a text without the ends of its turn, and without space around it; linear, unlike a pattern."""
    end = len(text)
    while True:
        while end and text[end - 1].isspace():
            end -= 1
        token = next((token for token in _END_OF_TURN if text.endswith(token, 0, end)), None)
        if token is None:
            return text[:end].lstrip()
        end -= len(token)
