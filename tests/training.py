"""Training runs of the micro model for tests: in this process or several, and what they left."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn

from pipelines import storage
from pipelines.job import resolved
from pipelines.tokenizer_training.config import SamplingConfig, TrainTokenizerConfig, ValidationConfig
from pipelines.tokenizer_training.prepare import PreparedTokenizer, prepare
from pipelines.tokenizer_training.presets import PRESETS
from pipelines.tokenizer_training.run import task_of
from pipelines.tokenizer_training.worker import train_worker
from pipelines.training.checkpoints import load_history
from pipelines.training.config import CheckpointsConfig, OptimizerConfig


def short(
    out: Path | str, *, workers: int = 1, micro: int | None = None, **changes: Any
) -> TrainTokenizerConfig:
    """A dozen steps of the micro model on 64 px scenes; half of them quantize."""
    base = {
        "out": str(out),
        "steps": 12,
        "quantize_from": 0.5,
        "kmeans_samples": 80,
        "optimizer": OptimizerConfig(lr=1e-3, warmup_steps=3),
        "sampling": SamplingConfig(images_per_step=8, masks_per_image=4),
        "workers": workers,
        "micro_batch": micro,
        "validation": ValidationConfig(every=6, images=4, final_images=6),
        "checkpoints": CheckpointsConfig(every=4, keep=10),
        "tracking": "off",
    }
    return dataclasses.replace(PRESETS["micro"], **(base | changes))


def task_for(config: TrainTokenizerConfig) -> PreparedTokenizer:
    """Checks a run as the job does, and returns what workers are given."""
    ready = prepare(resolved(config))
    ready.check_folder()
    return task_of(ready)


def train(
    config: TrainTokenizerConfig, *, rendezvous: Path | None = None
) -> list[tuple[str, dict[str, Any]]]:
    """Trains as workers do, without Ray; returns the events of the first worker, if it is this process."""
    if rendezvous is not None:
        train_all([config], rendezvous=rendezvous)
        return []
    task, events = task_for(config), []
    threads = torch.get_num_threads()
    try:
        train_worker(task, lambda kind, body: events.append((kind, dict(body))))
    finally:
        torch.set_num_threads(threads)
    return events


def train_all(configs: Sequence[TrainTokenizerConfig], *, rendezvous: Path) -> None:
    """Trains one run after the other in the same processes, which take longer to start than a run takes."""
    tasks = [task_for(config) for config in configs]
    spawn(_work, (tasks, str(rendezvous)), nprocs=configs[0].workers)


def _work(rank: int, tasks: Sequence[PreparedTokenizer], rendezvous: str) -> None:
    world = tasks[0].config.workers
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    try:
        for task in tasks:
            train_worker(task, lambda kind, body: None)
    finally:
        distributed.destroy_process_group()


def record_of(out: Path | str) -> dict[str, Any]:
    """Reads what became of a run."""
    return storage.read_json(storage.join(str(out), "record.json"))


def curve_of(out: Path | str) -> list[dict[str, float]]:
    """Reads the metrics of all steps of a finished run."""
    return load_history(str(out), record_of(out)["history"])


def weights_of(out: Path | str, name: str = "final") -> str:
    """Returns the SHA-256 of an exported tokenizer's weights."""
    return hashlib.sha256((Path(out) / name / "model.safetensors").read_bytes()).hexdigest()
