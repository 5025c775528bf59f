"""Loads pickles of plain data. A pickle can run code; one that asks for any function or class is refused.

Lists, dicts, tuples, texts and numbers need no global name, so the published REFER files load. NumPy scalars
do need one and are refused as well: the error names it, and the file can be converted where it is trusted.
A pickle can also hold itself, or share parts so that a small file unfolds without end, nest keys so deeply
that hashing them ends the process, or have keys that collide. So before anything is loaded, nesting is
bounded and keys are texts, as in JSON; what is returned is about as large as the file and no deeper than
``MAX_DEPTH``, so it can be printed and compared.
"""

import codecs
import functools
import io
import pickle
import pickletools
from typing import Any, NoReturn

from samtok.errors import DataError

MAX_DEPTH = 32
"""Deepest nesting of containers; REFER has 4."""

MAX_UNFOLDED = 64
"""Characters per byte of the file, with shared texts counted wherever they are used; REFER has below 8."""

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
        _check_shape(raw)
        loaded = _PlainUnpickler(io.BytesIO(raw), encoding=_either_encoding()).load()
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


_ASKING = ("GLOBAL", "STACK_GLOBAL", "INST")  # for a function or class, which loading refuses by its name
_TEXT = -1
_MARK = None


def _check_shape(raw: bytes) -> None:
    """Goes through the operations of a pickle without doing them, as far as one that asks for a class.

    Files of protocol 0, the one that has no mark and begins a list with a bracket, write bytes as escapes,
    which pickletools cannot show; they are taken out before it looks. Nothing in such a file counts bytes.

    Raises:
        ValueError: For a slot of the memo beyond the file's size (Python would make room for all slots before
            it), for containers that nest too deeply or have keys other than texts, and for operations that
            plain data does not need.
    """
    textual = raw[:1] == b"("
    stack: list[int | None] = []  # of each value its depth, _TEXT for texts
    memo: dict[Any, int | None] = {}
    for opcode, argument, position in pickletools.genops(raw.replace(b"\\", b"/") if textual else raw):
        name = opcode.name
        if textual and opcode.proto > 0:
            raise ValueError(f"{name} of protocol {opcode.proto} in a file of protocol 0")
        if name in _ASKING:
            return
        if "PUT" in name or name == "MEMOIZE":
            slot = len(memo) if name == "MEMOIZE" else argument
            if not isinstance(slot, int) or slot > len(raw):
                raise ValueError(f"memo slot {slot} at byte {position}")
            memo[slot] = stack[-1]
        elif "GET" in name:
            stack.append(memo[argument])
        else:
            stack += _result(opcode, _taken(opcode, stack), position)


def _taken(opcode: pickletools.OpcodeInfo, stack: list[int | None]) -> list[int | None]:
    """Takes from the stack what an operation takes, without the mark."""
    before = opcode.stack_before
    parts: list[int | None] = []
    if pickletools.markobject in before:
        while (part := stack.pop()) is not _MARK:
            parts.append(part)
        before = before[: before.index(pickletools.markobject)]
    parts += [stack.pop() for _ in before]
    return parts[::-1]


def _result(
    opcode: pickletools.OpcodeInfo, taken: list[int | None], position: int | None
) -> list[int | None]:
    """Returns what an operation leaves on the stack."""
    name, after = opcode.name, opcode.stack_after
    if name == "DUP":
        return taken * 2
    if name == "MARK" or not after:
        return [_MARK] if name == "MARK" else []
    kinds = {kind.name for kind in after}
    if kinds <= {"str", "bytes", "bytes_or_str"}:
        return [_TEXT]
    if kinds <= {"int", "int_or_bool", "bool", "float", "None"}:
        return [0]
    if not kinds <= {"list", "dict", "tuple", "set", "frozenset"}:
        raise ValueError(f"{name} at byte {position}, which plain data does not need")
    fills = name.startswith(("APPEND", "SETITEM", "ADDITEM"))
    own, parts = (taken[0] or 0, taken[1:]) if fills else (1, taken)
    keys = parts if "set" in "".join(kinds) else parts[::2] if "dict" in kinds else []
    if any(key != _TEXT for key in keys):
        raise ValueError(f"a key at byte {position} that is no text")
    depth = max([own, *(1 + (part or 0) for part in parts)])
    if depth > MAX_DEPTH + 1:
        raise ValueError(f"containers in each other at byte {position}; it nests deeper than {MAX_DEPTH}")
    return [depth]


@functools.cache
def _either_encoding() -> str:
    """Returns the name of a text encoding, registered once: UTF-8, or latin1 for a text that is none.

    Byte strings of Python 2 are of either kind, in one file; latin1 reads any bytes.
    """

    def decode(raw: bytes, errors: str = "strict") -> tuple[str, int]:
        try:
            return bytes(raw).decode(), len(raw)
        except UnicodeDecodeError:
            return bytes(raw).decode("latin1"), len(raw)

    name = "samtok_utf8_or_latin1"
    info = codecs.CodecInfo(codecs.utf_8_encode, decode, name=name)  # pyright: ignore[reportArgumentType]
    codecs.register(lambda wanted: info if wanted == name else None)
    return name


def _check_extent(loaded: Any, most: int, where: str) -> None:
    """Every entry costs the file a byte, unless the container it is in is used more than once; texts too."""
    waiting, entries, chars = [(loaded, 0)], 0, 0
    while waiting:
        container, depth = waiting.pop()
        parts = [*container, *container.values()] if isinstance(container, dict) else container
        if not isinstance(parts, list | tuple | set | frozenset):
            continue
        entries += len(parts)
        chars += sum(len(part) for part in parts if isinstance(part, str | bytes))
        if entries > most or depth > MAX_DEPTH or chars > MAX_UNFOLDED * most:
            raise DataError(
                f"{where} is a pickle of {most} bytes that unfolds to more entries or {MAX_UNFOLDED} times "
                f"as many characters, or nests deeper than {MAX_DEPTH}; no published file does, so it is "
                "refused",
                reason="pickle",
            )
        waiting.extend((part, depth + 1) for part in parts if isinstance(part, _CONTAINERS))
