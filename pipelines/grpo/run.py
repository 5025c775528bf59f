"""What is its own of reinforcement learning between the checks and the closing table: processes on Ray, the
record, the report."""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from pipelines import provenance, storage
from pipelines.cluster import ClusterInfo
from pipelines.grpo.learn.learner import policy_settings
from pipelines.grpo.loop import Loop
from pipelines.grpo.observe import report
from pipelines.grpo.observe.progress import GrpoProgress
from pipelines.grpo.prepare import PreparedGrpo
from pipelines.grpo.team import Team
from pipelines.tracking import Tracker
from pipelines.training.prepare import Prepared
from pipelines.training.resume import write_record
from samtok.rl.policy import unusual_clips

log = logging.getLogger(__name__)


def learn(ready: PreparedGrpo, tracker: Tracker, cluster: AbstractContextManager[ClusterInfo]) -> None:
    """Goes through what is left of a run and writes its record, which marks it as complete."""
    config, started = ready.config, time.monotonic()
    if (unusual := unusual_clips(policy_settings(config.algorithm))) is not None:
        log.warning("%s", unusual)
    task = Prepared(  # without the prompts, which learners do not need
        config=config, fingerprint=ready.fingerprint, lineage=ready.lineage, deepspeed=ready.deepspeed
    )
    with cluster as info:
        team = Team(task, ready.prompts, ready.held_out, info)
        try:
            loop = Loop(team, ready.prompts, ready.held_out, GrpoProgress(config.steps, tracker))
            state = loop.run()
        finally:
            team.end()
    record = {
        "steps": state.step,
        "prompts_drawn": state.drawn,
        "prompts_rejected": state.rejected,
        "samples": state.samples,
        "samples_per_s": round(state.samples / max(state.seconds.get("s_step", 0.0), 1e-9), 1),
        "seconds": {name: round(value, 2) for name, value in state.seconds.items()},
        "best": [{"step": step, loop.best.metric: value} for step, value in loop.best.best],
        "validations": state.validations,
        "alarms": state.alarms,
        "learner_restarts": loop.restarts,
        "sampler_deaths": team.pool.failures,
        **loop.journal.state(),
        "fingerprint": ready.digest,
        "wall_s": round(time.monotonic() - started, 1),
        "lineage": ready.lineage,
    }
    write_record(config.out, record)


def publish(
    ready: PreparedGrpo, record: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, bytes], list[tuple[str, str]]]:
    """Writes the report; returns its pictures, and rows of the closing table."""
    config = ready.config
    body = provenance.as_json(config)
    pictures = report.write_report(config.out, config=body, record=record, history=history)
    seconds = record["seconds"].get("s_step", 0.0)
    rows = [("rate", f"{record['samples_per_s']:.1f} responses/s over {seconds:.0f} s of steps")]
    if config.debug in ("off", "train-only"):
        rows.append(("model", storage.join(config.out, "final")))
    return pictures, rows
