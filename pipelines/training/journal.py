"""What a run has gathered so far: its curve and its rejects, which count once a checkpoint names them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines import schema, shards, storage
from pipelines.training import checkpoints, world


class Journal:
    """Holds metrics and rejects since the last checkpoint, and knows what is in files already."""

    def __init__(self, out: str) -> None:
        self.out = out
        self.history: list[str] = []  # segments of the curve, in order
        self.reject_files: list[str] = []
        self.counts: Counter[str] = Counter()  # written rejects by reason
        self._rows: list[Mapping[str, Any]] = []
        self._rejects: list[dict[str, Any]] = []

    def add(self, metrics: Mapping[str, Any], rejects: Sequence[dict[str, Any]]) -> None:
        """Takes in one step: metrics of all workers, and this worker's rejects."""
        self._rejects += rejects
        if world.rank() == 0:
            self._rows.append(metrics)

    def write(self, step: int) -> None:
        """Writes what was added; collective. The first worker knows the files afterwards."""
        rejects = world.gathered(self._rejects)
        rows, self._rows, self._rejects = self._rows, [], []
        if world.rank() != 0:
            return
        if rows:
            self.history.append(checkpoints.save_segment(self.out, rows))
        self.counts.update(entry["reason"] for entry in rejects)
        if rejects:
            name = f"rejects/{step:08d}.parquet"
            table = schema.table(rejects, schema.REJECT_ROW)
            storage.write_bytes(storage.join(self.out, name), shards.parquet_bytes(table))
            self.reject_files.append(name)

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps."""
        files = {"history": list(self.history), "reject_files": list(self.reject_files)}
        return {**files, "rejects": dict(self.counts)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to what a checkpoint kept."""
        self.history, self.reject_files = list(state["history"]), list(state["reject_files"])
        self.counts = Counter(state["rejects"])

    def reasons(self) -> str:
        """Returns the rejects by reason so far, of this worker and of what is written, as text."""
        counts = self.counts + Counter(entry["reason"] for entry in self._rejects)
        return ", ".join(f"{reason} {count}" for reason, count in counts.most_common()) or "none"
