"""Mask words: the text form of mask codes (paper, section 3.1 and appendix B), written and read.

The codes ``(12, 45)`` of one mask are ``<|mt_start|><|mt_0012|><|mt_0301|><|mt_end|>``: level ``l`` counts
from ``num_codes * l``, with at least four digits. ``parse_words`` is for text that we wrote and is strict;
``parse_words_lenient`` and ``parse_words_single_slot`` are for text that a model wrote. The flows of the
authors' evaluation scripts (github.com/bytedance/Sa2VA, projects/samtok/evaluation) are reproduced under
the name "reference", because published numbers depend on how they repair broken words.

Loads neither torch nor numpy, so that rewards and CPU workers start fast.
"""

import operator
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, SupportsIndex

from samtok.errors import DataError

START, END = "<|mt_start|>", "<|mt_end|>"

POLICIES = ("drop", "depth1", "reference")
"""What to do with a broken word: leave it out, keep its first code alone, or what the authors' scripts do."""

INVALID_CODE = -1
"""Stands for an unusable second code under "reference". The authors' decoder takes it for code 0."""

_TOKEN = re.compile(r"<\|mt_(?:(start|end|[0-9]{4,9})\|>)?")  # the bare prefix is a token too: a broken one
_LOOSE_CODE = re.compile(r"<\|mt_([0-9]{4})\|>")
_CODE = r"<\|mt_[0-9]{4}\|>"
_REPAIRS = (  # in the order in which the reference applies them
    (re.compile(rf"<\|mt_start\|>({_CODE}{_CODE})(?:{_CODE})+<\|mt_end\|>"), rf"{START}\1{END}"),
    (re.compile(rf"<\|mt_start\|>({_CODE})<\|mt_end\|>"), rf"{START}\1<|mt_9999|>{END}"),
    (re.compile(rf"<\|mt_start\|>({_CODE})(?!<\|mt_)"), rf"{START}\1<|mt_9999|>{END}"),
)
_PAIR = re.compile(r"<\|mt_start\|><\|mt_([0-9]{4})\|><\|mt_([0-9]{4})\|><\|mt_end\|>")


@dataclass(frozen=True, kw_only=True)
class LenientParse:
    """What could be read of a generated text.

    Attributes:
        codes: One tuple per mask, in the order of the text: a code per level, each in ``[0, num_codes)``.
            Under "depth1" a broken word gives its first code only; under "reference" its second code is
            ``INVALID_CODE``.
        num_malformed: Stretches of mask tokens that are not a well-formed word, whatever the policy made
            of them. 0 exactly if ``parse_words`` accepts the text.
    """

    codes: list[tuple[int, ...]]
    num_malformed: int


class _Stretch(NamedTuple):
    """Mask tokens that belong together: a word, a word with codes too many, a broken word, or nothing."""

    codes: tuple[int, ...]
    kind: Literal["well-formed", "complete", "broken", "nothing"]


def word_of(level: int, code: SupportsIndex, *, num_codes: int = 256) -> str:
    """Returns the word of one code: level 1, code 45 is ``<|mt_0301|>`` with 256 codes per level."""
    code = operator.index(code)  # small integers of NumPy would overflow below
    if level < 0 or not 0 <= code < num_codes:
        raise ValueError(
            f"level {level}, code {code}: expected a level from 0 and a code in [0, {num_codes})."
        )
    return f"<|mt_{num_codes * level + code:04d}|>"


def all_words(num_codes: int = 256, num_levels: int = 2) -> list[str]:
    """Returns every word that an MLLM needs, in the order start, codes of level 0, 1, ..., end."""
    if num_codes < 1 or num_levels < 1:
        raise ValueError(f"num_codes and num_levels must be >= 1, got {num_codes} and {num_levels}.")
    codes = [
        word_of(level, code, num_codes=num_codes) for level in range(num_levels) for code in range(num_codes)
    ]
    return [START, *codes, END]


def format_words(codes: Iterable[SupportsIndex], *, num_codes: int = 256) -> str:
    """Returns the text of one mask from its code per level; ValueError for no codes or one out of range.

    The codes may be a list, or a row of what ``MaskTokenizer.encode`` returns.
    """
    words = [word_of(level, code, num_codes=num_codes) for level, code in enumerate(codes)]
    if not words:
        raise ValueError("a mask needs at least one code, got none.")
    return "".join([START, *words, END])


def parse_words(text: str, *, num_codes: int = 256, num_levels: int = 2) -> list[tuple[int, ...]]:
    """Reads the masks of a text, in order; text without mask words gives none.

    Raises:
        DataError: ``malformed_words`` if any mask token, or piece of one, is not part of a word of exactly
            ``num_levels`` codes, each of its level, with nothing between the tokens.
    """
    masks: list[tuple[int, ...]] = []
    codes: list[int] | None = None  # of the word that is open
    position = 0
    for token in _TOKEN.finditer(text):
        if codes is None:
            position = token.start()
        if token.start() != position or not _continues(codes, token[1], num_codes, num_levels):
            raise _malformed(text, position, codes, num_codes, num_levels)
        if codes is None:
            codes = []
        elif len(codes) == num_levels:
            masks.append(tuple(codes))
            codes = None
        else:
            codes.append(int(token[1]) - num_codes * len(codes))
        position = token.end()
    if codes is not None:
        raise _malformed(text, position, codes, num_codes, num_levels)
    return masks


