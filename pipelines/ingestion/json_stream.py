"""One JSON object whose lists are larger than memory, such as a COCO file, entry by entry.

The decoder of the standard library reads each entry, so values and faults are those of
``records.parse_json``; only one entry and one piece of the file are in memory.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from pipelines.ingestion.records import json_error, unreadable_json
from samtok.errors import DataError

PIECE_BYTES = 2**20
MAX_ENTRY_CHARS = 2**28

_SPACE = re.compile(r"[ \t\n\r]*")
_CUT_CHARS = 12
"""How far before the end of a piece the decoder may stop because of the cut, as after the 1 of 1.5e-7."""


class Entry(NamedTuple):
    """One value of a list."""

    value: Any
    chars: int
    """Length of its JSON."""
    offset: int = 0
    """Where its JSON begins in the file, in bytes."""
    size_bytes: int = 0
    """Length of its JSON in the file."""


class Member(NamedTuple):
    """One key of the object: the entries of its list, to be taken before the next member; or another
    value."""

    key: str
    entries: Iterator[Entry] | None
    entry: Entry | None = None

    @property
    def value(self) -> Any:
        """The value, where it is no list."""
        return None if self.entry is None else self.entry.value


def members_of(stream: BinaryIO, where: str) -> Iterator[Member] | str:
    """Returns the members of the object that a file holds, or the name of its type if it holds no object.

    Raises:
        DataError: With reason ``json``, also while members are taken; ``where`` names the file.
    """
    text = _Text(stream, where)
    start = text.next_char()
    if start == "{":
        return _members(text)
    if start == "[":  # its first entry may be at fault
        text.position += 1
        if text.next_char() != "]":
            text.value()
        return "list"
    return type(text.value().value).__name__


def _members(text: "_Text") -> Iterator[Member]:
    text.position += 1
    if text.next_char() == "}":
        text.position += 1
    else:
        while True:
            if text.next_char() != '"':
                text.fail("Expecting property name enclosed in double quotes")
            key = text.value().value
            text.take(":", "Expecting ':' delimiter")
            if text.next_char() == "[":
                entries = _entries(text)
                yield Member(key, entries)
                for _ in entries:  # what the caller left
                    pass
            else:
                yield Member(key, None, text.value())
            if text.take(",}", "Expecting ',' delimiter") == "}":
                break
    if text.next_char():
        text.fail("Extra data")


def _entries(text: "_Text") -> Iterator[Entry]:
    text.position += 1
    if text.next_char() == "]":
        text.position += 1
        return
    while True:
        text.next_char()
        yield text.value()
        if text.take(",]", "Expecting ',' delimiter") == "]":
            return


class _Text:
    """The file as text, of which a piece is in memory."""

    def __init__(self, stream: BinaryIO, where: str) -> None:
        self._stream, self._where = stream, where
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._json = json.JSONDecoder()
        self._piece = ""
        self._counted = 0  # characters of the piece
        self._counted_bytes = 0  # of the file, before those that are not counted yet
        self._read_bytes = 0
        self._ended = False
        self.position = 0
        if self.next_char() == "\ufeff":  # utf-8-sig would misstate where a fault is
            self.position += 1

    def next_char(self) -> str:
        """Skips white space; returns the character there, or nothing at the end of the file."""
        while True:
            match = _SPACE.match(self._piece, self.position)
            assert match is not None
            self.position = match.end()
            if self.position < len(self._piece):
                return self._piece[self.position]
            if not self._read():
                return ""

    def take(self, expected: str, fault: str) -> str:
        """Takes the next character, which must be one of those."""
        found = self.next_char()
        if not found or found not in expected:
            self.fail(fault)
        self.position += 1
        return found

    def value(self) -> Entry:
        """Takes the value that starts here."""
        while True:
            try:
                value, end = self._json.raw_decode(self._piece, self.position)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos >= len(self._piece) - _CUT_CHARS
                inside = error.pos - self.position
                if cut and self._read():
                    continue
                self.position += inside
                self.fail(error.msg)
            except (RecursionError, ValueError) as error:  # an integer of thousands of digits
                raise unreadable_json(self._where, error) from error
            chars = end - self.position
            if end > len(self._piece) - _CUT_CHARS and self._read():  # a number may go on
                continue
            start = self._offset()
            self.position += chars
            return Entry(value, chars, start, self._offset() - start)

    def fail(self, problem: str) -> Any:
        """Raises DataError for the fault that is here."""
        raise json_error(self._where, self._offset(), f"is not JSON ({problem})")

    def _offset(self) -> int:
        """Returns how many bytes of the file lie before the position; each is counted once."""
        self._counted_bytes += len(self._piece[self._counted : self.position].encode())
        self._counted = self.position
        return self._counted_bytes

    def _read(self) -> bool:
        """Reads on, and forgets what lies before the position; returns whether there was more."""
        if self._ended:
            return False
        if len(self._piece) - self.position > MAX_ENTRY_CHARS:
            raise DataError(f"{self._where} has an entry of over {MAX_ENTRY_CHARS} characters", reason="json")
        self._offset()
        rest = self._piece[self.position :]
        raw = self._stream.read(max(PIECE_BYTES, len(rest)))
        pending = len(self._decoder.getstate()[0])
        self._ended = not raw
        try:
            self._piece = rest + self._decoder.decode(raw, final=self._ended)
        except UnicodeDecodeError as error:
            position = self._read_bytes - pending + error.start
            raise json_error(self._where, position, f"is not UTF-8 ({error.reason})") from error
        self._read_bytes += len(raw)
        self.position = self._counted = 0
        return not self._ended
