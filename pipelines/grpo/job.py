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
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines import job
from pipelines.cluster import session
from pipelines.grpo.config import GrpoConfig
from pipelines.grpo.prepare import PreparedGrpo, prepare
from pipelines.job import Closing, Inputs, Items, Run
from pipelines.tracking import Tracker
from pipelines.training.job import TrainingJob

log = logging.getLogger(__name__)


class Grpo(TrainingJob[GrpoConfig]):
    """See the module."""

    name = "grpo"
    verb = "learn"
    ready: PreparedGrpo

    def check(self) -> PreparedGrpo:
        return prepare(self.config)

    def size(self) -> str:
        return self.ready.size()

    def work(self, run: Run[GrpoConfig]) -> Closing:
        log.info("%s", self.ready.size())
        return super().work(run)

    def stage(self) -> Any:
        from pipelines.grpo import run

        return run

    def train(self, tracker: Tracker) -> None:
        config, learner, rollout = self.config, self.config.learner, self.config.rollout
        held = learner.workers * learner.worker.cpus + rollout.workers * rollout.worker.cpus
        self.stage().learn(self.ready, tracker, session(num_cpus=config.num_cpus, at_least_cpus=held + 2))

    def items(self, record: Mapping[str, Any]) -> Sequence[Items]:
        drawn, rejected = record["prompts_drawn"], record["prompts_rejected"]
        return [Items("prompts", drawn, drawn - rejected, rejected)]


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
