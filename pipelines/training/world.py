"""The workers of a run seen from one of them. All calls but ``rank`` and ``size`` are collective."""

from collections.abc import Sequence
from typing import Any

from torch import distributed


def rank() -> int:
    """Returns the number of this worker, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def size() -> int:
    """Returns how many workers there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def gathered(entries: list[Any]) -> list[Any]:
    """Returns the entries of all workers, in their order, on every one of them."""
    if size() == 1:
        return entries
    parts: list[Any] = [None] * size()
    distributed.all_gather_object(parts, entries)
    return [entry for part in parts for entry in part]


def only_elsewhere(flags: Sequence[bool]) -> list[bool]:
    """Returns which flags another worker has set and this one has not; all workers have equally many."""
    columns = zip(*gathered([list(flags)]), strict=True)
    return [any(column) and not own for own, column in zip(flags, columns, strict=True)]


def from_first(value: Any) -> Any:
    """Returns what the first worker has."""
    values = [value]
    if size() > 1:
        distributed.broadcast_object_list(values, src=0)
    return values[0]


def exchanged(parcels: Sequence[Any]) -> list[Any]:
    """Gives each worker what another has for it; ``parcels`` are for the workers in their order, and so are
    those that are returned."""
    if size() == 1:
        return list(parcels)
    found = []
    for source in range(size()):
        own: list[Any] = [None]
        distributed.scatter_object_list(own, list(parcels) if source == rank() else None, src=source)
        found.append(own[0])
    return found


def raise_together(error: Exception | None) -> None:
    """Raises on all workers what the first of those has met that have met an error."""
    for found in gathered([error]):
        if found is not None:
            raise found
