"""Small training runs with each engine, on real gloo processes; ``test_engine_deepspeed`` compares them.

``work`` is one process: it runs everything once and saves what it saw.
"""

import gc
import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, distributed, nn

from pipelines.training.config import OptimizerConfig
from pipelines.training.engine import Engine, PlainEngine
from pipelines.training.engine_deepspeed import DeepSpeedEngine
from pipelines.training.offload import Offload
from pipelines.training.row_rates import RowRate
from pipelines.training.steps import Steps
from pipelines.training.worker import load_state, save_state
from pipelines.training.writing import CheckpointWriter
from samtok.errors import ConfigError
from samtok.words import format_words
from tests.engine_state import optimizer_state, put
from tests.tiny_mllm import QWEN

CONFIG = OptimizerConfig(lr=1e-2, clip_norm=1.0, weight_decay=0.05)
RATE, IMAGES, STEPS, HALF, BAD_STEP = 1e-2, 16, 12, 6, 3
WORLDS = (1, 2)
ENGINES: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "zero1": {"stage": 1},
    "zero2": {"stage": 2},
    "zero3": {"stage": 3, "stage3_param_persistence_threshold": 0},  # share out small parameters as well
}
VARIANTS: dict[str, dict[str, Any] | None] = {
    "zero1_small_buckets": {"stage": 1, "reduce_bucket_size": 100},  # less than the largest parameter has
    "zero2_small_buckets": {"stage": 2, "reduce_bucket_size": 100},
    "zero2_overlap": {"stage": 2, "reduce_bucket_size": 300, "overlap_comm": True},
    "zero2_whole": {"stage": 2, "reduce_scatter": False},
    "zero2_reduce": {"stage": 2, "use_multi_rank_bucket_allreduce": False},
    "zero2_scattered": {"stage": 2, "contiguous_gradients": False},
    "zero3_persistent": {"stage": 3, "stage3_param_persistence_threshold": 40},
    "zero3_small_buckets": {
        "stage": 3,
        "reduce_bucket_size": 100,
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": 30,
        "stage3_max_live_parameters": 200,
        "sub_group_size": 100,
    },
    "zero3_whole": {"stage": 3, "reduce_scatter": False, "stage3_param_persistence_threshold": 0},
}
RESUMES = [
    *itertools.product(ENGINES, ENGINES),
    *(("plain", kind) for kind in ("zero3_persistent", "zero3_small_buckets")),
]
"""Who wrote a checkpoint, and who goes on from it; the last ones hold their parts in another way."""
SPLITS = (4, 2, 1)
"""Micro-batches of a worker's share of a step."""


TABLE = "model.language_model.embed_tokens.weight"


