"""The Ray wiring of a codebook sweep: one training run per quantizer, side by side on Ray Tune.

A trial is an ordinary training run in a folder of its own, so it resumes like one, and its record says that
it is done; Tune decides who runs when and who is stopped early. The driver alone talks to MLflow: the sweep
is a run, its trials are runs below it. After a kill ASHA judges the trials that are left among themselves.
"""

import json
import logging
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from pipelines import job as runs
from pipelines import provenance, rejects, storage
from pipelines.cluster import pool_session
from pipelines.job import Closing, Run
from pipelines.sweeps import report
from pipelines.sweeps.config import EXPERIMENT, STOPPED_FILE, SweepConfig
from pipelines.sweeps.trial_flags import in_trials, of_trials
from pipelines.tokenizer_training.architecture import architecture_of
from pipelines.tokenizer_training.prepare import PreparedTokenizer, prepare
from pipelines.tokenizer_training.run import task_of, train_on_ray
from pipelines.tokenizer_training.worker import train_worker
from pipelines.tracking import Tracker
from pipelines.training.checkpoints import load_history
from pipelines.training.job import items_of
from pipelines.training.resume import RECORD_FILE, is_complete
from samtok.errors import ClusterError

log = logging.getLogger(__name__)

CLOSED_FILE = "mlflow_closed.json"
"""Says that all of a trial is in MLflow, so that its curve is not logged twice."""


def sweep(config: SweepConfig, run: Run[SweepConfig]) -> Closing:
    """Runs the trials that are left, and compares all of them. Raises ClusterError if a trial did not end;
    the others are in the report."""
    base = _task(config.base()) if config.base_steps else None
    tracker = run.begin(config)
    start = None if base is None else _train_base(base)
    tasks = {name: _task(config.trial(name, start)) for name in config.quantizers}
    if config.scheduler.kind == "plain":  # what asha ended in an earlier attempt goes on
        for task in tasks.values():
            storage.delete(storage.join(task.config.out, STOPPED_FILE))
    todo = {name: task for name, task in tasks.items() if _outcome(task) is None}
    log.info("%d trials, %d done before", len(tasks), len(tasks) - len(todo))
    children = Children(config.tracking or "off", tracker.run_id, tasks)
    for name in tasks.keys() - todo.keys():
        children.close(name)
    failed = _tune(config, todo, children) if todo else {}
    rows = [_row(task, failed.get(name)) for name, task in tasks.items()]
    _publish(config, rows, tracker)
    if failed:
        listed = "; ".join(f"{name}: {error}" for name, error in failed.items())
        raise ClusterError(
            f"{len(failed)} of {len(tasks)} trials did not end ({listed}). The others are in the "
            "report; the same command goes on with these."
        )
    return Closing(
        [
            ("trials", f"{len(tasks)}, {len(todo)} of them now"),
            ("report", storage.join(config.out, "report/index.html")),
        ],
        items_of(_together(tasks.values())),
        reasons=rejects.together(
            rejects.of_run(task.config.out, outcome)
            for task in tasks.values()
            if (outcome := _outcome(task)) is not None
        ),
    )


def _task(config: Any) -> PreparedTokenizer:
    with in_trials():
        return task_of(prepare(config))


def _train_base(task: PreparedTokenizer) -> str:
    """Trains the steps that all trials share, unless that was done before; returns the tokenizer."""
    if not is_complete(task.config.out):
        log.info("training the %d steps that all trials share", task.config.steps)
        with in_trials():
            train_on_ray(task, Tracker("off", experiment="", home=task.config.out))
    return storage.join(task.config.out, "final")


def _together(tasks: Iterable[PreparedTokenizer]) -> dict[str, Any]:
    """Returns what all trials drew, as one record has it."""
    items: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in filter(None, map(_outcome, tasks)):
        for kind, counts in outcome.get("items", {}).items():
            items[kind].update(counts)
    return {"items": items}


def _outcome(task: PreparedTokenizer) -> dict[str, Any] | None:
    """Returns how a trial ended; None if it did not.

    A trial may have been ended with other settings before its first checkpoint, which does not count.
    """
    for name in (RECORD_FILE, STOPPED_FILE):
        where = storage.join(task.config.out, name)
        if storage.exists(where):
            body = storage.read_json(where)
            if body["fingerprint"] == task.digest:
                return {"file": name, **body}
    return None


# ---------------------------------------------------------------- MLflow


