"""What checkpoints, publishing and sleeping cost each worker: bytes per parameter, and the pause of training.

    python -m tests.benchmarks.checkpoints
    python -m tests.benchmarks.checkpoints --millions 100 --workers 2 --stages 0 2 3

Gloo processes train a stack of square layers; stage 0 is the plain engine, which holds everything on each of
them. Bytes are divided by the parameters of the model:

- ``state`` is what a worker holds of weights and moments;
- ``extra`` is the highest rise of its anonymous memory while it saves, resumes, publishes its weights in
  bfloat16, or, as the first worker, loads them as a sampler, out of shared memory;
- ``written`` and ``read`` are files;
- ``asleep`` is what is left of weights, gradients and moments while others have the accelerator.

``pause`` is how long the call to save took, on the clock and of its thread's CPU, ``commit`` the time until
the checkpoint counted, and ``step`` that of a step beside the writing and without. Of the workers each figure
is the largest.
"""

import argparse
import ctypes
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.multiprocessing.spawn import spawn

from pipelines import storage
from pipelines.grpo.transport import WeightTransport
from pipelines.training import world
from pipelines.training.config import OptimizerConfig
from pipelines.training.engine import Engine, engine_of
from pipelines.training.offload import Offload
from pipelines.training.steps import Steps
from pipelines.training.worker import load_state, save_state
from pipelines.training.writing import CheckpointWriter
from tests.benchmarks.measuring import machine, seconds

WIDTH = 2000
PIECE_BYTES = 16 << 20
"""Of published weights; runs have larger ones, and larger models."""


@dataclass
class Taker:
    """What has steps and an engine, as trainers have."""

    engine: Engine
    steps: Steps = field(default_factory=Steps)

    def step(self) -> None:
        x = torch.ones(1, WIDTH)
        self.engine.backward(self.engine.module(x).square().mean())
        self.engine.step(1e-3)


def taker_of(millions: int, stage: int) -> Taker:
    layers = [nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(millions * 1_000_000 // WIDTH**2)]
    body = {"zero_optimization": {"stage": stage}} if stage else None
    return Taker(engine_of(nn.Sequential(*layers), OptimizerConfig(), body))


def anonymous() -> int:
    """Returns the bytes of this process's memory that are no files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@contextmanager
def rise() -> Iterator[dict[str, int]]:
    """Finds the highest rise of memory in the block."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was given back before would hide what is taken
    found, before, over = {"bytes": 0}, anonymous(), threading.Event()

    def look() -> None:
        while not over.wait(0.002):
            found["bytes"] = max(found["bytes"], anonymous() - before)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Counts the bytes that the block reads and writes through ``storage``."""
    found, read, write = {"read": 0, "written": 0}, storage.read_bytes, storage.write_bytes

    def reading(uri: str, **more: Any) -> bytes:
        data = read(uri, **more)
        found["read"] += len(data)
        return data

    def writing(uri: str, data: bytes) -> None:
        found["written"] += len(data)
        write(uri, data)

    storage.read_bytes, storage.write_bytes = reading, writing
    try:
        yield found
    finally:
        storage.read_bytes, storage.write_bytes = read, write


def measure(folder: str, millions: int, stage: int) -> dict[str, float]:
    """Saves and resumes in one process of several; returns its row."""
    taker = taker_of(millions, stage)
    taker.step()
    memory = Offload(*taker.engine.roots)  # before NumPy sees memory of the CPU, which must stay from then on
    memory.leave()
    asleep = memory.nbytes
    memory.come_back()
    alone_s = seconds(taker.step)
    writer, begun = CheckpointWriter(folder, keep=1), time.perf_counter()
    with rise() as extra, counted() as files:
        cpu = time.thread_time()
        pause_s = seconds(lambda: save_state(writer, taker, {"step": 1, "fingerprint": ""}, seed=0))
        pause_cpu_s = time.thread_time() - cpu
        writer.wait()
        commit_s = time.perf_counter() - begun
    save_state(writer, taker, {"step": 2, "fingerprint": ""}, seed=0)
    beside_s = seconds(taker.step)
    writer.wait()
    with rise() as resume, counted() as again:
        resume_s = seconds(lambda: load_state(folder, 2, "", taker))
    held = sum(part.values.nbytes for part in taker.engine.parts())
    published, loaded = weights_on_their_way(taker.engine, Path("/dev/shm") / Path(folder).parent.name)
    if stage in (1, 2):
        held += 4 * millions * 1_000_000  # the weights, besides this worker's part of their copy
    sizes = {
        "state": held,
        "save: extra": extra["bytes"],
        "save: written": files["written"],
        "resume: extra": resume["bytes"],
        "resume: read": again["read"],
        "publish: extra": published,
        "load: extra": loaded,
        "asleep": asleep,
    }
    times = {"pause s": pause_s, "pause cpu s": pause_cpu_s, "commit s": commit_s, "resume s": resume_s}
    steps = {"step s": alone_s, "step s, beside": beside_s}
    return {name: size / (millions * 1_000_000) for name, size in sizes.items()} | times | steps


def weights_on_their_way(engine: Engine, store: Path) -> tuple[int, int]:
    """Returns by how much memory rises on this worker while weights are published, and on the first one while
    they are loaded."""
    store.mkdir(exist_ok=True)

    def put(data: np.ndarray) -> str:
        name = f"{len(list(store.iterdir()))}"
        data.tofile(store / name)
        return name

    def get(name: str) -> np.ndarray:
        return np.memmap(store / name, np.uint8, "r")

    transport = WeightTransport(put, get, piece_bytes=PIECE_BYTES, precision="bfloat16")
    with rise() as publishing:
        if world.rank() == 0:
            weights = transport.publish(engine.weights(), 1)
        else:
            for _ in engine.weights():
                pass
    if world.rank() != 0:
        return publishing["bytes"], 0
    own = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in weights.shapes.items()}
    with rise() as loading:
        for name, value in transport.fetch(weights):
            own[name].copy_(value)
    shutil.rmtree(store)
    return publishing["bytes"], loading["bytes"]


def work(rank: int, args: argparse.Namespace, folder: str) -> None:
    torch.set_num_threads(1)
    meet = f"file://{folder}/meet"
    distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=args.workers)
    for stage in args.stages:
        rows: list[Any] = [None] * args.workers
        distributed.all_gather_object(rows, measure(f"{folder}/{stage}", args.millions, stage))
        if rank == 0:
            worst = {name: max(row[name] for row in rows) for name in rows[0]}
            print(json.dumps({"stage": stage, **{name: round(value, 2) for name, value in worst.items()}}))
        distributed.barrier()
    distributed.destroy_process_group()


def main(argv: list[str] | None = None) -> None:
    """Measures and prints one line per stage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--millions", type=int, default=100, help="parameters, in millions")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 2, 3], help="of ZeRO; 0 is without")
    args = parser.parse_args(argv)
    print(json.dumps(machine()))
    with tempfile.TemporaryDirectory(prefix="samtok-") as folder:
        spawn(work, (args, folder), nprocs=args.workers)


if __name__ == "__main__":
    main()
