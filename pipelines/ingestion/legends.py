"""Names of the classes of label maps, from a file of the user's."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pipelines import storage
from pipelines.config import Place
from pipelines.ingestion import records
from samtok.errors import DataError

MAX_BYTES = 2**24
"""Largest file of names that is parsed; published ones have under 1 MB."""

Legend = dict[int, str]
"""Name of a class by its number."""


@dataclass(frozen=True, kw_only=True)
class LegendOption:
    """For datasets whose classes are numbers."""

    legend: Place | None = None
    """masks, labelmap, coconut_parquet: URI of the names of classes. JSON: an object by number, a list from
    0, or a list of objects with id and name; text: a number and a name per line, as objectInfo150.txt and
    COCO-Stuff's labels.txt. cocostuff: by the numbers of labels.txt, which are those of the maps + 1.
    coconut_parquet: by default COCO's panoptic categories."""


_LINE = re.compile(r"\s*(\d{1,9})\s*[:\t ](.*)")


@lru_cache(maxsize=4)
def legend_of(uri: str) -> Legend:
    """Returns the names of a legend, once per process.

    JSON is ``{"7": "road"}``, a list of names from 0, or a list of ``{id, name}`` (COCO's categories). Text
    has a line for each class: a number, then the name, which is the last column of columns between tabs; a
    first line without a number is a heading (ADE20K's objectInfo150.txt, COCO-Stuff's labels.txt).

    Raises:
        DataError: ``legend`` or ``json`` if it is neither, or a class has no name or two; ``legend_missing``
            and so on if it cannot be read.
        StorageError: If the storage fails.
    """
    return parsed(file_bytes(uri), uri)


def file_bytes(uri: str) -> bytes:
    """Returns a file of names; raises DataError ``legend`` if it is too large, else as ``legend_of``."""
    try:
        raw = storage.read_bytes(uri, size=MAX_BYTES + 1)
    except storage.ObjectError as error:
        raise DataError(str(error), reason=f"legend_{error.reason}") from error
    if len(raw) > MAX_BYTES:
        raise _fault(uri, f"over {MAX_BYTES} bytes")
    return raw


def parsed(raw: bytes, uri: str) -> Legend:
    """Returns the names in the bytes of a legend; raises as ``legend_of``."""
    if uri.endswith(".json"):
        return of_value(records.parse_json(raw, uri), uri)
    return _checked(_of_text(raw, uri), uri)


def of_value(value: Any, uri: str) -> Legend:
    """Returns the names in parsed JSON or YAML of the forms of ``legend_of``; raises as it does."""
    return _checked(_of_value(value, uri), uri)


def _checked(pairs: Iterable[tuple[int, Any]], uri: str) -> Legend:
    legend: Legend = {}
    for number, name in pairs:
        if not isinstance(name, str) or not name.strip() or not records.is_utf8(name):
            raise _fault(uri, f"the name {name!r:.80} of the class {number}")
        if legend.setdefault(number, name.strip()) != name.strip():
            raise _fault(uri, f"two names of the class {number}")
    if not legend:
        raise _fault(uri, "no class")
    return legend


def _of_value(legend: Any, uri: str) -> Iterator[tuple[int, Any]]:
    if isinstance(legend, dict):
        for key, name in legend.items():
            if not re.fullmatch(r"[0-9]{1,9}", records.id_text(key) or ""):
                raise _fault(uri, f"the key {key!r:.80}")
            yield int(key), name
    elif isinstance(legend, list):
        for index, entry in enumerate(legend):
            if not isinstance(entry, dict):
                yield index, entry
            elif type(entry.get("id")) is int:
                yield entry["id"], entry.get("name")
            else:
                raise _fault(uri, f"{entry!r:.80}")
    else:
        raise _fault(uri, f"a {type(legend).__name__}")


def _of_text(raw: bytes, uri: str) -> Iterator[tuple[int, str]]:
    try:
        lines = raw.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise _fault(uri, f"text that is not UTF-8 ({error.reason})") from error
    for index, line in enumerate(lines):
        match = _LINE.fullmatch(line)
        if match is not None:
            yield int(match[1]), match[2].rpartition("\t")[2]
        elif index and line.strip():
            raise _fault(uri, f"the line {line!r:.80}")


def _fault(uri: str, got: str) -> DataError:
    return DataError(
        f"{uri} holds {got}, expected names of classes by number: an object or list of names, or a "
        "number and a name per line.",
        reason="legend",
    )
