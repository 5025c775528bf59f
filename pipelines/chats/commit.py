"""Committing a shard of chats: samples, rejects and counts, with everything accounted for."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pipelines import schema, shards
from pipelines.shards import Plan

ITEM_ENDS = ("out", "rejected", "filtered", "thinned", "unused")
"""What may become of an item, such as a question; ``items_in`` is the sum."""


@dataclass
class Composed:
    """What became of one input, or of many.

    Attributes:
        samples: Chats in the shape of ``pipelines.schema.CHAT_ROW``.
        rejects: In the shape of ``REJECT_ROW``.
        counts: Per task ``res/items_in`` and so on, and the same without the task's name for all together.
    """

    samples: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Composed") -> None:
        """Takes in what became of other inputs."""
        self.samples += other.samples
        self.rejects += other.rejects
        self.counts.update(other.counts)


def commit(plan: Plan, shard: int, done: Composed) -> dict[str, Any]:
    """Commits what became of a shard; returns the commit record that holds."""
    counts = {name: done.counts[name] for name in sorted({*shards.COUNTS["chat"], *done.counts})}
    check(counts)
    reasons = Counter(f"{entry['stage']}/{entry['reason']}" for entry in done.rejects)
    return shards.commit(
        plan,
        shard,
        rows=schema.table(done.samples, schema.CHAT_ROW),
        rejects=schema.table(done.rejects, schema.REJECT_ROW),
        summary={"counts": counts, "reject_reasons": dict(sorted(reasons.items()))},
    )


def check(counts: dict[str, int]) -> None:
    """Makes sure that items in = out + rejected + filtered + thinned + unused, in all and per task.

    Raises:
        RuntimeError: If they are not, which is a defect of ours.
    """
    for name in [name for name in counts if name.endswith("items_in")]:
        prefix = name.removesuffix("in")
        found = sum(counts.get(prefix + end, 0) for end in ITEM_ENDS)
        if counts[name] != found:
            raise RuntimeError(
                f"{counts[name]} {name} and {found} are accounted for; this is a defect of samtok."
            )
