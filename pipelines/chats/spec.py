"""Naming one chat corpus of several in a flag: ``uri=FOLDER,weight=2,limit=1000``; or several in a file."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pipelines import storage
from pipelines.config import PlaceMark, format_pairs, number, parse_pairs
from pipelines.ingestion.mixtures import MIXTURE_SUFFIXES, below, read_entries
from samtok.errors import ConfigError

_KEYS = ("uri", "weight", "limit")


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
        return cls._of_parts(parse_pairs(text, flag=flag, keys=_KEYS), f"--{flag} {text}")

    @classmethod
    def _of_parts(cls, parts: Mapping[str, str], where: str) -> "ChatCorpusSpec":
        if "uri" not in parts:
            raise ConfigError(f"{where}: uri=, the folder of a chat corpus, must be given.")
        weight, limit = parts.get("weight"), parts.get("limit")
        return cls(
            parts["uri"],
            None if weight is None else number(weight, where=f"{where}: weight"),
            None if limit is None else int(number(limit, where=f"{where}: limit", kind=int)),
        )


def chat_specs_of(texts: Sequence[str], *, flag: str) -> list[ChatCorpusSpec]:
    """Reads the chat corpora of a flag; a mixture file (``pipelines.ingestion.mixtures``), whose name ends
    with ``.yaml``, stands for its ``chats``. Raises ConfigError as ``ChatCorpusSpec.parse``, and for a file
    that has none or an unknown key."""
    specs = []
    for text in texts:
        if not text.endswith(MIXTURE_SUFFIXES):
            specs.append(ChatCorpusSpec.parse(text, flag=flag))
            continue
        entries = read_entries(text, flag=f"--{flag}").chats
        for place, entry in enumerate(entries, start=1):
            where = f"--{flag} {text}: chats[{place}]"
            root = entry.get("root", "")
            if unknown := sorted(set(entry) - {*_KEYS, "root"}):
                raise ConfigError(f"{where} has the key {unknown[0]}, expected {', '.join(_KEYS)}.")
            spec = ChatCorpusSpec._of_parts(entry, where)
            specs.append(dataclasses.replace(spec, uri=storage.absolute(below(root, spec.uri))))
        if not entries:
            raise ConfigError(f"--{flag} {text} names no chats.")
    return specs


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
"""Type of a field that holds a chat corpus, or a mixture file, as ``chat_specs_of`` reads it."""
