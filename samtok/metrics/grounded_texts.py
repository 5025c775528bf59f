"""From an answer with masks in it to its caption, its phrases and the codes of its masks.

Two forms of answer are read. The authors' mark phrases, ``<|object_ref_start|> the dog <|object_ref_end|>
WORD, WORD``; the other form does not, ``the dog WORD, WORD``. ``WORD`` is a mask (``samtok.words``).

Loads no torch.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from samtok import words
from samtok.metrics.referring import MODES, Mode
from samtok.mllm.object_tokens import OBJECT_END, OBJECT_START

Codes = tuple[int, ...]

_MASKS = re.compile(r"((?:<\|mt_(?:(?:start|end|[0-9]{4,9})\|>)?)+)")
_JOINER = re.compile(r"\s*(?:,|&|(?:,\s*)?and\b)?\s*")
"""Between masks of one phrase."""

_AND = re.compile(r"^(?:and|&)\s+")

_MARKED = re.compile(
    rf"{re.escape(OBJECT_START)}((?:(?!{re.escape(OBJECT_START)}).)*){re.escape(OBJECT_END)}\s*$", re.DOTALL
)
"""A marked phrase before a mask."""

_BREAK = re.compile(
    r"<\|object_ref_(?:start|end)\|>|[.,;:!?](?=\s|$)|[()\[\]{}\"\u201c\u201d\n]|(?<=\s)[-\u2013\u2014]+(?=\s)|\u2014"
)
"""Where a phrase that is not marked cannot go on."""

_CONTROL = re.compile(r"<\|[^<>|\s]*\|>|</?s>")
_SPACE_BEFORE = re.compile(r"\s+(?=[.,;:!?](?:\s|$))")

_OFFICIAL_PHRASE = re.compile(r"<\|object_ref_start\|>(.*?)<\|object_ref_end\|>")
_OFFICIAL_TAG = re.compile(r"<.*?>")
_LOOSE_CODE = re.compile(r"<\|mt_([0-9]{4})\|>")
_LOOSE_WORD = re.compile(r"<\|mt_start\|>((?:<\|mt_[0-9]+\|>)+)(<\|mt_end\|>)?(?=(<\|mt_)?)")
_NO_CODE = "<|mt_9999|>"
"""What the authors' scripts put where a second code is missing."""


@dataclass(frozen=True, kw_only=True)
class GroundedText:
    """What an answer says.

    Attributes:
        caption: Its text without masks and tokens.
        phrases: In "strict" one for each mask, a phrase with several masks repeated; "" where a mask has
            none. In "official" one for each marked phrase, whatever the number of its masks.
        codes: Of each mask, a code per level.
        num_malformed: Stretches of mask tokens that are no well-formed word, as ``parse_words_lenient`` has
            them.
    """

    caption: str
    phrases: tuple[str, ...]
    codes: tuple[Codes, ...]
    num_malformed: int


