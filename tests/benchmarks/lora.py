"""What adapters save: trained parameters, bytes of a checkpoint, tokens a second, in one run.

    python -m tests.benchmarks.lora
    python -m tests.benchmarks.lora --rank 64 --dim 512

All weights against LoRA, and against rows of mask words alone: a tiny Qwen2.5-VL is fine-tuned on chats about
drawn images, as ``jobs/train_mllm.py`` does, on one CPU core.
"""

import argparse
import json
import logging
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from pipelines.sft.config import TrainMllmConfig
from pipelines.sft.worker import build_trainer
from pipelines.training.config import CheckpointsConfig, LoraConfig, TrainedConfig
from samtok.mllm.adapters import load_adapter
from samtok.mllm.tiny.models import TinyConfig
from tests.benchmarks.measuring import machine
from tests.mllm_evaluations import World
from tests.sft import ready, short, train, validation
from tests.training import record_of


def main() -> int:
    """Measures, prints a table and saves the figures as JSON."""
    options = _options()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    kinds: dict[str, dict[str, Any]] = {
        "all weights": {"train": TrainedConfig()},
        f"LoRA, rank {options.rank}": {"lora": LoraConfig(rank=options.rank), "train": TrainedConfig()},
        "new rows only": {"train": TrainedConfig(projector=False, new_rows_only=True)},
    }
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        size = TinyConfig(dim=options.dim, num_layers=4, hidden_dim=options.dim * 5 // 2, init_std=0.06)
        world = World(home / "world", 12, size=size)
        rates: dict[str, list[float]] = {kind: [] for kind in kinds}
        for repeat in range(options.repeats + 1):  # in turns, so that a drift of the machine meets all
            for kind, changes in kinds.items():
                out = home / f"{kind} {repeat}"
                train(_config(world, out, options.steps, changes))
                if repeat:  # the first round warms up
                    rates[kind].append(record_of(out)["times"]["tokens_per_s"])
        rows = [
            {
                "trained": kind,
                "parameters": _trained(_config(world, home / "unused", options.steps, changes)),
                "checkpoint_bytes": _size(home / f"{kind} 0" / "checkpoints"),
                "tokens_per_s": statistics.median(rates[kind]),
            }
            for kind, changes in kinds.items()
        ]
    print("trained | parameters | checkpoint, MB | tokens/s | ratio")
    for row in rows:
        ratio = row["tokens_per_s"] / rows[0]["tokens_per_s"]
        print(
            f"{row['trained']} | {row['parameters']:,} | {row['checkpoint_bytes'] / 1e6:.2f} | "
            f"{row['tokens_per_s']:.0f} | {ratio:.2f}"
        )
    body = {"machine": machine(), "options": vars(options), "rows": rows, "rates": rates}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(body, indent=2, default=str) + "\n")
    return 0


def _config(world: World, out: Path, steps: int, changes: dict[str, Any]) -> TrainMllmConfig:
    checkpoint = CheckpointsConfig(every=steps, keep=1)
    return short(world, out, steps=steps, validation=validation(), checkpoints=checkpoint, **changes)


def _trained(config: TrainMllmConfig) -> int:
    task = ready(config)
    adapter = load_adapter(config.model)
    trainer = build_trainer(adapter.load_model(config.model), adapter, task)
    return sum(shape.numel() for shape in trainer.engine.shapes.values())


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dim", type=int, default=256, help="width of the language model of 4 layers")
    parser.add_argument("--steps", type=int, default=8, help="steps of each run")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each kind, whose median counts")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/lora.json"))
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
