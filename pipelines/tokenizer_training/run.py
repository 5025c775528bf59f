"""Runs tokenizer training: checks, workers on Ray Train, what is published afterwards."""

import dataclasses
import json
import logging
import time

from pipelines import job as runs
from pipelines import provenance, storage
from pipelines.tokenizer_training import report
from pipelines.tokenizer_training.config import TrainTokenizerConfig
from pipelines.tokenizer_training.data import held_out_samples, validation_sources
from pipelines.tokenizer_training.prepare import dry_run, prepare, resolve
from pipelines.tokenizer_training.progress import progress_of
from pipelines.tokenizer_training.worker import RECORD_FILE, Task, train_worker, write_record
from pipelines.tracking import Tracker
from pipelines.training.checkpoints import load_history
from pipelines.training.fit import fit_on_ray
from pipelines.training.progress import Progress
from samtok.model.tokenizer import MaskTokenizer

log = logging.getLogger(__name__)

SHEET_IMAGES = 8


def train_tokenizer(config: TrainTokenizerConfig) -> int:
    """Runs the job; returns its exit code."""
    return runs.guard(lambda: _train_tokenizer(config))


def _train_tokenizer(told: TrainTokenizerConfig) -> int:
    config = resolve(told)
    task = prepare(config)
    if config.dry_run:
        return dry_run(task)
    storage.write_bytes(storage.join(config.out, "config.json"), provenance.config_json(config).encode())
    tracker = Tracker(config.tracking, experiment="train_tokenizer", home=config.out)
    tracker.params(json.loads(provenance.config_json(config)))
    tracker.tags({"fingerprint": task.fingerprint, **provenance.versions()})
    task = _with_mlflow_run(task, tracker)
    try:
        if storage.exists(storage.join(config.out, RECORD_FILE)):
            log.info("%s is complete; nothing is left to train", config.out)
        else:
            train_on_ray(task, progress_of(config, tracker))
        _publish(task, told, tracker)
    except BaseException:
        tracker.end("FAILED")
        raise
    tracker.end()
    return 0


def _with_mlflow_run(task: Task, tracker: Tracker) -> Task:
    return dataclasses.replace(task, lineage={**task.lineage, "mlflow_run": tracker.run_id})


def train_on_ray(task: Task, progress: Progress) -> None:
    """Trains on the workers of the config; returns when the run is complete. Raises as ``fit_on_ray``."""
    config = task.config
    fit_on_ray(
        train_worker,
        task,
        out=config.out,
        workers=config.workers,
        hear=progress.hear,
        memory_flag="engine.images-per-micro-batch",
    )


# ---------------------------------------------------------------- afterwards


def _publish(task: Task, told: TrainTokenizerConfig, tracker: Tracker) -> None:
    """Adds to the record what only the driver knows, and makes the report."""
    config = task.config
    record = storage.read_json(storage.join(config.out, RECORD_FILE))
    if "command" not in record:
        record |= {"command": provenance.command(), "date": time.strftime("%Y-%m-%d")}
        record |= {"config": json.loads(provenance.config_json(told)), "versions": provenance.versions()}
        write_record(config.out, record)
    tokenizer = MaskTokenizer.from_pretrained(storage.join(config.out, "final"), read=storage.read_bytes)
    samples = held_out_samples(
        validation_sources(config, task.validation_index),
        SHEET_IMAGES,
        masks_per_image=4,
        seed=config.validation.seed,
        rank=0,
        world=1,
    )
    pictures = report.write_report(
        config.out,
        config=json.loads(provenance.config_json(config)),
        record=record,
        history=load_history(config.out, record["history"]),
        validations=record["validations"],
        sheet=report.contact_sheet_of(tokenizer, list(samples)),
    )
    for name, data in pictures.items():
        tracker.picture(data, f"pictures/{name}")
    final = {name: value for name, value in record["final"].items() if not isinstance(value, bool)}
    tracker.metrics({f"final/{name}": value for name, value in final.items()}, step=config.steps)
    how = (
        f"through codes, {final['iou_continuous']:.4f} without"
        if "iou_continuous" in final
        else "without codes"
    )
    log.info(
        "held out: IoU %.4f %s, %.4f with what another image's masks say, %d masks",
        *(final["iou"], how, final["iou_shuffled"], final["masks"]),
    )
    log.info(
        "tokenizer: %s  report: %s",
        *(storage.join(config.out, name) for name in ("final", "report/index.html")),
    )