def parse_words_lenient(
    text: str, *, num_codes: int = 256, num_levels: int = 2, policy: str = "drop"
) -> LenientParse:
    """Reads as many masks as a generated text holds; never fails on text.

    Under "drop" and "depth1" a word starts at a start token and ends with its end token, at the next start
    token, or where other text follows. Too many codes keep the first ones. A first code of another level,
    an empty word and codes outside a word give nothing. Otherwise the word is broken: a code is missing or
    of another level, or the end token is missing; "drop" leaves it out, "depth1" keeps its first code.

    "reference" is the flow of the authors' GRES and GroundingSuite scripts: an even number of codes is
    paired as it comes, whatever the start and end tokens; an odd number is repaired by substitutions, and
    what is still no word is lost. Then a pair with an invalid first code is left out (where all are, the
    authors' script stops; this gives no masks), and an invalid second code becomes ``INVALID_CODE``.
    Their GCG script differs; their single-mask scripts are ``parse_words_single_slot``.

    Raises:
        ValueError: For an unknown policy, or "reference" with other than 2 levels.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}.")
    stretches = [_read_stretch(names, num_codes, num_levels) for names in _stretches(text)]
    if policy == "reference":
        _require_two_levels(num_levels)
        codes = _reference_pairs(text, num_codes)
    else:
        wanted = ("well-formed", "complete") if policy == "drop" else ("well-formed", "complete", "broken")
        codes = [stretch.codes for stretch in stretches if stretch.kind in wanted]
    return LenientParse(codes=codes, num_malformed=sum(s.kind != "well-formed" for s in stretches))


def parse_words_single_slot(
    text: str, *, num_codes: int = 256, num_levels: int = 2
) -> tuple[int, int] | None:
    """Reads one mask as the authors' single-mask scripts do (RefCOCO family, multi-round, PSG).

    Every code anywhere in the text goes to the slot of its level and overwrites what was there, so two
    words give the last one and codes of different words can mix. A missing second code is ``INVALID_CODE``.

    Returns:
        The two codes, or None (an empty mask) without a code of level 0.

    Raises:
        DataError: ``malformed_words`` for a code beyond the last level, where the authors' script stops.
        ValueError: For other than 2 levels.
    """
    _require_two_levels(num_levels)
    slots: list[int | None] = [None, None]
    for token in _LOOSE_CODE.finditer(text):
        level, code = divmod(int(token[1]), num_codes)
        if level >= num_levels:
            raise DataError(
                f"{token[0]} at character {token.start()} is beyond the last code, "
                f"{num_levels * num_codes - 1}; the reference cannot score this text.",
                reason="malformed_words",
            )
        slots[level] = code
    first, second = slots
    return None if first is None else (first, INVALID_CODE if second is None else second)


def _code_of_level(name: str | None, level: int, num_codes: int) -> int | None:
    """Returns the code that a token's digits mean at this level, None if they mean none."""
    if name is None or not name.isdecimal():
        return None
    code = int(name) - num_codes * level
    return code if 0 <= code < num_codes and name == f"{int(name):04d}" else None


def _stretches(text: str) -> Iterator[list[str | None]]:
    """Splits mask tokens where a word starts, after its end, and where other text is between them."""
    names: list[str | None] = []
    position = 0
    for token in _TOKEN.finditer(text):
        if names and (token.start() != position or token[1] == "start" or names[-1] == "end"):
            yield names
            names = []
        names.append(token[1])
        position = token.end()
    if names:
        yield names


def _read_stretch(names: list[str | None], num_codes: int, num_levels: int) -> _Stretch:
    closed = names[-1] == "end"
    inside = names[1:-1] if closed else names[1:]
    codes = [_code_of_level(name, level, num_codes) for level, name in enumerate(inside[:num_levels])]
    valid = tuple(code for code in codes if code is not None)
    if names[0] != "start" or not codes or codes[0] is None:
        return _Stretch((), "nothing")
    if closed and len(valid) == num_levels:
        return _Stretch(valid, "well-formed" if len(inside) == num_levels else "complete")
    return _Stretch(valid[:1], "broken")


def _reference_pairs(text: str, num_codes: int) -> list[tuple[int, ...]]:
    numbers = _LOOSE_CODE.findall(text)
    if len(numbers) % 2:
        for pattern, repaired in _REPAIRS:
            text = pattern.sub(repaired, text)
        pairs = _PAIR.findall(text)
    else:
        pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    kept = [(int(first), int(second) - num_codes) for first, second in pairs if int(first) < num_codes]
    return [(first, second if 0 <= second < num_codes else INVALID_CODE) for first, second in kept]


def _require_two_levels(num_levels: int) -> None:
    if num_levels != 2:
        raise ValueError(
            f"the reference reads words of 2 levels, got {num_levels}; use the policy drop or depth1 instead."
        )


def _continues(codes: list[int] | None, name: str | None, num_codes: int, num_levels: int) -> bool:
    if codes is None:
        return name == "start"
    if len(codes) == num_levels:
        return name == "end"
    return _code_of_level(name, len(codes), num_codes) is not None


def _malformed(
    text: str, position: int, codes: list[int] | None, num_codes: int, num_levels: int
) -> DataError:
    if codes is None:
        expected = START
    elif len(codes) == num_levels:
        expected = END
    else:
        first, last = (word_of(len(codes), code, num_codes=num_codes) for code in (0, num_codes - 1))
        expected = f"a code of level {len(codes)}, {first} to {last}"
    got = repr(text[position : position + 24]) if position < len(text) else "the end of the text"
    return DataError(
        f"mask words are malformed at character {position}: expected {expected}, got {got}.",
        reason="malformed_words",
    )
