"""The loop over shards that every job with a plan has: open the plan, do what is left, finish.

A stage says what its inputs are and how shards are done (``shard_pool``, or a plain ``map``); resuming,
progress, the limit on rejects and the counts of the end are here.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines import rejects, shards
from pipelines.job import Items
from pipelines.shards import Plan
from pipelines.tracking import Tracker
from samtok.errors import DataError

log = logging.getLogger(__name__)

ENOUGH = 5000
"""Items of which a share of rejects above the limit ends a run, however many are planned."""


@dataclass(frozen=True)
class Unit:
    """What a shard job counts, by names of counts in commit records.

    Attributes:
        name: Plural, for messages.
        filtered: Counts of what was left out on purpose; the first by settings that say what is unfit.
        in_plan: Whether an input of the plan is one, so that too many rejects end the run early.
        hint: What to look at if none came out.
        remedy: What lets filtered ones through, as flags.
    """

    name: str
    total: str
    out: str
    rejected: str
    filtered: tuple[str, ...] = ()
    in_plan: bool = False
    hint: str = ""
    remedy: str = ""

    def items(self, totals: Mapping[str, int]) -> Items:
        """Returns what became of them all."""
        return Items(
            self.name,
            total=totals.get(self.total, 0),
            out=totals.get(self.out, 0),
            rejected=totals.get(self.rejected, 0),
            filtered=sum(totals.get(name, 0) for name in self.filtered),
            by_settings=totals.get(self.filtered[0], 0) if self.filtered else 0,
            hint=self.hint,
            remedy=self.remedy,
        )


@dataclass
class Work:
    """What this call of a job did, as opposed to earlier ones."""

    shards: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    first: tuple[Counter[str], float] | None = None
    """Counts and seconds at the first commit, before which processes start and models load."""

    def add(self, counts: Mapping[str, int], seconds: float) -> None:
        """Takes the counts of a shard that was committed ``seconds`` after the work began."""
        self.shards += 1
        self.counts.update(counts)
        self.seconds = seconds
        self.first = self.first or (Counter(self.counts), seconds)

    def rate(self, name: str) -> float:
        """Returns a count per second, start-up included; 0 where nothing was done."""
        return self.counts[name] / self.seconds if self.seconds else 0.0

    def steady_rate(self, name: str) -> float:
        """Returns the same from the first commit on; 0 where there was only one."""
        counts, seconds = self.first or (Counter(), 0.0)
        done = self.counts[name] - counts[name]
        return done / (self.seconds - seconds) if self.seconds > seconds else 0.0


def do_shards(
    plan: Plan,
    stream: Callable[[Sequence[int]], Iterator[Mapping[str, Any]]],
    *,
    units: Sequence[Unit],
    max_reject_rate: float = 1.0,
    tracker: Tracker | None = None,
) -> tuple[dict[str, Any], Work]:
    """Does the shards that have no commit record; returns the manifest, and what this call did. Raises
    DataError for too many rejects; what was committed stays.

    Args:
        stream: Does and commits shards; yields their commit records in any order. Not called for none.
        units: What is counted; the first one sets the rate of the progress lines.
        max_reject_rate: A run ends whose rejected inputs are already a larger share of all planned ones,
            or whose rejected items are a larger share of those that were done, ``ENOUGH`` at least.
    """
    done = shards.committed(plan)
    todo = [shard for shard in range(len(plan.shard_rows)) if shard not in done]
    log.info("%d inputs in %d shards, %d committed", plan.num_inputs, len(plan.shard_rows), len(done))
    work = Work()
    counts = Counter(shards.totals(plan, done.values()))
    groups = shards.Groups(plan)
    for shard in done:
        groups.add(shard)
    started = time.monotonic()
    if todo:
        _stop_early(plan, counts, units, max_reject_rate)
    for record in stream(todo) if todo else ():
        work.add(record["counts"], time.monotonic() - started)
        counts.update(record["counts"])
        groups.add(record["shard"])
        _progress(plan, len(todo), work, units[0], tracker)
        _stop_early(plan, counts, units, max_reject_rate)
    return shards.finish(plan), work


def _progress(plan: Plan, todo: int, work: Work, unit: Unit, tracker: Tracker | None) -> None:
    total, rate = len(plan.shard_rows), work.rate(unit.out)
    number = total - todo + work.shards
    log.info(
        "shard %d/%d  %d %s  %.1f %s/s  ETA %.0f s",
        *(number, total, work.counts[unit.out], unit.name, rate, unit.name),
        work.seconds / work.shards * (todo - work.shards),
    )
    if tracker is not None:
        tracker.metrics({f"throughput/so_far_{unit.name}_per_s": rate}, step=number)


def _stop_early(plan: Plan, counts: Counter[str], units: Sequence[Unit], limit: float) -> None:
    planned = plan.num_inputs + (plan.rejects or {}).get("rows", 0)
    for unit in units:
        rejected, done = counts[unit.rejected], counts[unit.total]
        certain = unit.in_plan and rejected > limit * planned
        if certain or (done >= ENOUGH and rejected > limit * done):
            found = shards.manifest_of(plan)  # with shards that were committed meanwhile
            rejected, done = found["totals"][unit.rejected], found["totals"][unit.total]
            because = rejects.summary(rejects.of_corpus(plan.out, found)).rstrip(".")
            raise DataError(
                f"{rejected} of {planned if certain else f'the first {done}'} {unit.name} cannot be used "
                f"already; --max-reject-rate allows {limit:.1%}, and more lets the same command go on; "
                f"{because}. {unit.hint} The tables in {plan.out}/rejects name each with its reason."
            )
