"""Runs fine-tuning: checks, workers on Ray Train, what is published afterwards."""

import dataclasses
import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from pipelines import job as runs
from pipelines import provenance, storage
from pipelines.sft import report
from pipelines.sft.config import TrainMllmConfig
from pipelines.sft.pictures import Gallery
from pipelines.sft.prepare import dry_run, prepare, resolve
from pipelines.sft.worker import RECORD_FILE, Task, train_worker, write_record
from pipelines.tracking import Tracker
from pipelines.training.checkpoints import load_history
from pipelines.training.fit import fit_on_ray
from pipelines.training.progress import Progress

log = logging.getLogger(__name__)

_HIDDEN = ("learnt_tokens", "samples", "lr")


def train_mllm(config: TrainMllmConfig) -> int:
    """Runs the job; returns its exit code."""
    return runs.guard(lambda: _train_mllm(config))


def _train_mllm(told: TrainMllmConfig) -> int:
    task = prepare(resolve(told))
    config = task.config
    if config.dry_run:
        return dry_run(task)
    storage.write_bytes(storage.join(config.out, "config.json"), provenance.config_json(config).encode())
    tracker = Tracker(config.tracking, experiment="train_mllm", home=config.out)
    tracker.params(json.loads(provenance.config_json(config)))
    tracker.tags({"fingerprint": task.fingerprint, **provenance.versions()})
    task = dataclasses.replace(task, lineage={**task.lineage, "mlflow_run": tracker.run_id})
    try:
        if storage.exists(storage.join(config.out, RECORD_FILE)):
            log.info("%s is complete; nothing is left to train", config.out)
        else:
            _train_on_ray(task, tracker)
        _publish(task, told, tracker)
    except BaseException:
        tracker.end("FAILED")
        raise
    tracker.end()
    return 0


def _train_on_ray(task: Task, tracker: Tracker) -> None:
    config = task.config
    progress = Progress(
        config.steps,
        tracker,
        log_every_s=config.log_every_s,
        unit="tokens",
        hidden=_HIDDEN,
        validation_line=_validation_line,
    )
    with Gallery(config, tracker, progress) as gallery:
        fit_on_ray(
            train_worker,
            task,
            out=config.out,
            workers=config.workers,
            hear=gallery.hear,
            memory_flag="engine.samples-per-micro-batch",
        )


def _validation_line(body: Mapping[str, Any]) -> str:
    best = ", the best so far" if body["best"] else ""
    return (
        f"held out after {body['step']} steps: loss {body['loss']:.4f}, {100 * body['tokens']:.1f} % of "
        f"tokens and {100 * body['codes']:.1f} % of codes right after the true text{best}"
    )


def _publish(task: Task, told: TrainMllmConfig, tracker: Tracker) -> None:
    """Adds to the record what only the driver knows, and makes the report."""
    config = task.config
    record = storage.read_json(storage.join(config.out, RECORD_FILE))
    if "command" not in record:
        record |= {"command": provenance.command(), "date": time.strftime("%Y-%m-%d")}
        record |= {"config": json.loads(provenance.config_json(told)), "versions": provenance.versions()}
        write_record(config.out, record)
    pictures = report.write_report(
        config.out,
        config=json.loads(provenance.config_json(config)),
        record=record,
        history=load_history(config.out, record["history"]),
    )
    for name, data in pictures.items():
        tracker.picture(data, f"pictures/{name}")
    if record["validations"]:
        last = {name: v for name, v in record["validations"][-1].items() if name not in ("step", "best")}
        tracker.metrics({f"final/{name}": value for name, value in last.items()}, step=config.steps)
    log.info(
        "%.0f s of training, %.0f tokens/s", record["times"]["training_s"], record["times"]["tokens_per_s"]
    )
    log.info("model: %s  report: %s", *(storage.join(config.out, n) for n in ("final", "report/index.html")))
