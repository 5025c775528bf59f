"""Tokens that have a meaning of their own in the texts of chats. Loads no torch."""

import re

from samtok.errors import DataError
from samtok.mllm.object_tokens import OBJECT_END, OBJECT_START

_OURS = re.compile(rf"{re.escape(OBJECT_START)}|{re.escape(OBJECT_END)}|<\|mt_(?:start|end|[0-9]{{4,9}})\|>")
_CONTROL = re.compile(r"<\||</?(?:s|image|video|img|vid)>|<image \d+>", re.IGNORECASE)


def without_ours(text: str) -> str:
    """Returns a text without mask words and the tokens around phrases, which may be in it."""
    return _OURS.sub("", text)


def refuse_control_tokens(text: str, what: str) -> None:
    """Refuses a text, from which tokens that may be in it were taken, that a model would not read as text.

    Raises:
        DataError: ``control_token`` for a control token or the placeholder of an image, ``text_encoding``
            for half a character, as JSON's escapes can write it.
    """
    token = _CONTROL.search(text)
    if token is not None:
        around = text[token.start() : token.start() + 24]
        raise DataError(
            f"{what} has {around!r} at character {token.start()}; mask words, control tokens and "
            "placeholders of images cannot stand in a dataset's text",
            reason="control_token",
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{what} is no valid Unicode: {error}", reason="text_encoding") from error
