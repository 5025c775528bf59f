"""Naming one chat corpus of several in a flag: ``uri=FOLDER,weight=2,limit=1000``."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from pipelines.config import PlaceMark, format_pairs, number, parse_pairs
from samtok.errors import ConfigError


def names_apart(uris: Sequence[str]) -> list[str]:
    """Returns the last parts of each URI, as few as tell different ones apart."""
    parts = [uri.rstrip("/").split("/") for uri in uris]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(set(map(tuple, parts))):
            return names
    return list(uris)


@dataclass(frozen=True)
class ChatCorpusSpec:
    """One chat corpus of several."""

    uri: str
    weight: float | None = None  # share of the mixture, relative to the others; None: by its size
    limit: int | None = None  # take only its first samples

    @classmethod
    def parse(cls, text: str, *, flag: str) -> "ChatCorpusSpec":
        """Reads ``FOLDER``, or ``uri=FOLDER,weight=2,limit=1000``; a folder with a comma stands in quotes.

        Raises:
            ConfigError: Names the flag (given without dashes), the bad part, and what would be right.
        """
        if "=" not in text:
            return cls(text)
        where = f"--{flag} {text}"
        parts = parse_pairs(text, flag=flag, keys=("uri", "weight", "limit"))
        if "uri" not in parts:
            raise ConfigError(f"{where}: uri=, the folder of a chat corpus, must be given.")
        weight, limit = parts.get("weight"), parts.get("limit")
        return cls(
            parts["uri"],
            None if weight is None else number(weight, where=f"{where}: weight"),
            None if limit is None else int(number(limit, where=f"{where}: limit", kind=int)),
        )


def _rewritten(text: str, absolute: Callable[[str], str]) -> str:
    """Makes the folder of a corpus in one flag absolute; a text that cannot be read stays."""
    if "=" not in text:
        return absolute(text)
    try:
        spec = ChatCorpusSpec.parse(text, flag="chats")
    except ConfigError:
        return text  # refused where it is read, with its flag
    return format_pairs(dataclasses.asdict(spec) | {"uri": absolute(spec.uri)})


ChatCorpusText = Annotated[str, PlaceMark(rewrite=_rewritten)]
"""Type of a field that holds a chat corpus as ``ChatCorpusSpec.parse`` reads it."""