def read_answer(
    text: str,
    *,
    mode: Mode = "strict",
    num_codes: int = 256,
    num_levels: int = 2,
    broken_words: Literal["drop", "depth1"] = "drop",
) -> GroundedText:
    """Reads an answer; any text can be read. Of a thinking model's, give the answer part alone.

    In "strict" the phrase of a mask is the marked one right before it. Where none is, it is the last words
    before it that no punctuation, mark or mask parts, without an "and" in front: in "the dog WORD chases a
    ball WORD" the second phrase is "chases a ball", since an unmarked answer does not say where a phrase
    begins. Masks with nothing but a comma or "and" between them share a phrase, and the caption leaves these
    out.

    "official" is what the authors' script does, quirks included: what precedes "ASSISTANT: " is cut off; line
    breaks go without a space in their place; all between ``<`` and the next ``>`` goes; phrases are marked
    ones only; codes are paired as they come if their number is even, and words are repaired if it is odd; a
    code beyond its level becomes ``words.INVALID_CODE``. Where that script stops, this gives no masks.

    Args:
        broken_words: In "strict": leave a broken word out, or keep its first code alone.

    Raises:
        ValueError: For an unknown mode, or "official" with other than 2 levels.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}.")
    if mode == "official":
        return _read_official(text, num_codes, num_levels)
    caption, phrases, codes, num_malformed = [], [], [], 0
    for said, phrase, tokens in _parts(text):
        found = words.parse_words_lenient(
            tokens, num_codes=num_codes, num_levels=num_levels, policy=broken_words
        )
        caption.append(said)
        phrases += [phrase] * len(found.codes)
        codes += found.codes
        num_malformed += found.num_malformed
    return GroundedText(
        caption=_SPACE_BEFORE.sub("", _clean(" ".join(caption))),
        phrases=tuple(phrases),
        codes=tuple(codes),
        num_malformed=num_malformed,
    )


def _parts(text: str) -> Iterator[tuple[str, str, str]]:
    """Yields text, the phrase that ends it, and the mask tokens that follow; the last have none."""
    pieces = _MASKS.split(text)
    phrase = ""
    for place in range(0, len(pieces), 2):
        said, tokens = pieces[place], "".join(pieces[place + 1 : place + 2])
        if place and tokens and _JOINER.fullmatch(said):
            said = ""
        else:
            phrase = _phrase_at_end(said)
        yield said, phrase, tokens


def _phrase_at_end(said: str) -> str:
    marked = _MARKED.search(said)
    if marked:
        return _clean(marked[1])
    stretches = [stretch for part in _BREAK.split(said) if (stretch := _clean(part))]
    return _AND.sub("", stretches[-1]) if stretches else ""


def _clean(text: str) -> str:
    """Returns a text without control tokens, words parted by single spaces."""
    return " ".join(_CONTROL.sub(" ", text).split())


def _read_official(text: str, num_codes: int, num_levels: int) -> GroundedText:
    if num_levels != 2:
        raise ValueError(
            f"the authors' script reads words of 2 levels, got {num_levels}; use strict instead."
        )
    answer = text.replace("<s>", "").replace("\n", "").replace("  ", " ").split("ASSISTANT: ")[-1]
    phrases = tuple(phrase.strip() for phrase in _OFFICIAL_PHRASE.findall(answer))
    caption = " ".join(_OFFICIAL_TAG.sub("", answer).split()).strip("'").strip()
    return GroundedText(
        caption=caption,
        phrases=phrases,
        codes=_official_codes(text, num_codes),
        num_malformed=words.parse_words_lenient(text, num_codes=num_codes).num_malformed,
    )


def _official_codes(text: str, num_codes: int) -> tuple[Codes, ...]:
    """Returns pairs of codes as the authors' script for grounded captions has them; none where it stops."""
    found = _LOOSE_CODE.findall(text)
    if len(found) % 2:
        found = _LOOSE_CODE.findall(_LOOSE_WORD.sub(_repair, text))
    if len(found) % 2:
        return ()
    numbers = [int(number) for number in found]
    pairs = [(a, b - num_codes) for a, b in zip(numbers[::2], numbers[1::2], strict=True)]
    if any(second < words.INVALID_CODE for _, second in pairs):
        return ()  # the decoder refuses a code of the first book in second place
    return tuple((_or_invalid(a, num_codes), _or_invalid(b, num_codes)) for a, b in pairs)


def _or_invalid(code: int, num_codes: int) -> int:
    return code if code < num_codes else words.INVALID_CODE


def _repair(word: re.Match[str]) -> str:
    """Keeps two codes of a closed word with more, and puts a second code where there is one."""
    codes, closed, goes_on = re.findall(r"<[^>]*>", word[1]), word[2], word[3]
    if len(codes) > 2 and closed:
        return f"{words.START}{codes[0]}{codes[1]}{words.END}"
    if len(codes) == 1 and (closed or not goes_on):
        return f"{words.START}{codes[0]}{_NO_CODE}{words.END}"
    return word[0]
