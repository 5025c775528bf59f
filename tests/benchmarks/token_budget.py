"""Fine-tuning on two workers with micro-batches by tokens, against micro-batches of a fixed number.

    python -m tests.benchmarks.token_budget

Both have the same largest pass, which is what decides the memory. Chats have 40 to 600 tokens, spread evenly
over their logarithm; every worker has one thread. The sides take turns in one run of both workers, so a drift
of the machine meets all; medians, and the ratio to the side before it with its range.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn

from pipelines.sft.config import SamplingConfig, TrainMllmConfig
from pipelines.sft.loop import Trainer
from pipelines.training import world
from pipelines.training.config import MllmEngineConfig, OptimizerConfig
from pipelines.training.engine import PlainEngine
from samtok.mllm.token_budget import computed, cut
from tests.benchmarks.measuring import machine
from tests.benchmarks.sft import MODELS, TOKENS, Place, place_of

WORKERS = 2
SIDES = {
    "padded": (False, False),
    "padded, by tokens": (False, True),
    "packed": (True, False),
    "packed, by tokens": (True, True),
}
"""Whether packed, and whether by tokens; each pair is compared."""


def main() -> int:
    """Measures, prints a table and saves the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="wide")
    parser.add_argument("--chats", type=int, default=128, help="chats, trained once per repeat")
    parser.add_argument("--batch", type=int, default=64, help="chats of a step over both workers")
    parser.add_argument(
        "--micro-batch", type=int, default=8, help="chats of a pass of the sides without tokens"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/token_budget.json"))
    options = parser.parse_args()
    options.device = "cpu"
    with tempfile.TemporaryDirectory() as home:
        spawn(_work, (home, options), nprocs=WORKERS)
        rows = json.loads((Path(home) / "rows.json").read_text())
    print("side | largest pass, tokens | useful tokens/s | ratio (range)")
    for row, before in zip(rows, [None, *rows], strict=False):
        ratio = "1"
        if before is not None and "by tokens" in row["side"]:
            ratios = [a / b for a, b in zip(before["seconds"], row["seconds"], strict=True)]
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{row['side']} | {row['largest']} | {row['tokens_per_s']:.0f} | {ratio}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    body = {"machine": machine(), "options": vars(options), "rows": rows}
    options.out.write_text(json.dumps(body, indent=2, default=str) + "\n")
    print(f"saved {options.out}")
    return 0


def _work(rank: int, home: str, options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    (Path(home) / str(rank)).mkdir()
    place = place_of(Path(home) / str(rank), MODELS[options.model], TOKENS["varied"], options)
    distributed.init_process_group("gloo", init_method=f"file://{home}/meet", rank=rank, world_size=WORKERS)
    steps = _shares(place, options.batch)
    sides = {name: _side(place, options, steps, *kind) for name, kind in SIDES.items()}
    took: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(options.repeats + 1):
        for name, (trainer, _) in sides.items():
            distributed.barrier()
            started = time.perf_counter()
            for step in steps:
                trainer.take_step(step)
            distributed.barrier()
            if repeat:  # the first round warms up
                took[name].append(time.perf_counter() - started)
    tokens = sum(map(len, place.samples))
    rows = [
        {
            "side": name,
            "largest": largest,
            "seconds": took[name],
            "tokens_per_s": tokens / statistics.median(took[name]),
        }
        for name, (_, largest) in sides.items()
    ]
    if rank == 0:
        (Path(home) / "rows.json").write_text(json.dumps(rows))
    distributed.destroy_process_group()


def _shares(place: Place, batch: int) -> list[list[Any]]:
    """Returns this worker's chats of every step."""
    own, rank = batch // WORKERS, world.rank()
    firsts = range(0, len(place.samples), batch)
    return [list(place.samples[first + rank * own : first + (rank + 1) * own]) for first in firsts]


def _side(
    place: Place, options: argparse.Namespace, steps: list[list[Any]], packed: bool, by_tokens: bool
) -> tuple[Trainer, int]:
    """Returns what takes the steps, and the tokens of the largest pass of the side without tokens."""
    passes = []
    for step in steps:
        lengths = [len(sample) for sample in step]
        batches = cut(lengths, options.micro_batch)
        passes += [computed([lengths[n] for n in batch], packed=packed) for batch in batches]
    largest = max(world.gathered([max(passes)]))
    config = TrainMllmConfig(
        out="",
        model="",
        tokenizer="tour",
        chats=(place.source.corpus.uri,),
        workers=WORKERS,
        micro_batch=None if by_tokens else options.micro_batch,
        micro_batch_tokens=largest if by_tokens else None,
        sampling=SamplingConfig(samples_per_step=options.batch, max_tokens=10**6),
        steps=len(steps) * (options.repeats + 1),
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=0),
        engine=MllmEngineConfig(packing=packed),
    )
    model = place.model()
    return Trainer(model, place.adapter, PlainEngine(model, config.optimizer), config), largest


if __name__ == "__main__":
    raise SystemExit(main())