class Net(nn.Module):
    """Odd sizes, so that ZeRO cuts through parameters; one part is frozen, one is never used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.frozen = nn.Linear(7, 33), nn.Linear(33, 33)
        self.last, self.unused = nn.Linear(33, 5), nn.Linear(3, 3)
        self.twins = nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 5)])
        self.frozen.requires_grad_(False)
        self.dtypes: set[torch.dtype] = set()

    def forward(self, x: Tensor, y: Tensor, twins: tuple[int, ...] = (0, 1)) -> Tensor:
        hidden = self.frozen(torch.tanh(self.first(x)))
        self.dtypes.add(hidden.dtype)
        out = self.last(hidden)
        for twin in twins:
            out = out + torch.tanh(self.twins[twin](out))
        return (out.float() - y).square().sum() / IMAGES


def build(kind: str) -> tuple[Net, Engine]:
    module = Net()
    return module, engine_of(kind, module)


def engine_of(kind: str, module: nn.Module, row_rates: dict[str, RowRate] | None = None) -> Engine:
    zero = {**ENGINES, **VARIANTS}[kind]
    if zero is None:
        return PlainEngine(module, CONFIG, row_rates=row_rates)
    gc.freeze()  # ZeRO-3 collects garbage as it starts; what is there already need not be looked through
    body = {"zero_optimization": {"reduce_bucket_size": 10_000, **zero}}
    return DeepSpeedEngine(module, CONFIG, body, row_rates=row_rates)


def share(step: int, split: int) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's micro-batches of a step."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(IMAGES, 7, generator=generator)
    y = 3 + x[:, :5]
    rank, world = distributed.get_rank(), distributed.get_world_size()
    yield from zip(x.chunk(world)[rank].chunk(split), y.chunk(world)[rank].chunk(split), strict=True)


def train(module: Net, engine: Engine, steps: range, split: int = 1) -> dict[str, Any]:
    """Takes steps; returns the losses of all ranks, norms, and what the weights and the state came to."""
    losses, norms = [], []
    for step in steps:
        total = torch.zeros((), dtype=torch.float64)
        twins = (0, 1) if step % 3 else (0,)  # what a step does not use must not move by an older gradient
        for x, y in share(step, split):
            loss = module(x, y, twins)
            engine.backward(loss)
            total += loss.detach()
        distributed.all_reduce(total)
        losses.append(total.item())
        norms.append(engine.step(RATE))
    return {"losses": losses, "norms": norms, **snapshot(engine)}


def snapshot(engine: Engine) -> dict[str, Any]:
    state = optimizer_state(engine)
    weights = {name: value.clone() for name, value in engine.weights()}
    return {"weights": weights, "steps": state.steps, "moments": state.moments}


def straight(kind: str, splits: tuple[int, ...], checkpoint: str | None = None) -> dict[str, Any]:
    """Whole runs of each split, with what they were half-way, and how they were exported. A checkpoint of the
    last one is begun half-way and written while the run goes on."""
    results: dict[str, Any] = {}
    for split in splits:
        module, engine = build(kind)
        half = train(module, engine, range(HALF), split)
        writer = CheckpointWriter(checkpoint or "", keep=1)
        if checkpoint is not None and split == splits[-1]:
            save_state(writer, Taker(engine), {"step": HALF, "fingerprint": "net"}, seed=0)
        rest = train(module, engine, range(HALF, STEPS), split)
        writer.wait()
        exported = safetensors.torch.load(safetensors.torch.save(engine.model_state()))
        results[f"{split}"] = {
            **rest,
            "losses": half["losses"] + rest["losses"],
            "half": half,
            "file": exported,
        }
    return results


def away(kind: str) -> dict[str, Any]:
    """A run whose memory leaves half-way and comes back, with the bytes held before and meanwhile."""
    module, engine = build(kind)
    half = train(module, engine, range(HALF))
    memory = Offload(*engine.roots)
    held = memory.nbytes
    memory.leave()
    left = memory.nbytes
    memory.come_back()
    rest = train(module, engine, range(HALF, STEPS))
    return {**rest, "losses": half["losses"] + rest["losses"], "held": held, "left": left}


def skipped(kind: str) -> dict[str, Any]:
    """A run in which the last rank's loss of one step is no number, and a run without that step."""
    module, engine = build(kind)
    train(module, engine, range(BAD_STEP))
    for x, y in share(BAD_STEP, 1):
        is_last = distributed.get_rank() == distributed.get_world_size() - 1
        engine.backward(module(x, y) * (math.nan if is_last else 1.0))
    norm = engine.step(RATE)
    after = train(module, engine, range(BAD_STEP + 1, HALF))
    module, engine = build(kind)
    train(module, engine, range(BAD_STEP))
    return {"norm": norm, "after": after, "without": train(module, engine, range(BAD_STEP + 1, HALF))}


def uneven(kind: str, twins: list[tuple[int, ...]]) -> dict[str, Any]:
    """Steps in which each rank uses the twins in its own way."""
    module, engine = build(kind)
    try:
        for step in range(3):
            for x, y in share(step, 1):
                engine.backward(module(x, y, twins[distributed.get_rank()]))
            engine.step(RATE)
    except ConfigError as error:
        return {"error": str(error)}
    return snapshot(engine)


def rounded(kind: str) -> dict[str, Any]:
    """A run whose forward passes are under bfloat16 autocast."""
    module, engine = build(kind)
    with torch.autocast("cpu", torch.bfloat16):
        loss = module(*next(share(0, 1)))
    engine.backward(loss)
    norm = engine.step(RATE)
    kinds = [str(dtype) for dtype in module.dtypes]
    return {"loss": loss.item(), "norm": norm, "dtypes": kinds, **snapshot(engine)}


@dataclass
class Taker:
    """What has steps and an engine, as trainers have."""

    engine: Engine
    steps: Steps = field(default_factory=Steps)


