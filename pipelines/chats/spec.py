"""Naming one chat corpus of several in a flag: ``uri=FOLDER,weight=2,limit=1000``."""

import math
from dataclasses import dataclass

from samtok.errors import ConfigError

_KEYS = ("uri", "weight", "limit")


@dataclass(frozen=True)
class ChatCorpusSpec:
    """One chat corpus of several.

    Attributes:
        uri: Its folder.
        weight: How much of the mixture it is, relative to the others; None: by its size.
        limit: Take only its first samples.
    """

    uri: str
    weight: float | None = None
    limit: int | None = None

    @classmethod
    def parse(cls, text: str, *, flag: str) -> "ChatCorpusSpec":
        """Reads ``FOLDER``, or ``uri=FOLDER,weight=2,limit=1000``.

        Raises:
            ConfigError: Names the flag, the bad part, and what would be right.
        """
        where = f"--{flag} {text}"
        if "=" not in text:
            text = f"uri={text}"
        parts: dict[str, str] = {}
        for part in text.split(","):
            key, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or not value or key not in _KEYS or key in parts:
                raise ConfigError(f"{where}: {part!r} is not one of uri=, weight=, limit=, each once")
            parts[key] = value
        if "uri" not in parts:
            raise ConfigError(f"{where}: it lacks uri=, the folder of a chat corpus")
        return cls(parts["uri"], _weight(parts.get("weight"), where), _limit(parts.get("limit"), where))


def _weight(text: str | None, where: str) -> float | None:
    try:
        weight = None if text is None else float(text)
    except ValueError:
        weight = math.nan
    if weight is not None and not 0 < weight < math.inf:
        raise ConfigError(f"{where}: weight must be a number above 0, got {text}")
    return weight


def _limit(text: str | None, where: str) -> int | None:
    if text is not None and not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise ConfigError(f"{where}: limit must be a whole number of at least 1, got {text}")
    return None if text is None else int(text)
