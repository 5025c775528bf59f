"""The Ray wiring of a codebook sweep: one training run per quantizer, side by side on Ray Tune.

A trial is an ordinary training run in a folder of its own, so it resumes like one, and its record says that
it is done; Tune decides who runs when and who is stopped early. The driver alone talks to MLflow: the sweep
is a run, its trials are runs below it. After a kill ASHA judges the trials that are left among themselves.
"""

import dataclasses
import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from pipelines import job as runs
from pipelines import provenance, storage
from pipelines.cluster import session
from pipelines.sweeps import report
from pipelines.sweeps.children import Children
from pipelines.sweeps.config import EXPERIMENT, STOPPED_FILE, SweepConfig
from pipelines.tokenizer_training.prepare import prepare, resolve
from pipelines.tokenizer_training.progress import progress_of
from pipelines.tokenizer_training.run import train_on_ray
from pipelines.tokenizer_training.trainee import architecture_of, check_quantize_from
from pipelines.tokenizer_training.worker import RECORD_FILE, Task, train_worker
from pipelines.tracking import Tracker
from samtok.errors import ClusterError

log = logging.getLogger(__name__)


def sweep_codebook(config: SweepConfig) -> int:
    """Runs the job; returns its exit code."""
    return runs.guard(lambda: _sweep(config))


def _sweep(config: SweepConfig) -> int:
    started = time.monotonic()
    runs.refuse_lost_folders(config.out, config.tracking)
    config = dataclasses.replace(config, out=storage.absolute(config.out))
    for name in config.quantizers:  # all of them, before the first one costs anything
        check_quantize_from(config.trial(name, None))
    if config.dry_run:
        return _dry_run(config)
    storage.check(config.out)
    tracker = Tracker(config.tracking, experiment=EXPERIMENT, home=config.out)
    tracker.params(json.loads(provenance.config_json(config)))
    tracker.tags(provenance.versions())
    try:
        base = _train_base(config) if config.base_steps else None
        tasks = {name: prepare(resolve(config.trial(name, base))) for name in config.quantizers}
        storage.write_bytes(storage.join(config.out, "config.json"), provenance.config_json(config).encode())
        if config.scheduler.kind == "plain":  # what asha ended in an earlier attempt goes on
            for task in tasks.values():
                storage.delete(storage.join(task.config.out, STOPPED_FILE))
        todo = {name: task for name, task in tasks.items() if _outcome(task) is None}
        log.info("%d trials, %d done before", len(tasks), len(tasks) - len(todo))
        children = Children(config.tracking, tracker.run_id, tasks)
        for name in tasks.keys() - todo.keys():
            children.close(name)
        failed = _tune(config, todo, children) if todo else {}
        rows = [_row(task, failed.get(name)) for name, task in tasks.items()]
        _publish(config, rows, tracker, base)
        log.info("%d trials in %.0f s", len(todo), time.monotonic() - started)
        if failed:
            told = "; ".join(f"{name}: {error}" for name, error in failed.items())
            raise ClusterError(
                f"{len(failed)} of {len(tasks)} trials did not end ({told}). The others are in the "
                "report; the same command goes on with these."
            )
    except BaseException:
        tracker.end("FAILED")
        raise
    tracker.end()
    return 0


def _dry_run(config: SweepConfig) -> int:
    sys.stdout.write(provenance.config_json(config))
    for name in config.quantizers:
        quantizer = architecture_of(config.trial(name, None)).quantizer
        words, bits = quantizer.num_words, quantizer.bits_per_mask
        sys.stdout.write(f"trial {name}: {words} words, {bits:.1f} bits a mask, {config.train.steps} steps\n")
    return 0


def _train_base(config: SweepConfig) -> str:
    """Trains the steps that all trials share, unless that was done before; returns the tokenizer."""
    task = prepare(resolve(config.base()))
    if not storage.exists(storage.join(task.config.out, RECORD_FILE)):
        log.info("training the %d steps that all trials share", config.base_steps)
        tracker = Tracker("off", experiment="", home=task.config.out)
        train_on_ray(task, progress_of(task.config, tracker))
    return storage.join(task.config.out, "final")


def _outcome(task: Task) -> dict[str, Any] | None:
    """Returns how a trial ended; None if it did not.

    A trial may have been ended with other settings before its first checkpoint, which does not count.
    """
    for name in (RECORD_FILE, STOPPED_FILE):
        where = storage.join(task.config.out, name)
        if storage.exists(where):
            body = storage.read_json(where)
            if body["fingerprint"] == task.fingerprint:
                return {"file": name, **body}
    return None


# ---------------------------------------------------------------- Ray Tune


