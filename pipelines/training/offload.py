"""Memory of an accelerator that is given back for a while, and taken again.

What leaves is the memory below tensors, not the tensors: every parameter, view and flat buffer that uses it
stays the object that it is, so whoever holds one, ZeRO too, need not know.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_WALKED = ("torch.optim", "deepspeed")
"""Packages whose objects are looked into for tensors."""


class Offload:
    """Moves what objects hold to the host and back. Empty tensors are of no use to anybody meanwhile.

    Args:
        roots: Modules, optimizers, engines; looked into anew at each ``leave``.
    """

    def __init__(self, *roots: Any) -> None:
        self.roots = roots
        self._away: list[tuple[torch.UntypedStorage, Tensor]] = []

    @property
    def nbytes(self) -> int:
        """Bytes of memory that are held now."""
        return sum(storage.nbytes() for storage in _storages(self.roots))

    def leave(self) -> None:
        """Copies all to the host and gives the memory back."""
        if self._away:
            return
        for storage in _storages(self.roots):
            if storage.nbytes() and storage.resizable():
                self._away.append((storage, _on_host(storage)))
                storage.resize_(0)
        _empty_cache()

    def come_back(self) -> None:
        """Takes the memory again, with what was in it."""
        while self._away:
            storage, kept = self._away.pop()
            storage.resize_(kept.nbytes)
            storage.copy_(kept.untyped_storage(), non_blocking=False)


def _on_host(storage: torch.UntypedStorage) -> Tensor:
    kept = torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=storage.device.type == "cuda")
    kept.untyped_storage().copy_(storage, non_blocking=False)
    return kept


def _empty_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _storages(roots: tuple[Any, ...]) -> list[torch.UntypedStorage]:
    """Returns the memory below all tensors that can be reached, each once."""
    found = {}
    for tensor in _tensors(roots):
        if tensor.is_meta:
            continue
        storage = tensor.untyped_storage()
        found.setdefault(storage._cdata, storage)  # pyright: ignore[reportAttributeAccessIssue]
    return list(found.values())


def _tensors(roots: tuple[Any, ...]) -> Iterator[Tensor]:
    seen: set[int] = set()
    waiting: deque[Any] = deque(roots)
    while waiting:
        one = waiting.popleft()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Tensor):
            yield one
            waiting += (one.grad, *vars(one).values())  # ZeRO-3 keeps its share as an attribute
        elif isinstance(one, Mapping):
            waiting += one.keys()
            waiting += one.values()
        elif isinstance(one, list | tuple | set | deque):
            waiting += one
        elif isinstance(one, nn.Module) or type(one).__module__.startswith(_WALKED):
            waiting += getattr(one, "__dict__", {}).values()
