"""Loads pickles of plain data. A pickle can run code; one that asks for any function or class is refused.

Lists, dicts, tuples, texts and numbers need no global name, so the published REFER files load. NumPy scalars
do need one and are refused as well: the error names it, and the file can be converted where it is trusted.
A pickle can also hold itself, or share parts so that a small file unfolds without end; what is returned is as
large as the file and no deeper than ``MAX_DEPTH``, so it can be printed and compared.
"""

import io
import pickle
import pickletools
from typing import Any, NoReturn

from samtok.errors import DataError

MAX_DEPTH = 32
"""Deepest nesting of containers; REFER has 4."""

_CONTAINERS = (dict, list, tuple, set, frozenset)


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise DataError(
            f"asks for {module_name}.{global_name}, but only lists, dicts, texts and numbers are loaded, "
            "since anything else could run code. If you trust the file, convert it to JSON",
            reason="pickle_global",
        )


def load_plain(raw: bytes, where: str) -> Any:
    """Returns what a pickle of any protocol holds.

    Raises:
        DataError: ``pickle_global`` for a pickle that needs a function or class, which is named;
            ``pickle`` if it cannot be read or unfolds to more than the file holds.
    """
    try:
        _check_memo(raw)
        loaded = _load(raw)
    except DataError as error:
        raise DataError(f"{where} {error}", reason=error.reason) from error
    except Exception as error:  # broken files raise a dozen kinds
        raise DataError(
            f"{where} cannot be read as a pickle ({type(error).__name__}: {error!s:.200}); it may be cut off "
            "or of another kind: fetch it again or check the path",
            reason="pickle",
        ) from error
    _check_extent(loaded, len(raw), where)
    return loaded


def _check_memo(raw: bytes) -> None:
    """Refuses a slot of the memo beyond the file's size: Python would make room for all slots before it.

    Files of protocol 0, the one that has no mark and begins a list with a bracket, write bytes as escapes,
    which pickletools cannot show; they are taken out before it looks. Nothing in such a file counts bytes.
    """
    textual = raw[:1] == b"("
    for opcode, argument, position in pickletools.genops(raw.replace(b"\\", b"/") if textual else raw):
        if opcode.name in ("PUT", "LONG_BINPUT") and isinstance(argument, int) and argument > len(raw):
            raise ValueError(f"memo slot {argument} at byte {position}")
        if textual and opcode.proto > 0:
            raise ValueError(f"{opcode.name} of protocol {opcode.proto} in a file of protocol 0")


def _check_extent(loaded: Any, most: int, where: str) -> None:
    """Every entry costs the file a byte, unless the container it is in is used more than once."""
    waiting, entries = [(loaded, 0)], 0
    while waiting:
        container, depth = waiting.pop()
        parts = [*container, *container.values()] if isinstance(container, dict) else container
        if not isinstance(parts, list | tuple | set | frozenset):
            continue
        entries += len(parts)
        if entries > most or depth > MAX_DEPTH:
            raise DataError(
                f"{where} is a pickle of {most} bytes that unfolds to more entries, or nests deeper than "
                f"{MAX_DEPTH}; no published file does, so it is refused",
                reason="pickle",
            )
        waiting.extend((part, depth + 1) for part in parts if isinstance(part, _CONTAINERS))


def _load(raw: bytes) -> Any:
    try:
        return _PlainUnpickler(io.BytesIO(raw), encoding="utf-8").load()
    except UnicodeDecodeError:  # byte strings of Python 2; latin1 reads any bytes
        return _PlainUnpickler(io.BytesIO(raw), encoding="latin1").load()
