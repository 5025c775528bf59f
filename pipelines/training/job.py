"""The frame of a training job: what comes before workers start and after they have ended.

OUT/config.json, fingerprint.json   the run, and what of it decides the result
OUT/checkpoints/, history/          see ``checkpoints``
OUT/rejects/                        items that were drawn and could not be used
OUT/best/, final/                   what was trained
OUT/record.json                     written last: numbers, items, times, lineage
OUT/report/index.html               curves and pictures

Loads neither torch nor Ray until it trains.
"""

import dataclasses
import logging
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from pipelines import provenance, rejects, storage
from pipelines.config import RunConfig
from pipelines.job import Closing, Items, Job, Run
from pipelines.tracking import Tracker
from pipelines.training.prepare import Prepared
from pipelines.training.resume import RECORD_FILE, claim, is_complete, write_record

log = logging.getLogger(__name__)

C = TypeVar("C", bound=RunConfig)


class TrainingJob(Job[C], Generic[C]):
    """What is its own of a training job. Its config says ``num_cpus`` as ``TrainingConfig`` does."""

    verb: ClassVar[str] = "train"
    """What a complete run has nothing left to do of."""
    ready: Prepared[C]

    @abstractmethod
    def check(self) -> Prepared[C]:
        """Checks what can be known before anything runs; writes nothing."""

    @abstractmethod
    def stage(self) -> Any:
        """Returns the module ``run`` of the stage, which loads torch.

        It has ``train(ready, tracker)``, which goes on from the last checkpoint to the end, and
        ``publish(ready, record, history)``, which writes the report and returns its pictures by file name and
        rows of the closing table.
        """

    def train(self, tracker: Tracker) -> None:
        """Trains to the end."""
        self.stage().train(self.ready, tracker)

    def prepare(self) -> None:
        self.ready = self.check()
        self.ready.check_folder()
        self.config = self.ready.config

    def work(self, run: Run[C]) -> Closing:
        out = self.config.out
        claim(out, self.ready.fingerprint)
        tracker = run.begin(self.config, tags={"fingerprint": self.ready.digest})
        if is_complete(out):
            log.info("%s is complete; nothing is left to %s", out, self.verb)
        else:
            lineage = {**self.ready.lineage, "mlflow_run": tracker.run_id}
            self.ready = dataclasses.replace(self.ready, lineage=lineage)
            self.train(tracker)
        record = self._record()
        rows = self._publish(record, tracker)
        rows.append(("report", storage.join(out, "report/index.html")))
        return Closing(rows, self.items(record), reasons=rejects.of_run(out, record))

    def items(self, record: Mapping[str, Any]) -> Sequence[Items]:
        """Returns what became of all that a run drew."""
        return items_of(record)

    def _publish(self, record: Mapping[str, Any], tracker: Tracker) -> list[tuple[str, str]]:
        from pipelines.training.checkpoints import load_history  # loads torch

        history = load_history(self.config.out, record["history"])
        pictures, rows = self.stage().publish(self.ready, record, history)
        for name, data in pictures.items():
            tracker.picture(data, f"pictures/{name}")
        if final := record.get("final"):
            kept = {name: v for name, v in final.items() if name != "step" and not isinstance(v, bool)}
            tracker.metrics({f"final/{name}": value for name, value in kept.items()}, step=record["steps"])
        return rows

    def _record(self) -> dict[str, Any]:
        """Adds to the record what only the driver knows."""
        record = storage.read_json(storage.join(self.config.out, RECORD_FILE))
        if "command" not in record:
            record |= {"command": provenance.command(), "date": time.strftime("%Y-%m-%d")}
            record |= {"config": provenance.as_json(self.config), "versions": provenance.versions()}
            write_record(self.config.out, record)
        return record


def items_of(record: Mapping[str, Any]) -> Sequence[Items]:
    """Returns what became of all that a run drew; of a run before they were counted, nothing is known."""
    return [
        Items(
            kind,
            total=counts["total"],
            out=counts["total"] - counts["rejected"] - counts["filtered"],
            rejected=counts["rejected"],
            filtered=counts["filtered"],
        )
        for kind, counts in record.get("items", {}).items()
    ]
