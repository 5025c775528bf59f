"""Runs reinforcement learning: checks, processes on Ray, what is published afterwards."""

import dataclasses
import json
import logging
import time
from typing import Any

from pipelines import job as runs
from pipelines import provenance, storage
from pipelines.cluster import session
from pipelines.grpo.config import GrpoConfig
from pipelines.grpo.loop import Loop, State
from pipelines.grpo.observe import report
from pipelines.grpo.observe.progress import Show
from pipelines.grpo.prepare import EMBEDDED, Plan, describe, prepare, resolve, with_embedded
from pipelines.grpo.team import Team, cpus_needed
from pipelines.tracking import Tracker
from pipelines.training.checkpoints import load_history
from pipelines.training.resume import RECORD_FILE

log = logging.getLogger(__name__)


def grpo(config: GrpoConfig, *, experiment: str) -> int:
    """Runs the job; returns its exit code."""
    return runs.guard(lambda: _grpo(config, experiment))


def _grpo(told: GrpoConfig, experiment: str) -> int:
    told = resolve(told)
    if told.prompts.corpora[0].startswith(EMBEDDED):
        with session(num_cpus=told.num_cpus, at_least_cpus=cpus_needed(told) + 2):
            return _run(with_embedded(told), experiment)
    return _run(told, experiment)


def _run(told: GrpoConfig, experiment: str) -> int:
    plan = prepare(told)
    config = plan.config
    print(describe(plan), end="", flush=True)  # noqa: T201 presets are seen in full
    if config.dry_run:
        return 0
    storage.write_bytes(storage.join(config.out, "config.json"), provenance.config_json(config).encode())
    tracker = Tracker(config.tracking, experiment=experiment, home=config.out)
    tracker.params(json.loads(provenance.config_json(config)))
    tracker.tags({"fingerprint": plan.task.fingerprint, **provenance.versions()})
    lineage = {**plan.task.lineage, "mlflow_run": tracker.run_id}
    plan = dataclasses.replace(plan, task=dataclasses.replace(plan.task, lineage=lineage))
    try:
        if storage.exists(storage.join(config.out, RECORD_FILE)):
            log.info("%s is complete; nothing is left to learn", config.out)
        else:
            _learn(plan, tracker, told)
        _publish(plan, tracker)
    except BaseException:
        tracker.end("FAILED")
        raise
    tracker.end()
    return 0


def _learn(plan: Plan, tracker: Tracker, told: GrpoConfig) -> None:
    """Goes through the run and writes its record, which says that it is complete."""
    config, task = plan.config, plan.task
    needed = cpus_needed(config) + 1
    started = time.monotonic()
    with session(num_cpus=config.num_cpus, at_least_cpus=needed) as cluster:
        team = Team(task, plan.prompts, plan.held_out, cluster)
        try:
            loop = Loop(team, plan.prompts, plan.held_out, Show(config.steps, tracker))
            state = loop.run()
        finally:
            team.end()
    record = {
        **_facts(state, loop),
        "fingerprint": task.fingerprint,
        "wall_s": round(time.monotonic() - started, 1),
        "lineage": dict(task.lineage),
        "command": provenance.command(),
        "date": time.strftime("%Y-%m-%d"),
        "config": json.loads(provenance.config_json(told)),
        "versions": provenance.versions(),
    }
    storage.write_bytes(storage.join(config.out, RECORD_FILE), (json.dumps(record, indent=2) + "\n").encode())


def _facts(state: State, loop: Loop) -> dict[str, Any]:
    return {
        "steps": state.step,
        "prompts_drawn": state.drawn,
        "prompts_rejected": state.rejected,
        "samples": state.samples,
        "samples_per_s": round(state.samples / max(state.seconds.get("s_step", 0.0), 1e-9), 1),
        "seconds": {name: round(value, 2) for name, value in state.seconds.items()},
        "best": [{"step": step, loop.best.metric: value} for step, value in loop.best.best],
        "looks": state.looks,
        "alarms": state.alarms,
        "learner_restarts": loop.restarts,
        "sampler_deaths": loop.team.pool.failures,
        **loop.journal.state(),
    }


def _publish(plan: Plan, tracker: Tracker) -> None:
    """Makes the report of a finished run."""
    config = plan.config
    record = storage.read_json(storage.join(config.out, RECORD_FILE))
    pictures = report.write_report(
        config.out,
        config=json.loads(provenance.config_json(config)),
        record=record,
        history=load_history(config.out, record["history"]),
        validations=record["looks"],
    )
    for name, data in pictures.items():
        tracker.picture(data, f"pictures/{name}")
    log.info(
        "%d replies in %.0f s of steps, %.1f a second",
        *(record["samples"], record["seconds"].get("s_step", 0.0), record["samples_per_s"]),
    )
    if config.debug in ("off", "train-only"):
        log.info("model: %s", storage.join(config.out, "final"))
    log.info("report: %s", storage.join(config.out, "report/index.html"))
