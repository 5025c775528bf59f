"""Grounded captions: how much of the true caption stands around the words of a response.

Eq. 5 compares words alone. The true words without a caption, in gibberish, or behind each other's phrases
earn everything by it, and the paper finds that its captions get worse. These components tell such captions
from the true one. All are in [0, 1], where 1 is the true caption. They are for questions of the task ``gcg``;
to every other question all of them are 1, so that with weights a mixed run adds the same to every response of
a group, from which nothing is learnt. Mean values over a run that asks other questions too are nearer to 1.

Tokens of a caption are its runs of letters and digits, without case, where everything in ``<...>`` is left
out, as the evaluation of grounded captions does it: mask words, marks of phrases, tags.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from samtok import words
from samtok.mllm.object_tokens import OBJECT_END, OBJECT_START
from samtok.rewards.answer import Answer
from samtok.rewards.response import Codes, Question

TASK = "gcg"
"""Of the chat rows that are captions."""

COMPONENTS = (
    "caption_length",  # shorter over longer, of the caption and the true one, in tokens
    "caption_repetition",  # 1: no three tokens come again; 0: nothing but that
    "caption_overlap",  # F1 of tokens and of neighbouring tokens with the true caption
    "phrase_structure",  # Eq. 5 where a true word earns what its phrase has of the true one
)
"""Names of the components. All of them are 1 for the true caption, the repetition too."""

REPEATED = 3
"""Tokens that make a repetition: two come again in any text ("of the"), and loops are found by three."""

_TAG = re.compile(r"<[^<>]*>")
_TOKEN = re.compile(r"\w+")
_MASK = re.compile(r"<\|mt_start\|>(?:<\|mt_[0-9]{4,9}\|>)+<\|mt_end\|>")

Tokens = tuple[str, ...]


class Phrase(NamedTuple):
    """What stands before a mask: the marked phrase, or in text without marks all that follows the mask before
    it. Masks with nothing but punctuation between them share a phrase."""

    tokens: Tokens
    marked: bool


def is_caption(question: Question) -> bool:
    """Returns whether a question asks for a grounded caption, by the task of its row."""
    return question.record.get("task") == TASK


def caption_components(question: Question, answer: Answer) -> dict[str, float]:
    """Returns all of ``COMPONENTS``; an answer that cannot be found has 0 in each."""
    if not is_caption(question):
        return dict.fromkeys(COMPONENTS, 1.0)
    if answer.text is None:
        return dict.fromkeys(COMPONENTS, 0.0)
    said, true = tokens_of(answer.text), tokens_of(question.text)
    return {
        "caption_length": length_ratio(said, true),
        "caption_repetition": freshness(said, true),
        "caption_overlap": overlap(said, true),
        "phrase_structure": phrase_structure(question, answer),
    }


def tokens_of(text: str) -> Tokens:
    """Returns the tokens of a caption; ``A dog <|mt_start|>...`` has ``("a", "dog")``."""
    return tuple(_TOKEN.findall(_TAG.sub(" ", text).casefold()))


def length_ratio(said: Sequence[str], true: Sequence[str]) -> float:
    """Returns the shorter over the longer length, in [0, 1], so that too short costs as too long does; 1 for
    two empty captions."""
    longer = max(len(said), len(true))
    return min(len(said), len(true)) / longer if longer else 1.0


def freshness(said: Sequence[str], true: Sequence[str]) -> float:
    """Returns the share of runs of ``REPEATED`` tokens that are new where they stand, in [0, 1].

    What the true caption repeats may be repeated as often. A caption of fewer tokens repeats nothing: 1.
    """
    found, allowed = _runs(said, REPEATED), _runs(true, REPEATED)
    if not found:
        return 1.0
    surplus = sum(max(count - max(allowed[run], 1), 0) for run, count in found.items())
    return 1.0 - surplus / found.total()


def overlap(said: Sequence[str], true: Sequence[str]) -> float:
    """Returns the F1 of two texts over their tokens and pairs of neighbouring tokens together, in [0, 1].

    The pairs make the order count. 1 for two empty texts, 0 if one is empty.
    """
    ours, theirs = (_runs(tokens, 1) + _runs(tokens, 2) for tokens in (said, true))
    both = ours.total() + theirs.total()
    return 2 * (ours & theirs).total() / both if both else 1.0


def phrase_structure(question: Question, answer: Answer) -> float:
    """Returns Eq. 5 with phrases, in [0, 1]: never more than ``mask`` with its default options.

    A predicted word that is true earns the ``overlap`` of the phrase before it with that before the same word
    of the truth; with a mark (``<|object_ref_start|> the dog <|object_ref_end|> WORD``) where the truth has
    none, or without one where it has, nothing. Of equal words the first is compared with the first, and so
    on, so a word cannot try several phrases. The divisor is that of ``mask_reward``, all that is malformed
    counted.
    """
    most = max(len(answer.words) + answer.num_broken, len(question.truth))
    if not most:
        return 1.0
    said, true = (_by_codes(text, question) for text in (answer.text or "", question.text))
    pairs = [pair for codes, phrases in true.items() for pair in zip(phrases, said[codes], strict=False)]
    return sum(_match(ours, theirs) for theirs, ours in pairs) / most


def phrases_of(text: str, *, num_codes: int, num_levels: int) -> Iterator[tuple[Codes, Phrase]]:
    """Yields the masks of a text with their phrases; linear in its length. ``the dog WORD, WORD on WORD`` has
    the phrase "the dog" twice, then "on". Broken words are passed over."""
    position, phrase = 0, Phrase((), False)
    for found in _MASK.finditer(text):
        parsed = words.parse_words_lenient(found[0], num_codes=num_codes, num_levels=num_levels)
        if parsed.codes:
            phrase = _phrase(text[position : found.start()]) or phrase
            position = found.end()
            yield parsed.codes[0], phrase


def _phrase(between: str) -> Phrase | None:
    """Returns the phrase at the end of what stands before a mask; None if that says nothing."""
    head, is_marked, rest = between.rpartition(OBJECT_END)
    if is_marked and not rest.strip():
        _, opened, inside = head.rpartition(OBJECT_START)
        if opened:
            return Phrase(tokens_of(inside), marked=True)
    tokens = tokens_of(between)
    return Phrase(tokens, marked=False) if tokens else None


def _match(said: Phrase, true: Phrase) -> float:
    return overlap(said.tokens, true.tokens) if said.marked == true.marked else 0.0


def _by_codes(text: str, question: Question) -> dict[Codes, list[Phrase]]:
    found: dict[Codes, list[Phrase]] = defaultdict(list)
    sizes = {"num_codes": question.num_codes, "num_levels": question.num_levels}
    for codes, phrase in phrases_of(text, **sizes):
        found[codes].append(phrase)
    return found


def _runs(tokens: Sequence[str], length: int) -> Counter[Tokens]:
    return Counter(tuple(tokens[start : start + length]) for start in range(len(tokens) - length + 1))
