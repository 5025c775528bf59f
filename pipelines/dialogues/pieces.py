"""Text that names masks, before it has words: pieces of plain text and references to masks.

Templates are ours and are filled with pieces; what comes from datasets is checked first, since a mask word or
a control token in it would be read as one. Offsets in a text stay what they are: nothing is escaped.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter

from pipelines.chats.tokens import refuse_control_tokens
from samtok.errors import DataError


@dataclass(frozen=True)
class Ref:
    """Stands for the words of one mask."""

    mask_id: str


Pieces = tuple[str | Ref, ...]


@dataclass(frozen=True)
class Message:
    """One message of a chat before its masks have words."""

    role: str
    pieces: Pieces


_PLACEHOLDER = re.compile(r"<masks?\b[^<>]*>", re.IGNORECASE)
_INDEX = re.compile(r"<mask ([0-9]{1,9})>")


def fill(template: str, **fields: str | Pieces) -> Pieces:
    """Puts fields into a template of ours; fields are not templates.

    ``fill("Segment {phrase}.", phrase="the {cat}")`` is ``("Segment the {cat}.",)``.
    """
    found: list[str | Ref] = []
    for literal, name, _, _ in Formatter().parse(template):
        found.append(literal)
        if name is not None:
            value = fields[name]
            found += [value] if isinstance(value, str) else value
    return joined(found)


def joined(pieces: Sequence[str | Ref]) -> Pieces:
    """Returns the same with neighbouring texts made one and empty ones left out."""
    found: list[str | Ref] = []
    for piece in pieces:
        if isinstance(piece, str) and found and isinstance(found[-1], str):
            found[-1] += piece
        elif piece != "":
            found.append(piece)
    return tuple(found)


def foreign(text: str | None, what: str) -> str:
    """Returns a text of a dataset unchanged, if it may stand in a chat.

    Args:
        text: The dataset's.
        what: What it is, for the message.

    Raises:
        DataError: ``empty_text`` without any, ``control_token`` if it holds mask words or other tokens of a
            model's control, or the placeholder of an image; ``text_encoding`` for half a character.
    """
    if text is None or not text.strip():
        raise DataError(f"{what} is empty", reason="empty_text")
    refuse_control_tokens(text, what)
    return text


def phrase_of(text: str | None, what: str) -> str:
    """Returns a foreign text on one line, without the full stop at its end, to stand inside a sentence."""
    phrase = " ".join(foreign(text, what).split()).rstrip(".").rstrip()
    return foreign(phrase, what)


def with_masks(text: str | None, mask_ids: Sequence[str], what: str) -> Pieces:
    """Replaces ``<mask 0>``, ``<mask 1>`` in a foreign text by references to masks.

    Raises:
        DataError: As ``foreign``; ``mask_reference`` for a number that is none of ``mask_ids``, or for
            something that looks like a placeholder and is none.
    """
    text, found, position = foreign(text, what), [], 0
    for placeholder in _PLACEHOLDER.finditer(text):
        index = _INDEX.fullmatch(placeholder[0])
        if index is None or int(index[1]) >= len(mask_ids):
            raise DataError(
                f"{what} names {placeholder[0]}; the annotation has {len(mask_ids)} masks, and the first is "
                "written <mask 0>",
                reason="mask_reference",
            )
        found += [text[position : placeholder.start()], Ref(mask_ids[int(index[1])])]
        position = placeholder.end()
    return joined([*found, text[position:]])


def listed(mask_ids: Sequence[str], separator: str = ", ", last: str | None = None) -> Pieces:
    """Returns references with separators: ``WORD, WORD``; ``last`` stands before the last one instead."""
    found: list[str | Ref] = []
    for place, mask_id in enumerate(mask_ids):
        if place:
            found.append(last if last is not None and place == len(mask_ids) - 1 else separator)
        found.append(Ref(mask_id))
    return joined(found)
