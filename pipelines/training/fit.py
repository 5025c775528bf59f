"""Runs training workers on Ray Train.

Ray Train starts the workers, joins them into a process group and replaces dead ones; workers find the last
checkpoint in the run's own folder (``checkpoints``). They post events to a small actor, which the driver
polls: it alone shows progress and talks to MLflow.
"""

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from pipelines import job as runs
from pipelines import storage
from pipelines.cluster import pool_session
from pipelines.ingestion import apart
from pipelines.training import world
from pipelines.training.config import TrainingConfig
from samtok.errors import ClusterError, SamtokError

log = logging.getLogger(__name__)

POLL_EVERY_S = 0.5

Event = tuple[str, Mapping[str, Any]]
"""Kind (``step``, ``validation``, ``checkpoint``, ``resumed``, ...) and numbers."""

Callback = Callable[[Sequence[Event]], None]
"""Gets the events since the last call, in the driver."""

Notify = Callable[[str, Mapping[str, Any]], None]
"""Posts an event, in a worker."""

Work = Callable[[Any, Notify, Any], None]
"""What a worker does: (task, notify, device). A function of a module, so that workers can import it."""


class Board:
    """Where workers write and the driver reads; lives in an actor of its own."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.error: SamtokError | None = None
        self.starts = 0

    def post(self, kind: str, body: Mapping[str, Any]) -> None:
        """Adds an event."""
        self.events.append((kind, body))

    def take(self) -> list[Event]:
        """Hands over the events since the last time."""
        events, self.events = self.events, []
        return events

    def begin(self) -> int:
        """Counts a start of a worker; returns how many there were before."""
        self.starts += 1
        return self.starts - 1

    def fail(self, error: SamtokError) -> None:
        """Keeps the first error that no restart can mend."""
        self.error = self.error or error

    def failure(self) -> SamtokError | None:
        """Returns that error."""
        return self.error


def fit_on_ray(work: Work, task: Any, config: TrainingConfig, *, callback: Callback) -> None:
    """Trains on Ray Train's workers; returns when the run is complete.

    Args:
        work: Runs in every worker; an error of our family that it raises ends the run at once.
        config: The run; says how many workers there are, and what each of them holds.

    Raises:
        ClusterError: If the cluster is too small, or workers died more often than ``--worker.max-failures``.
        SamtokError: What a worker raised.
    """
    count, worker = config.workers, config.worker
    with pool_session(count, worker, num_cpus=config.num_cpus, spare_cpus=1):
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(num_cpus=0)(Board)
        board = actor.options(scheduling_strategy=here).remote()  # so it lives as long as the driver
        log.info("%d workers on %s", count, "GPUs" if worker.gpus else "CPUs")
        with _polling(board, callback):
            _fit({"work": work, "task": task, "board": board}, config)


def _fit(given: dict[str, Any], config: TrainingConfig) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # our own messages say what went wrong
    folder, worker = storage.join(config.out, "ray"), config.worker
    trainer = TorchTrainer(
        _on_worker,
        train_loop_config={**given, "use_gpu": bool(worker.gpus)},
        torch_config=TorchConfig(backend="nccl" if worker.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.workers,
            use_gpu=bool(worker.gpus),
            resources_per_worker={"CPU": worker.cpus} | ({"GPU": 1} if worker.gpus else {}),
        ),
        run_config=RunConfig(
            name=f"attempt-{time.time_ns()}",  # a fresh one: what is done is ours to know, not Ray's
            storage_path=folder,
            failure_config=FailureConfig(max_failures=worker.max_failures),
        ),
    )
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except SystemExit as error:  # Ray's answer to Ctrl-C
        raise KeyboardInterrupt from error
    except TrainingFailedError as error:
        _raise_reported(given["board"])
        raise ClusterError(
            f"workers died {worker.max_failures + 1} times. The last time: {runs.last_line(error)}. "
            "Checkpoints are kept: the same command goes on from the last one. If memory is short, lower "
            "--micro-batch; raise --worker.max-failures for unstable nodes."
        ) from error
    finally:
        signal.signal(signal.SIGINT, interrupt)  # Ray leaves its own behind
    _raise_reported(given["board"])
    storage.delete_folder(folder)


def _on_worker(given: dict[str, Any]) -> None:
    """Runs in every worker. An error of our family goes to the driver: a restart would meet it again."""
    import ray
    import ray.train.torch

    board = given["board"]
    if ray.get(board.failure.remote(), timeout=60) is not None:
        return
    device = ray.train.torch.get_device() if given["use_gpu"] else "cpu"
    deaths = cast(int, ray.get(board.begin.remote(), timeout=60)) // world.size()
    careful = deaths >= apart.CAREFUL_AFTER  # an image may be what kills workers
    try:
        with apart.in_own_process() if careful else contextlib.nullcontext():
            given["work"](given["task"], lambda kind, body: board.post.remote(kind, dict(body)), device)
    except ClusterError:
        raise  # a lost process, say: another start may do better
    except SamtokError as error:
        ray.get(board.fail.remote(error), timeout=60)
        raise


def _raise_reported(board: Any) -> None:
    import ray

    error = cast(SamtokError | None, ray.get(board.failure.remote(), timeout=60))
    if error is not None:
        raise error


@contextlib.contextmanager
def _polling(board: Any, callback: Callback) -> Iterator[None]:
    """Passes events on while the block runs, and what is left at its end."""
    import ray
    from ray.exceptions import GetTimeoutError

    done = threading.Event()

    def poll() -> None:
        while not done.wait(POLL_EVERY_S):
            with contextlib.suppress(GetTimeoutError):  # a busy machine; they come the next time
                callback(ray.get(board.take.remote(), timeout=60))

    thread = threading.Thread(target=poll, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=120)
        callback(ray.get(board.take.remote(), timeout=60))
