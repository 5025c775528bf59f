"""Questions that were lost before a model could be asked: in reading, tokenizing, or composing.

A corpus of chats counts them by task, so that an evaluation can count them as wrong answers. What a share of
``--tasks`` leaves out was never wanted, and is not lost.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

COUNTS = TARGETS, NONE, PIXELS = "lost_targets", "lost_none", "lost_px"
"""Counts of a corpus of chats, by task as in ``gres/lost_targets``."""

UNREAD = "images_lost"
"""Of a corpus of words in the fingerprint of its chats: images that were lost with all their questions."""


@dataclass(frozen=True)
class LostQuestions:
    """How many questions were lost, and the pixels of their targets as far as they are known."""

    targets: int = 0
    none: int = 0  # without a target
    px: int = 0  # of the true masks of those with targets, at least one each
    images: int = 0  # lost with questions that nobody knows

    def __len__(self) -> int:
        return self.targets + self.none

    @classmethod
    def of(cls, manifest: Mapping[str, Any], tasks: Iterable[str]) -> "LostQuestions":
        """Reads the counts of a corpus of chats; one of before they were counted has none."""
        found: Counter[str] = Counter()
        for task in tasks:
            found.update({name: manifest["totals"].get(f"{task}/{name}", 0) for name in COUNTS})
        images = sum(words.get(UNREAD, 0) for words in manifest["fingerprint"].get("words", ()))
        return cls(found[TARGETS], found[NONE], found[PIXELS], images)


NOTHING_LOST = LostQuestions()
"""Where no question was lost, or none is counted."""


def count(targets: Iterable[str], areas_px: Mapping[str, int]) -> dict[str, int]:
    """Returns the counts of one lost question.

    Args:
        targets: Masks that it asks for.
        areas_px: Of the masks that are known.
    """
    wanted = tuple(targets)
    if not wanted:
        return {NONE: 1}
    return {TARGETS: 1, PIXELS: max(1, sum(areas_px.get(mask_id, 0) for mask_id in wanted))}
