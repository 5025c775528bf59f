"""Wiring of tokenizer training: threads and seeds, progress, the saved folder and what was measured."""

import dataclasses
import json
import logging
import shlex
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from pipelines import run as runs
from pipelines.tokenizer_training.config import TrainTokenizerConfig
from pipelines.tokenizer_training.data import held_out_scenes, scene_batch
from pipelines.tokenizer_training.evaluate import Evaluation, evaluate, probe
from pipelines.tokenizer_training.loop import start_training, train
from samtok.model.tokenizer import MaskTokenizer

log = logging.getLogger(__name__)

RECORD_FILE = "record.json"
PROBE_IMAGES = 24


def train_tokenizer(config: TrainTokenizerConfig) -> int:
    """Trains, evaluates and saves a tokenizer; returns the exit code."""
    return runs.guard(lambda: _train_tokenizer(config))


def _train_tokenizer(config: TrainTokenizerConfig) -> int:
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    model = MaskTokenizer.from_preset(config.model)
    progress = Progress(model, config)
    wall, cpu = time.monotonic(), time.process_time()
    train(start_training(model, config), lambda step: scene_batch(config, step), config, progress)
    times = {
        "training_cpu_s": time.process_time() - cpu - progress.probe_cpu_s,
        "probes_cpu_s": progress.probe_cpu_s,
        "training_wall_s": time.monotonic() - wall,
    }
    scenes = held_out_scenes(config.world, seed=config.evaluation_seed, count=config.evaluation_images)
    result = evaluate(model, scenes, seed=config.evaluation_seed)
    model.save_pretrained(config.out)
    _write_record(config, model, result, times)
    log.info("held out: %s", describe(result))
    log.info("saved to %s", config.out)
    return 0


def describe(result: Evaluation) -> str:
    """Returns the numbers as one line."""
    levels = "; ".join(
        f"level {i}: {level.used} used, {level.dead} dead, perplexity {level.perplexity:.1f}"
        for i, level in enumerate(result.levels)
    )
    return (
        f"IoU {result.iou:.4f} quantized, {result.iou_continuous:.4f} continuous, "
        f"{result.iou_shuffled:.4f} with shuffled codes, "
        f"over {result.masks} masks of {result.images} images; {levels}; "
        f"{result.distinct} distinct code tuples"
    )


def _write_record(
    config: TrainTokenizerConfig, model: MaskTokenizer, result: Evaluation, times: dict[str, float]
) -> None:
    record: dict[str, Any] = {
        "command": shlex.join(["python", *sys.argv]),
        "seed": config.seed,
        "config": dataclasses.asdict(config),
        "versions": runs.versions(),
        "date": time.strftime("%Y-%m-%d"),
        "parameters": sum(p.numel() for p in model.parameters()),
        "times": {name: round(value, 1) for name, value in times.items()},
        "measured": dataclasses.asdict(result),
    }
    (Path(config.out) / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


class Progress:
    """Logs means over the steps since the last line, and a small held-out probe.

    Args:
        model: The tokenizer in training.
        config: The run.
    """

    def __init__(self, model: MaskTokenizer, config: TrainTokenizerConfig) -> None:
        self.model, self.config = model, config
        self.scenes = held_out_scenes(config.world, seed=config.evaluation_seed, count=PROBE_IMAGES)
        self.probe_cpu_s = 0.0
        self._sums: dict[str, list[float]] = defaultdict(list)
        self._began = self._last = time.monotonic()

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._sums[name].append(value)
        last = step + 1 == self.config.steps
        if (step + 1) % self.config.log_every == 0 or last:
            self._line(step + 1)

    def _line(self, done: int) -> None:
        now = time.monotonic()
        masks_per_s = sum(self._sums["masks"]) / max(now - self._last, 1e-9)
        left = (now - self._began) / done * (self.config.steps - done)
        means = {name: sum(values) / len(values) for name, values in self._sums.items() if name != "masks"}
        shown = " ".join(f"{name} {value:.4g}" for name, value in means.items())
        cpu = time.process_time()
        held_out = probe(self.model, self.scenes, quantize=done > self.config.quantization_step)
        self.probe_cpu_s += time.process_time() - cpu
        log.info(
            "step %d/%d %s | held out: iou %.3f shuffled %.3f | %.0f masks/s, %.0f s left",
            *(done, self.config.steps, shown, held_out.iou, held_out.iou_shuffled, masks_per_s, left),
        )
        self._sums.clear()
        self._last = time.monotonic()
