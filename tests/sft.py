"""Fine-tuning runs of a tiny model for tests: in this process or several, and what they left."""

import dataclasses
import hashlib
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn

from pipelines.job import resolved
from pipelines.sft.config import SamplingConfig, TrainMllmConfig, ValidationConfig
from pipelines.sft.prepare import PreparedMllm, prepare
from pipelines.sft.worker import train_worker
from pipelines.training.config import CheckpointsConfig, OptimizerConfig, TrainedConfig, TrainWorkerConfig
from pipelines.training.resume import claim
from samtok.errors import SamtokError
from tests.mllm_evaluations import World

ROOT = Path(__file__).parents[1]
EPOCH = 6
"""Steps in which a run of ``short`` sees every chat of a world of 12 images once."""


def short(world: World, out: Path | str, **changes: Any) -> TrainMllmConfig:
    """A dozen steps of eight chats."""
    base = TrainMllmConfig(
        out=str(out),
        model=world.model,
        chats=(world.chat,),
        tokenizer=world.tokenizer_uri,
        train=TrainedConfig(vision=True),
        sampling=SamplingConfig(samples_per_step=8),
        steps=12,
        optimizer=OptimizerConfig(lr=3e-3, warmup_steps=3),
        micro_batch=4,
        validation=validation(f"uri={world.chat},limit=9"),
        checkpoints=CheckpointsConfig(every=4, keep=10),
        tracking="off",
    )
    return dataclasses.replace(base, **changes)


def validation(*chats: str, **changes: Any) -> ValidationConfig:
    """Validation on eight chats, with two answers."""
    settings = {"every": 6, "samples": 8, "generations": 2, "max_new_tokens": 8} | changes
    return ValidationConfig(chats=chats, **settings)


def ready(config: TrainMllmConfig) -> PreparedMllm:
    """Checks a run as the job does."""
    checked = prepare(resolved(config))
    checked.check_folder()
    return checked


def task_for(config: TrainMllmConfig) -> PreparedMllm:
    """Takes the run's folder as the job does, and returns what workers are given."""
    checked = ready(config)
    claim(config.out, checked.fingerprint)
    return checked


def zero(stage: int) -> str:
    """Returns the DeepSpeed file of a stage."""
    return str(ROOT / "infra" / "deepspeed" / f"zero{stage}.json")


def train(config: TrainMllmConfig, *, rendezvous: Path | None = None) -> list[tuple[str, dict[str, Any]]]:
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


def train_all(configs: Sequence[TrainMllmConfig], *, rendezvous: Path, errors: bool = False) -> None:
    """Trains one run after the other in the same processes, which take longer to start than a run takes.

    With ``errors`` a worker writes an error of our family to ``OUT/error-RANK.txt``, and goes on.
    """
    tasks = [task_for(config) for config in configs]
    spawn(_work, (tasks, str(rendezvous), errors), nprocs=configs[0].workers)


def _work(rank: int, tasks: Sequence[PreparedMllm], rendezvous: str, errors: bool) -> None:
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=tasks[0].config.workers,
        timeout=timedelta(seconds=120),
    )
    try:
        for task in tasks:
            try:
                train_worker(task, lambda kind, body: None)
            except SamtokError as error:
                if not errors:
                    raise
                Path(task.config.out, f"error-{rank}.txt").write_text(f"{type(error).__name__}: {error}")
    finally:
        distributed.destroy_process_group()


def workers(count: int) -> dict[str, Any]:
    """Returns the fields of so many workers on CPUs."""
    return {"workers": count, "worker": TrainWorkerConfig(gpus=0)}


def weights_of(out: Path | str, name: str = "final") -> str:
    """Returns the SHA-256 of an exported model's weights."""
    return hashlib.sha256((Path(out) / name / "model.safetensors").read_bytes()).hexdigest()
