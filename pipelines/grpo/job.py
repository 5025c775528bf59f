"""The jobs ``grpo_gres`` and ``grpo_gcg``: a model learns from rewards on its own responses.

OUT/config.json, fingerprint.json   the run, and what of it decides the result
OUT/checkpoints/, history/          see ``pipelines.training.checkpoints``
OUT/rejects/                        prompts that were drawn and could not be asked
OUT/trajectories/                   responses with their rewards, see ``trajectories``
OUT/best-STEP/, final/              models
OUT/record.json                     written last: numbers, alarms, times, lineage
OUT/report/index.html               curves, validations, responses with masks
"""

import logging
from contextlib import AbstractContextManager
from typing import Any

from pipelines import job, storage
from pipelines.cluster import session
from pipelines.grpo.config import GrpoConfig
from pipelines.grpo.prepare import prepare
from pipelines.job import Closing, Inputs, Items, Job, Run
from pipelines.training.resume import RECORD_FILE, claim, is_complete

log = logging.getLogger(__name__)


class Grpo(Job[GrpoConfig]):
    """See the module."""

    name = "grpo"

    def cpus(self) -> float:
        learner, rollout = self.config.learner, self.config.rollout
        return learner.workers * learner.worker.cpus + rollout.workers * rollout.worker.cpus

    def session(self) -> AbstractContextManager[Any]:
        return session(num_cpus=self.config.num_cpus, at_least_cpus=self.cpus() + 2)

    def prepare(self) -> None:
        self.ready = prepare(self.config)
        self.config = self.ready.config

    def size(self) -> str:
        return self.ready.size()

    def work(self, run: Run[GrpoConfig]) -> Closing:
        from pipelines.grpo.run import learn, publish  # load torch and Ray

        config, out = self.config, self.config.out
        log.info("%s", self.ready.size())
        claim(out, self.ready.fingerprint)
        tracker = run.begin(config, tags={"fingerprint": self.ready.digest})
        if is_complete(out):
            log.info("%s is complete; nothing is left to learn", out)
        else:
            learn(self.ready, tracker, self.session())
        record = storage.read_json(storage.join(out, RECORD_FILE))
        publish(config, record, tracker)
        seconds = record["seconds"].get("s_step", 0.0)
        rows = [("rate", f"{record['samples_per_s']:.1f} responses/s over {seconds:.0f} s of steps")]
        if config.debug in ("off", "train-only"):
            rows.append(("model", storage.join(out, "final")))
        rows.append(("report", storage.join(out, "report/index.html")))
        drawn, rejected = record["prompts_drawn"], record["prompts_rejected"]
        return Closing(
            rows, (Items("prompts", drawn, drawn - rejected, rejected, reasons=record["rejects"]),)
        )


class GrpoGres(Grpo):
    """Referring questions."""

    name = "grpo_gres"


class GrpoGcg(Grpo):
    """Captions with interleaved masks."""

    name = "grpo_gcg"


def grpo_gres(config: GrpoConfig, *, inputs: Inputs | None = None) -> int:
    """Runs the job; returns its exit code."""
    return job.run(GrpoGres, config, inputs=inputs)


def grpo_gcg(config: GrpoConfig, *, inputs: Inputs | None = None) -> int:
    """Runs the job; returns its exit code."""
    return job.run(GrpoGcg, config, inputs=inputs)