def _tune(config: SweepConfig, todo: Mapping[str, Task], children: Children) -> dict[str, str]:
    """Runs the trials that are left; returns what went wrong, by trial."""
    scheduler, workers = config.scheduler, next(iter(todo.values())).config.workers
    cpus = scheduler.concurrent * workers.cpus
    with session(num_cpus=workers.num_cpus, at_least_cpus=cpus + 1) as cluster:
        cluster.require(cpus=cpus, gpus=scheduler.concurrent * (workers.gpus or 0))
        from ray import tune

        from pipelines.sweeps.listener import Listener

        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(_trial, tasks=dict(todo)),
                {"cpu": workers.cpus, "gpu": workers.gpus or 0},
            ),
            param_space={"name": tune.grid_search(list(todo))},
            tune_config=tune.TuneConfig(
                metric="iou",
                mode="max",
                scheduler=_scheduler(config),
                max_concurrent_trials=scheduler.concurrent,
                trial_dirname_creator=lambda trial: f"{trial.config['name']}-{trial.trial_id}",
            ),
            run_config=tune.RunConfig(
                name=f"attempt-{time.time_ns()}",  # a fresh one: what is done is ours to know, not Tune's
                storage_path=storage.join(config.out, "ray"),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=scheduler.max_failures),
                callbacks=[Listener(children, todo)],
            ),
        )
        results = tuner.fit()
        storage.delete_folder(storage.join(config.out, "ray"))
        errors = {result.config["name"]: result.error for result in results if result.config is not None}
        return {name: _last_line(errors.get(name)) for name, task in todo.items() if _outcome(task) is None}


def _scheduler(config: SweepConfig) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    if config.scheduler.kind == "plain":
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="step",
        max_t=config.train.steps,
        grace_period=config.scheduler.grace_steps,
        reduction_factor=config.scheduler.reduction,
    )


def _trial(params: dict[str, Any], tasks: Mapping[str, Task]) -> None:
    """Runs in a trial's process: trains, and reports every look at held-out masks.

    The last look is reported after the record is written, since Tune ends a trial that reports its last step.
    """
    from ray import tune

    task = tasks[params["name"]]

    def tell(kind: str, body: Mapping[str, Any]) -> None:
        if kind == "validation" and body["step"] < task.config.steps:
            tune.report({name: float(value) for name, value in body.items()})

    train_worker(task, tell, "cuda" if task.config.workers.gpus else "cpu")
    last = storage.read_json(storage.join(task.config.out, RECORD_FILE))["validations"][-1]
    tune.report({name: float(value) for name, value in last.items()})


def _last_line(error: BaseException | None) -> str:
    """Returns what an error says; Tune, when interrupted, leaves trials without one."""
    if error is None:
        return "interrupted"
    return runs.last_line(error)


# ---------------------------------------------------------------- afterwards


def _row(task: Task, error: str | None) -> dict[str, Any]:
    """Returns a trial's line of the table."""
    quantizer = architecture_of(task.config).quantizer
    row = {
        "name": task.config.out.rsplit("/", 1)[-1],
        "kind": "rq-shared" if quantizer.shared else quantizer.kind,
        "num_codes": quantizer.num_codes,
        "num_levels": quantizer.num_levels,
        "shared": quantizer.shared,
        "grid": list(quantizer.grid),
        "words": quantizer.num_words,
        "bits_per_mask": quantizer.bits_per_mask,
    }
    outcome = _outcome(task)
    if outcome is None:
        return row | {"status": "failed", "error": error or "it did not end"}
    status = "finished" if outcome["file"] == RECORD_FILE else "stopped"
    seconds = outcome.get("times", {}).get("training_s")
    steps = int(outcome["final"].get("step", outcome.get("steps", 0)))
    return row | outcome["final"] | {"status": status, "seconds": seconds, "steps": steps}


def _publish(config: SweepConfig, rows: list[dict[str, Any]], tracker: Tracker, base: str | None) -> None:
    ceiling = None
    if base is not None:
        ceiling = storage.read_json(storage.join(config.out, "base", RECORD_FILE))["final"]["iou"]
    storage.write_bytes(storage.join(config.out, "results.json"), json.dumps(rows, indent=2).encode())
    pictures = report.write_report(config.out, rows, ceiling=ceiling)
    for name, data in pictures.items():
        tracker.picture(data, f"pictures/{name}")
    table = report.markdown_table(rows)
    tracker.text(table, "table.md")
    tracker.metrics({f"iou/{row['name']}": row["iou"] for row in rows if "iou" in row})
    sys.stdout.write(table + "\n")
    log.info("report: %s", storage.join(config.out, "report/index.html"))