class Children:
    """The MLflow runs of trials, below that of the sweep: opened when first asked for, and closed once.

    The driver keeps them: a trial that the scheduler ends could not close its own. A driver that is killed
    right after a trial ended leaves that trial's run open; the next driver closes it.
    """

    def __init__(self, tracking: str, parent: str | None, tasks: Mapping[str, PreparedTokenizer]) -> None:
        self.tracking, self.parent, self.tasks = tracking, parent, tasks
        self._open: dict[str, Tracker] = {}

    def of(self, name: str) -> Tracker:
        """Returns the run of a trial; a resumed trial has the one it had."""
        if name not in self._open:
            task = self.tasks[name]
            tracker = Tracker(
                self.tracking, experiment=EXPERIMENT, home=task.config.out, name=name, parent=self.parent
            )
            tracker.params({"trial": name, **provenance.as_json(task.config)})
            tracker.tags({"fingerprint": task.digest})
            self._open[name] = tracker
        return self._open[name]

    def close(self, name: str) -> None:
        """Logs what became of a trial that has ended, and closes its run, unless that was done before."""
        task = self.tasks[name]
        where = storage.join(task.config.out, CLOSED_FILE)
        body = {"tracking_uri": self.tracking, "fingerprint": task.digest}
        if storage.exists(where) and storage.read_json(where) == body:
            return
        tracker, record = self.of(name), None
        if is_complete(task.config.out):
            record = storage.read_json(storage.join(task.config.out, RECORD_FILE))
            rows = load_history(task.config.out, record["history"])
            tracker.history(
                [(int(r["step"]) + 1, {f"train/{k}": v for k, v in r.items() if k != "step"}) for r in rows]
            )
            final = {f"final/{key}": float(value) for key, value in record["final"].items()}
            tracker.metrics(final, step=record["steps"])
        tracker.tags({"status": "ended by the scheduler" if record is None else "finished"})
        tracker.end()
        if tracker.run_id is not None:
            storage.write_bytes(where, json.dumps(body).encode())

    def fail(self, name: str) -> None:
        """Closes the run of a trial as failed; it is opened again when the trial is tried again."""
        self.of(name).end("FAILED")


# ---------------------------------------------------------------- Ray Tune


def _tune(config: SweepConfig, todo: Mapping[str, PreparedTokenizer], children: Children) -> dict[str, str]:
    """Runs the trials that are left; returns what went wrong, by trial."""
    scheduler, worker = config.scheduler, next(iter(todo.values())).config.worker
    with pool_session(scheduler.concurrent, worker, num_cpus=config.train.num_cpus, spare_cpus=1):
        from ray import tune

        from pipelines.sweeps.callback import TrialCallback

        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(_trial, tasks=dict(todo)), {"cpu": worker.cpus, "gpu": worker.gpus or 0}
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
                callbacks=[TrialCallback(children, todo)],
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


def _trial(params: dict[str, Any], tasks: Mapping[str, PreparedTokenizer]) -> None:
    """Runs in a trial's process: trains, and reports every validation.

    The last one is reported after the record is written, since Tune ends a trial that reports its last step.
    """
    from ray import tune

    task = tasks[params["name"]]

    def notify(kind: str, body: Mapping[str, Any]) -> None:
        if kind == "validation" and body["step"] < task.config.steps:
            tune.report({name: float(value) for name, value in body.items()})

    train_worker(task, notify, "cuda" if task.config.worker.gpus else "cpu")
    last = storage.read_json(storage.join(task.config.out, RECORD_FILE))["validations"][-1]
    tune.report({name: float(value) for name, value in last.items()})


def _last_line(error: BaseException | None) -> str:
    """Returns the message of an error; Tune, when interrupted, leaves trials without one."""
    return "interrupted" if error is None else of_trials(runs.last_line(error))


# ---------------------------------------------------------------- afterwards


def _row(task: PreparedTokenizer, error: str | None) -> dict[str, Any]:
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


def _publish(config: SweepConfig, rows: list[dict[str, Any]], tracker: Tracker) -> None:
    ceiling = None
    if config.base_steps:
        ceiling = storage.read_json(storage.join(config.out, "base", RECORD_FILE))["final"]["iou"]
    storage.write_bytes(storage.join(config.out, "results.json"), json.dumps(rows, indent=2).encode())
    pictures = report.write_report(config.out, rows, ceiling=ceiling)
    for name, data in pictures.items():
        tracker.picture(data, f"pictures/{name}")
    table = report.markdown_table(rows)
    tracker.text(table, "table.md")
    tracker.metrics({f"iou/{row['name']}": row["iou"] for row in rows if "iou" in row})
    sys.stdout.write(table + "\n")