def resumed(kind: str, checkpoint: str) -> dict[str, Any]:
    """The second half of a run, by an engine that has done something else before."""
    module, engine = build(kind)
    train(module, engine, range(90, 92))
    load_state(checkpoint, HALF, "net", Taker(engine))
    return train(module, engine, range(HALF, STEPS))


def restarted(kind: str) -> dict[str, Any]:
    """A run from an empty state, by an engine that has done something else before."""
    module, engine = build(kind)
    train(module, engine, range(90, 92))
    put(engine, Net().state_dict())
    return train(module, engine, range(STEPS))


def mllm(kind: str, folder: Path, *, packed: bool = False) -> dict[str, Any]:
    """A tiny MLLM: tied embeddings, new rows with their own rate, frozen vision, recomputed activations. With
    ``packed`` its row has two dialogues."""
    from samtok.mllm.adapters import load_adapter  # transformers takes seconds, and one pass alone needs it
    from samtok.mllm.chat import Turn
    from samtok.mllm.loss import answer_loss
    from samtok.mllm.packed_attention import attend_by_dialogue

    adapter = load_adapter(folder)
    model: Any = adapter.load_model(folder)
    adapter.freeze(model, vision=False, projector=True, llm=True)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = adapter.word_ids.all  # they follow each other
    engine = engine_of(kind, model, {TABLE: RowRate(ids[0], ids[-1] + 1, 3.0)})
    image = np.random.default_rng(distributed.get_rank()).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    says = f"It is {format_words((distributed.get_rank(), 2), num_codes=4)}."
    chat = [Turn("user", (0, "Segment it.")), Turn("assistant", (says,))]
    own = adapter.encode(chat, [image])
    other = [Turn("user", ("Segment it.",)), Turn("assistant", ("It is here.",))]
    if packed:
        attend_by_dialogue(model)
    batch = adapter.pack([own, adapter.encode(other, [])]) if packed else adapter.collate([own])
    losses = []
    for _ in range(3):
        with torch.inference_mode():
            losses.append(answer_loss(model.eval(), batch).item())
        engine.backward(answer_loss(model.train(), batch) / 10)
        engine.step(RATE)
    state = engine.model_state()
    tied = not state or state["lm_head.weight"].data_ptr() == state[TABLE].data_ptr()
    return {"losses": losses, "tied": tied, "rows": (ids[0], ids[-1] + 1), **snapshot(engine)}


def first_pass(world: int, folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = {
        kind: straight(kind, SPLITS, f"{folder}/checkpoint-{kind}-{world}") for kind in ENGINES
    }
    results |= {kind: straight(kind, (2,)) for kind in VARIANTS}
    results["again"] = {kind: straight(kind, (2,)) for kind in ENGINES}
    results["skipped"] = {kind: skipped(kind) for kind in ENGINES}
    results["rounded"] = {kind: rounded(kind) for kind in ENGINES}
    results["away"] = {kind: away(kind) for kind in ENGINES}
    if world == 2:
        results["one_uses_less"] = {kind: uneven(kind, [(0, 1), (0,)]) for kind in ("plain", "zero1")}
        results["other_order"] = {kind: uneven(kind, [(0, 1), (1, 0)]) for kind in ENGINES}
    return results


def families(folder: Path) -> dict[str, Any]:
    """Each MLLM below a folder with each engine, and those that can be packed with two dialogues in a row."""
    found = {}
    for model in folder.glob("mllm-*"):
        found[model.name] = {kind: mllm(kind, model) for kind in ENGINES}
        if model.name.removeprefix("mllm-") in QWEN:
            found[f"{model.name}, packed"] = {kind: mllm(kind, model, packed=True) for kind in ENGINES}
    return found


def second_pass(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = {"restarted": {kind: restarted(kind) for kind in ENGINES}}
    for world in WORLDS:
        for origin, kind in RESUMES:
            place = f"{folder}/checkpoint-{origin}-{world}"
            results[f"{origin}-{world}-{kind}"] = resumed(kind, place)
    return results


def work(rank: int, world: int, name: str, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["TORCH_EXTENSIONS_DIR"] = f"{folder}/compiled"
    meet = f"file://{folder}/meet-{name}-{world}"
    distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=world)
    place = Path(folder)
    if name == "families":
        results = families(place)
    else:
        results = first_pass(world, place) if name == "first" else second_pass(place)
    torch.save(results, Path(folder) / f"{name}-{world}-{rank}.pt")
    distributed.destroy_process_group()
