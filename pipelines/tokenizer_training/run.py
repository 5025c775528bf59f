"""The Ray wiring of tokenizer training.

Ray Train starts the workers, joins them into a process group and replaces dead ones; workers find the last
checkpoint in the run's own folder (``checkpoints``). They tell a small actor what happens, and the driver,
which alone shows progress and talks to MLflow, listens to it.
"""

import contextlib
import dataclasses
import json
import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, cast

from pipelines import run as runs
from pipelines import storage
from pipelines.cluster import session
from pipelines.tokenizer_training import report
from pipelines.tokenizer_training.checkpoints import load_history
from pipelines.tokenizer_training.config import TrainTokenizerConfig
from pipelines.tokenizer_training.data import held_out_samples, validation_sources
from pipelines.tokenizer_training.prepare import dry_run, prepare, resolve
from pipelines.tokenizer_training.progress import Event, Progress
from pipelines.tokenizer_training.worker import RECORD_FILE, Task, train_worker, write_record
from pipelines.tracking import Tracker
from samtok.errors import ClusterError, SamtokError
from samtok.model.tokenizer import MaskTokenizer

log = logging.getLogger(__name__)

LISTEN_EVERY_S = 0.5
SHEET_IMAGES = 8


def train_tokenizer(config: TrainTokenizerConfig) -> int:
    """Runs the job; returns its exit code."""
    return runs.guard(lambda: _train_tokenizer(config))


def _train_tokenizer(told: TrainTokenizerConfig) -> int:
    config = resolve(told)
    task = prepare(config)
    if config.dry_run:
        return dry_run(task)
    storage.write_bytes(storage.join(config.out, "config.json"), runs.config_json(config).encode())
    tracker = Tracker(config.tracking, experiment="train_tokenizer", home=config.out)
    tracker.params(json.loads(runs.config_json(config)))
    tracker.tags({"fingerprint": task.fingerprint, **runs.versions()})
    task = _with_mlflow_run(task, tracker)
    try:
        if storage.exists(storage.join(config.out, RECORD_FILE)):
            log.info("%s is complete; nothing is left to train", config.out)
        else:
            train_on_ray(task, Progress(config, tracker))
        _publish(task, told, tracker)
    except BaseException:
        tracker.end("FAILED")
        raise
    tracker.end()
    return 0


def _with_mlflow_run(task: Task, tracker: Tracker) -> Task:
    return dataclasses.replace(task, lineage={**task.lineage, "mlflow_run": tracker.run_id})


# ---------------------------------------------------------------- Ray


class Board:
    """Where workers write and the driver reads; lives in an actor of its own."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.error: SamtokError | None = None

    def tell(self, kind: str, body: Mapping[str, Any]) -> None:
        """Adds an event."""
        self.events.append((kind, body))

    def take(self) -> list[Event]:
        """Hands over the events since the last time."""
        events, self.events = self.events, []
        return events

    def fail(self, error: SamtokError) -> None:
        """Keeps the first error that no restart can mend."""
        self.error = self.error or error

    def failure(self) -> SamtokError | None:
        """Returns that error."""
        return self.error


def train_on_ray(task: Task, progress: Progress) -> None:
    """Trains on the workers of the config; returns when the run is complete.

    Raises:
        ClusterError: If the cluster is too small, or workers died more often than ``--workers.max-failures``.
        SamtokError: What a worker raised.
    """
    workers = task.config.workers
    cpus = workers.count * workers.cpus
    with session(num_cpus=workers.num_cpus, at_least_cpus=cpus + 1) as cluster:
        cluster.require(cpus=cpus, gpus=workers.count * (workers.gpus or 0))
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(num_cpus=0)(Board)
        board = actor.options(scheduling_strategy=here).remote()  # so it lives as long as the driver
        log.info("%d workers on %s", workers.count, "GPUs" if workers.gpus else "CPUs")
        with _listening(board, progress):
            _fit(task, board)


def _fit(task: Task, board: Any) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # what went wrong is told by us
    workers, name = task.config.workers, f"attempt-{time.time_ns()}"
    trainer = TorchTrainer(
        _on_worker,
        train_loop_config={"task": task, "board": board},
        torch_config=TorchConfig(backend="nccl" if workers.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers.count,
            use_gpu=bool(workers.gpus),
            resources_per_worker={"CPU": workers.cpus} | ({"GPU": 1} if workers.gpus else {}),
        ),
        run_config=RunConfig(
            name=name,  # a fresh one: what is done already is ours to know, not Ray's
            storage_path=storage.join(task.config.out, "ray"),
            failure_config=FailureConfig(max_failures=workers.max_failures),
        ),
    )
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except SystemExit as error:  # Ray's answer to Ctrl-C
        raise KeyboardInterrupt from error
    except TrainingFailedError as error:
        _raise_told(board)
        raise ClusterError(
            f"workers died {workers.max_failures + 1} times. The last time: {runs.last_line(error)}. "
            "Checkpoints are kept: the same command goes on from the last one. If memory is short, lower "
            "--engine.images-per-micro-batch; raise --workers.max-failures for unstable nodes."
        ) from error
    finally:
        signal.signal(signal.SIGINT, interrupt)  # Ray leaves its own behind
    _raise_told(board)
    storage.delete_folder(storage.join(task.config.out, "ray"))


def _on_worker(arguments: dict[str, Any]) -> None:
    """Runs in every worker. An error of our family is told to the driver: a restart would meet it again."""
    import ray
    import ray.train.torch

    board, task = arguments["board"], arguments["task"]
    if ray.get(board.failure.remote(), timeout=60) is not None:
        return
    device = ray.train.torch.get_device() if task.config.workers.gpus else "cpu"
    try:
        train_worker(task, lambda kind, body: board.tell.remote(kind, dict(body)), device)
    except ClusterError:
        raise  # a lost process, say: another start may do better
    except SamtokError as error:
        ray.get(board.fail.remote(error), timeout=60)
        raise


def _raise_told(board: Any) -> None:
    import ray

    error = cast(SamtokError | None, ray.get(board.failure.remote(), timeout=60))
    if error is not None:
        raise error


@contextlib.contextmanager
def _listening(board: Any, progress: Progress) -> Iterator[None]:
    """Passes events on while the block runs, and what is left at its end."""
    import ray
    from ray.exceptions import GetTimeoutError

    done = threading.Event()

    def listen() -> None:
        while not done.wait(LISTEN_EVERY_S):
            with contextlib.suppress(GetTimeoutError):  # a busy machine; what was told comes the next time
                progress.hear(ray.get(board.take.remote(), timeout=60))

    thread = threading.Thread(target=listen, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=120)
        progress.hear(ray.get(board.take.remote(), timeout=60))


# ---------------------------------------------------------------- afterwards


def _publish(task: Task, told: TrainTokenizerConfig, tracker: Tracker) -> None:
    """Adds to the record what only the driver knows, and makes the report."""
    config = task.config
    record = storage.read_json(storage.join(config.out, RECORD_FILE))
    if "command" not in record:
        record |= {"command": runs.command(), "date": time.strftime("%Y-%m-%d")}
        record |= {"config": json.loads(runs.config_json(told)), "versions": runs.versions()}
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
        config=json.loads(runs.config_json(config)),
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
