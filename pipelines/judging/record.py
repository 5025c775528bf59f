"""The record of a judge: JSON lines, one for each judgement, so that no judgement is paid for twice.

    {"key": "9f3c...", "name": "2391781/0", "judge": "gpt-4o", "options": {...}, "system": null,
     "prompt": "...", "images": ["sha256", ...], "reply": "A. Yes", "finish": "stop", "seconds": 0.8,
     "tokens": {"prompt": 212, "completion": 4}}

A judgement that failed has ``failed``, its reason, and ``message`` in place of ``reply``. Of several lines of
a key the last one counts. A local file is only ever appended to, line by line and through to the disk, by one
process at a time; the half line that a killed one can leave is cut off. An object of a store cannot be
appended to: it is written whole every ``FLUSH_EVERY`` judgements and at the end, so a killed run can lose as
many.
"""

import fcntl
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from typing import Any

from pipelines import storage
from pipelines.ingestion.json_lines import Line, parse_line, read_lines
from pipelines.storage import local
from samtok.errors import ConfigError, DataError, StorageError

log = logging.getLogger(__name__)

FLUSH_EVERY = 100

_BEGIN = b'{"key": "'
"""Of each line; nothing else is ever cut off."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What became of one ask: a reply, or a failure with its reason.

    Attributes:
        finish: Why the reply ended, ``length`` if it was cut; None if the judge does not say.
        tokens: Of ``prompt`` and ``completion``; likewise.
    """

    reply: str | None = None
    failed: str | None = None
    message: str | None = None
    finish: str | None = None
    seconds: float = 0.0
    tokens: Mapping[str, int] | None = None

    def body(self) -> dict[str, Any]:
        """Returns it as it stands in a line."""
        spent = {"seconds": round(self.seconds, 3), "tokens": self.tokens}
        if self.reply is None:
            return {"failed": self.failed, "message": self.message, **spent}
        return {"reply": self.reply, "finish": self.finish, **spent}


class Record:
    """Judgements by their keys.

    Args:
        uri: Of the file or object; it need not exist.
        writes: Whether ``add`` will be called; else nothing is locked or mended.

    Attributes:
        known: All judgements.
        judges: Names of the judges that they are by.

    Raises:
        ConfigError: It is in use, or no JSON lines; its flag is ``--.record``.
        DataError: ``judgement`` or ``json`` for a line that is none.
        StorageError: It cannot be read or written.
    """

    def __init__(self, uri: str, *, writes: bool) -> None:
        self.uri, self.known, self.judges = uri, dict[str, Judgement](), set[str]()
        self._whole: list[bytes] | None = [] if writes and storage.is_remote(uri) else None
        self._unwritten = 0
        self._file = _locked(uri) if writes and not storage.is_remote(uri) else None
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def add(self, key: str, asked: Mapping[str, Any], judgement: Judgement) -> None:
        """Keeps a judgement; ``asked`` is what the line says of its ask, with the name of the judge."""
        self._keep(json.dumps({"key": key, **asked, **judgement.body()}).encode() + b"\n")
        self.known[key] = judgement
        self.judges.add(asked["judge"])

    def flush(self) -> None:
        """Writes what is not written yet."""
        if self._unwritten and self._whole is not None:
            storage.write_bytes(self.uri, b"".join(self._whole))
            self._unwritten = 0

    def close(self) -> None:
        """Writes the rest and lets others write."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _keep(self, line: bytes) -> None:
        if self._whole is None:
            self._append(line)
            return
        self._whole.append(line)
        self._unwritten += 1
        if self._unwritten >= FLUSH_EVERY:
            self.flush()

    def _append(self, line: bytes) -> None:
        assert self._file is not None, "the record was opened for reading"
        try:
            if self._file.write(line) != len(line):
                raise OSError("only a part of a line could be written")
            os.fsync(self._file.fileno())
        except OSError as error:
            fault = f"Cannot write {self.uri}: {error}. What was judged before is in it."
            raise StorageError(fault) from error

    def _read(self) -> None:
        if not storage.exists(self.uri):
            return
        for line in read_lines(self.uri, flag="--.record"):
            if self._is_half(line):
                log.warning("%s ends with half a judgement, which is left out", self.uri)
                if self._file is not None:
                    os.ftruncate(self._file.fileno(), line.offset)
                return
            key, judge, self.known[key] = _parsed(line, self.uri)
            self.judges.add(judge)
            if self._whole is not None:
                self._whole.append(line.raw.rstrip(b"\r\n") + b"\n")
            elif self._file is not None and not line.raw.endswith(b"\n"):
                self._append(b"\n")

    def _is_half(self, line: Line) -> bool:
        """Returns whether a line is what a killed writer leaves: the beginning of one of ours."""
        if line.raw.endswith(b"\n") or line.listed:
            return False
        if not (line.raw.startswith(_BEGIN) or _BEGIN.startswith(line.raw)):
            return False
        try:
            parse_line(line.raw, self.uri)
        except DataError:
            return True
        return False


def _locked(uri: str) -> FileIO:
    """Opens a local file for appending, which no other process does meanwhile; makes its folder."""
    path = local.path_of(uri)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab", buffering=0)
    except OSError as error:
        raise StorageError(f"Cannot write {uri}: {error}.") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        fault = f"--.record {uri} is written by another run; wait for it, or name another file."
        raise ConfigError(fault) from error
    return file


def _parsed(line: Line, uri: str) -> tuple[str, str, Judgement]:
    """Returns the key, the judge and the judgement of a line; raises DataError as ``Record``."""
    where = f"{uri}: line {line.number}"
    found = parse_line(line.raw, where)
    body = found if isinstance(found, dict) and not line.listed else {}
    key, judge, reply, failed = (body.get(name) for name in ("key", "judge", "reply", "failed"))
    has_outcome = isinstance(reply, str) != isinstance(failed, str)
    seconds, tokens = body.get("seconds", 0.0), body.get("tokens")
    is_counted = isinstance(seconds, int | float) and (tokens is None or _are_counts(tokens))
    if not (isinstance(key, str) and isinstance(judge, str) and has_outcome and is_counted):
        fault = f"{where} is no judgement, expected key, judge, and reply or failed: {line.raw[:80]!r}"
        raise DataError(fault, reason="judgement")
    told = {name: body.get(name) for name in ("reply", "failed", "message", "finish", "tokens")}
    return key, judge, Judgement(**told, seconds=seconds)


def _are_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(type(count) is int for count in value.values())
