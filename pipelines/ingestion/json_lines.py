"""The one reader of JSON lines: files of chats, replies and responses that other people wrote.

One JSON list is read too, entry by entry, as large as it may be: each entry counts as a line. A file that is
neither is a ConfigError, a line that cannot be read a DataError of that line.
"""

import codecs
import contextlib
import io
import json
import re
from collections.abc import Generator, Iterator
from itertools import count
from typing import Any, BinaryIO, NamedTuple

from pipelines import storage
from pipelines.ingestion.records import parse_json
from samtok.errors import ConfigError, DataError

MAX_LINE_BYTES = 16 * 2**20
"""Longest line that is read; what is longer is no chat, and would have to fit into memory."""
MAX_DEPTH = 64
"""Lists and objects inside each other."""

_HEAD_BYTES = 2**20
_MARKS = re.compile(rb'["\\\[\]{},]')
"""All bytes of JSON that may begin or end something."""


class Line(NamedTuple):
    """A line that is not blank, or an entry of a list."""

    number: int  # from 1, blank lines counted
    offset: int  # of its first byte
    size: int  # in bytes, of a line with its end
    raw: bytes  # at most ``MAX_LINE_BYTES`` and one of them
    listed: bool = False  # whether it is an entry of a list


def read_lines(uri: str, *, flag: str) -> Iterator[Line]:
    """Yields the lines of a file, or entries of its list; ``flag`` (with dashes) is the one that names it.

    Raises:
        ConfigError: For UTF-16, one object over several lines, or a list that is not all of a file.
        StorageError: If it cannot be read.
    """
    with storage.open_input(uri) as file:
        where = f"{flag} {uri}"
        listed = _check_head(file.read(_HEAD_BYTES), where)
        file.seek(0)
        if listed:
            if fault := (yield from _entries(file)):
                raise ConfigError(f"{where} is a JSON list {fault}. Fetch it again, or see what wrote it.")
            return
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


def entries_of(data: bytes) -> Iterator[bytes]:
    """Yields the entries in a piece of a list, which begins and ends with whole ones."""
    yield from (entry.raw for entry in _entries(io.BytesIO(b"[" + data + b"]")))


def _entries(file: BinaryIO) -> Generator[Line, None, str]:
    """Yields the entries of a list; returns what is wrong with the list, or nothing. Whether an entry is JSON
    is not looked at: one that is not there has a comma as its text."""
    depth, quoted, escaped, number = 0, False, -1, 0
    position, start = 0, 0  # of the piece, and of the entry
    own = bytearray()  # what there is of the entry, up to the piece
    while piece := file.read(_HEAD_BYTES):
        begin = 0  # of what the piece has of the entry
        for found in _MARKS.finditer(piece):
            at, mark = found.start(), found[0]
            if quoted:
                if position + at == escaped:
                    continue
                if mark == b"\\":
                    escaped = position + at + 1
                elif mark == b'"':
                    quoted = False
            elif mark == b'"':
                quoted = True
            elif mark in b"[{":
                depth += 1
                if depth == 1:
                    begin, start = at + 1, position + at + 1
            elif mark in b"]}":
                depth -= 1
            if depth > 1 or quoted or (mark != b"," and depth) or (not depth and mark != b"]"):
                continue
            own += piece[begin : min(at, begin + MAX_LINE_BYTES + 1 - len(own))]
            raw, size = bytes(own), position + at - start
            if raw.strip() or depth:
                number += 1
                blank = len(raw) - len(raw.lstrip())
                yield Line(number, start + blank, size - blank, raw.strip() or b",", listed=True)
            if not depth:
                more = piece[at + 1 :].strip() or file.read(_HEAD_BYTES).strip()
                return "with something behind its end" if more else ""
            own.clear()
            begin, start = at + 1, position + at + 1
        own += piece[begin : begin + max(0, MAX_LINE_BYTES + 1 - len(own))]
        position += len(piece)
    return "that does not end: it was cut off"


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


def _check_head(head: bytes, where: str) -> bool:
    """Returns whether a file holds one list; raises ConfigError for what is neither that nor JSON lines."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in head[:4]:
        raise ConfigError(
            f"{where} is no UTF-8: it begins with {head[:4]!r}. `iconv -f UTF-16 -t UTF-8 FILE > NEW` makes "
            "UTF-8 of UTF-16."
        )
    text = head.decode(errors="replace").removeprefix("\ufeff").lstrip()
    if text.startswith("["):
        return True
    end = 0
    with contextlib.suppress(ValueError, RecursionError):  # of a line, which is rejected when it is read
        end = json.JSONDecoder().raw_decode(text)[1]
    if "\n" in text[:end]:
        raise ConfigError(
            f"{where} has objects of several lines each, expected one object per line. `jq -c . FILE > NEW` "
            "writes such a file."
        )
    return False
