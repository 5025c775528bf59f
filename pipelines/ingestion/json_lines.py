"""The one reader of JSON lines: files of chats, replies and responses that other people wrote.

A file that is no JSON lines at all is a ConfigError, a line that cannot be read a DataError of that line.
"""

import codecs
import contextlib
import json
from collections.abc import Iterator
from itertools import count
from typing import Any, NamedTuple

from pipelines import storage
from pipelines.ingestion.records import parse_json
from samtok.errors import ConfigError, DataError

MAX_LINE_BYTES = 16 * 2**20
"""Longest line that is read; what is longer is no chat, and would have to fit into memory."""
MAX_DEPTH = 64
"""Lists and objects inside each other."""

_HEAD_BYTES = 2**20


class Line(NamedTuple):
    """A line that is not blank."""

    number: int  # from 1, blank lines counted
    offset: int  # of its first byte
    size: int  # in bytes, with its end
    raw: bytes  # at most ``MAX_LINE_BYTES`` and one of them


def read_lines(uri: str, *, flag: str) -> Iterator[Line]:
    """Yields the lines of a file; ``flag`` (with dashes) is the one that names it.

    Raises:
        ConfigError: For UTF-16, one JSON list, or one object over several lines.
        StorageError: If it cannot be read.
    """
    with storage.open_input(uri) as file:
        _check_head(file.read(_HEAD_BYTES), f"{flag} {uri}")
        file.seek(0)
        offset = 0
        for number in count(1):
            raw = part = file.readline(MAX_LINE_BYTES + 1)
            size = len(raw)
            while part and not part.endswith(b"\n"):
                part = file.readline(_HEAD_BYTES)
                size += len(part)
            if not size:
                return
            if raw.strip():
                yield Line(number, offset, size, raw)
            offset += size


def parse_line(raw: bytes, where: str) -> Any:
    """Returns the JSON value of a line.

    Raises:
        DataError: ``line_too_long``; ``json`` for what is none, not UTF-8 or too deeply nested.
    """
    if len(raw) > MAX_LINE_BYTES:
        raise DataError(f"{where} has over {MAX_LINE_BYTES} bytes", reason="line_too_long")
    value = parse_json(raw, where)
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for one in level for child in _children(one)]
        if not level:
            return value
    raise DataError(f"{where} has more than {MAX_DEPTH} lists or objects inside each other", reason="json")


def _children(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _check_head(head: bytes, where: str) -> None:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in head[:4]:
        raise ConfigError(
            f"{where} is no UTF-8: it begins with {head[:4]!r}. `iconv -f UTF-16 -t UTF-8 FILE > NEW` makes "
            "UTF-8 of UTF-16."
        )
    text = head.decode(errors="replace").removeprefix("\ufeff").lstrip()
    if text.startswith("["):
        raise ConfigError(
            f"{where} is a JSON list, expected one object per line. `jq -c '.[]' FILE > NEW` writes such a "
            "file."
        )
    end = 0
    with contextlib.suppress(ValueError, RecursionError):  # of a line, which is rejected when it is read
        end = json.JSONDecoder().raw_decode(text)[1]
    if "\n" in text[:end]:
        raise ConfigError(
            f"{where} has objects of several lines each, expected one object per line. `jq -c . FILE > NEW` "
            "writes such a file."
        )
