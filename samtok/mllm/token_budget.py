"""Micro-batches by tokens in place of numbers: a pass computes at most so many, whatever the lengths are.

Over several workers a step's micro-batches are dealt out in order of their size, so that workers that wait
for each other after every pass have passes of like size, and all have equally many.
"""

from collections.abc import Sequence


def computed(lengths: Sequence[int], *, packed: bool) -> int:
    """Returns the tokens that a pass over items computes: with padding to the longest, or packed without."""
    return sum(lengths) if packed else max(lengths, default=0) * len(lengths)


def fits(
    lengths: Sequence[int], items: int | None = None, tokens: int | None = None, *, packed: bool = False
) -> bool:
    """Tells whether items of these lengths can go together: so many ``items``, or what computes so many
    ``tokens``, which stands in its place."""
    if tokens is None:
        return items is None or len(lengths) <= items
    return computed(lengths, packed=packed) <= tokens


def cut(
    lengths: Sequence[int], items: int | None = None, tokens: int | None = None, *, packed: bool = False
) -> list[list[int]]:
    """Cuts items into batches of like lengths that fit, shortest first; returns their numbers. One that does
    not fit by itself goes alone."""
    batches: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda n: (lengths[n], n)):
        wider = [*batches[-1], number] if batches else []
        if wider and fits([lengths[n] for n in wider], items, tokens, packed=packed):
            batches[-1] = wider
        else:
            batches.append([number])
    return batches


def dealt(
    lengths: Sequence[int], tokens: int, workers: int, *, packed: bool = False
) -> list[list[list[int]]]:
    """Deals the micro-batches of ``cut`` out to workers; returns those of each.

    Those of one place, which workers go through at the same time, follow each other in size. Where their
    number is no multiple of the workers, the longest ones are halved; of fewer items than workers some get an
    empty one.
    """
    batches = cut(lengths, tokens=tokens, packed=packed)
    while len(batches) % workers:
        splittable = [place for place, batch in enumerate(batches) if len(batch) > 1]
        if not splittable:
            batches.append([])
            continue
        longest = max(splittable, key=lambda at: computed([lengths[n] for n in batches[at]], packed=packed))
        whole = batches[longest]
        batches[longest : longest + 1] = [whole[: len(whole) // 2], whole[len(whole) // 2 :]]
    batches.sort(key=lambda batch: computed([lengths[n] for n in batch], packed=packed))
    return [batches[worker::workers] for worker in range(workers)]
