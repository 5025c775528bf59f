"""What a run has gathered so far: its curve and its rejects, which count once a checkpoint names them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines import schema, shards, storage
from pipelines.training import checkpoints, world


@dataclass
class Written:
    """What is in files already; part of every checkpoint.

    Attributes:
        history: Segments of the curve, in order.
        reject_files: Tables of rejects, in order.
        rejects: Rejects by reason.
    """

    history: list[str] = field(default_factory=list)
    reject_files: list[str] = field(default_factory=list)
    rejects: dict[str, int] = field(default_factory=dict)


class Journal:
    """Holds metrics and rejects of the steps since the last checkpoint.

    Args:
        out: Folder of the run.
    """

    def __init__(self, out: str) -> None:
        self.out, self.written = out, Written()
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
            self.written.history.append(checkpoints.save_segment(self.out, rows))
        self.written.rejects = dict(Counter(self.written.rejects) + Counter(e["reason"] for e in rejects))
        if rejects:
            name = f"rejects/{step:08d}.parquet"
            table = schema.table(rejects, schema.REJECT_ROW)
            storage.write_bytes(storage.join(self.out, name), shards.parquet_bytes(table))
            self.written.reject_files.append(name)

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps."""
        return asdict(self.written)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to what a checkpoint kept."""
        self.written = Written(**state)

    def reasons(self) -> str:
        """Returns the rejects by reason so far, of this worker and of what is written, as text."""
        counts = Counter(self.written.rejects) + Counter(entry["reason"] for entry in self._rejects)
        return ", ".join(f"{reason} {count}" for reason, count in counts.most_common()) or "none"
