"""Committing a shard of chats: samples, rejects and counts, with everything accounted for."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pipelines import schema, shards
from pipelines.shards import Plan

ENDS = ("in", "out", "rejected", "filtered", "thinned", "unused")
"""What is counted of items, such as questions; in is the sum of the others."""


OF_DATASET = "samples_out of "
"""Before the name of a dataset, where chats of a mixture are counted by dataset."""


@dataclass
class Composed:
    """What became of one input, or of many: rows of ``schema.CHAT_ROW`` and ``REJECT_ROW``, and counts.

    There are counts per task, ``res/items_in`` and so on, and without the task's name for all together.
    """

    samples: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Composed") -> None:
        """Takes in what became of other inputs."""
        self.samples += other.samples
        self.rejects += other.rejects
        self.counts.update(other.counts)


def compose_shard(plan: Plan, take: Callable[[dict[str, Any], Composed], None], shard: int) -> dict[str, Any]:
    """Composes a shard of chats and commits it; returns the commit record that holds.

    Args:
        plan: What the shards are.
        take: Gets the payload of an input, and what to add its samples, rejects and counts to.
        shard: Its number.
    """
    done = Composed()
    for chunk in plan.chunks(shard):
        for item in shards.read_inputs(plan, chunk):
            done.counts["inputs_in"] += 1
            take(json.loads(item.payload), done)
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
    """Makes sure that items in = out + rejected + filtered + thinned + unused, in all and per task; raises
    RuntimeError if they are not, which is a defect of ours."""
    for name in [name for name in counts if name.endswith("items_in")]:
        prefix = name.removesuffix("in")
        found = sum(counts.get(prefix + end, 0) for end in ENDS[1:])
        if counts[name] != found:
            raise RuntimeError(
                f"{counts[name]} {name} and {found} are accounted for; this is a defect of samtok."
            )
