"""How busy the stages of tokenization are, which of them bounds the rate, and how many decoders it needs.

A stage is busy for the time that its processes spend on chunks, out of the time that they were there. Time
until the first chunk is back (processes start, weights load, codes compile) is left out.
"""

import json
import math
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any

STAGES = ("decode", "tokenize", "commit")

MARGIN = 1.25
"""Decoders are this many times as many as their times say: images and disks differ."""

LATEST = 1000
"""Chunks that medians are taken over."""

ENOUGH = 0.9
"""A stage that is busy for this share of its time bounds the rate; below it, what is between stages does."""


class StageTimes:
    """Sums of what chunks and commits report.

    Args:
        processes: How many of each stage there are.
        clock: Seconds of this process.
    """

    def __init__(self, processes: Mapping[str, int], clock: Callable[[], float] = time.monotonic) -> None:
        self.processes, self._clock = dict(processes), clock
        self.images = 0
        self._first: float | None = None
        self._last = 0.0
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._held: defaultdict[str, float] = defaultdict(float)
        self._per_image = {stage: deque[float](maxlen=LATEST) for stage in ("decode", "tokenize")}

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Takes the times of a finished chunk."""
        images = json.loads(chunk["counts"])["rows_in"]
        now = self._clock()
        if self._first is None:
            self._first = self._last = now
            return
        self._hold(now)
        self.images += images
        for stage, values in self._per_image.items():
            self._seconds[stage] += chunk[f"{stage}_s"]
            values.append(chunk[f"{stage}_s"] / max(1, images))

    def committed(self, seconds: float) -> None:
        """Takes the time of the commit of a shard."""
        if self._first is not None:
            self._hold(self._clock())
            self._seconds["commit"] += seconds

    def _hold(self, now: float) -> None:
        for stage, count in self.processes.items():
            self._held[stage] += (now - self._last) * count
        self._last = now

    def busy(self) -> dict[str, float]:
        """Returns the share of its time that each stage worked, in [0, 1]; none before a second chunk."""
        return {name: min(1.0, self._seconds[name] / held) for name, held in self._held.items() if held > 0}

    def seconds_per_image(self) -> dict[str, float]:
        """Returns medians over the latest chunks, of one process; none before a second chunk."""
        return {name: statistics.median(values) for name, values in self._per_image.items() if values}

    def decoders_for(self, workers: int) -> int | None:
        """Returns how many decoders keep that many tokenizers busy; None before a second chunk."""
        each = self.seconds_per_image()
        if not each or not each["tokenize"]:
            return None
        return max(1, math.ceil(MARGIN * workers * each["decode"] / each["tokenize"]))

    def table(self) -> list[tuple[str, ...]]:
        """Returns the closing table; empty where there were too few chunks to say anything."""
        busy, each = self.busy(), self.seconds_per_image()
        if not busy:
            return []
        lines = [("stage", "processes", "s/image", "busy", "")]
        most = max(busy, key=lambda name: busy[name])
        for stage in STAGES:
            seconds = f"{each[stage]:.3g}" if stage in each else "-"
            note = "bottleneck" if stage == most and busy[stage] >= ENOUGH else ""
            lines.append((stage, str(self.processes[stage]), seconds, f"{busy[stage]:.0%}", note))
        return lines

    def metrics(self) -> dict[str, float]:
        """Returns the same for tracking: ``stages/decode_busy``, ``_s_per_image``, ``_processes`` and so on;
        empty likewise."""
        found = {f"stages/{name}_busy": share for name, share in self.busy().items()}
        if found:
            found |= {f"stages/{name}_s_per_image": each for name, each in self.seconds_per_image().items()}
            found |= {f"stages/{name}_processes": count for name, count in self.processes.items()}
        return found
