"""Options of ``jobs/sweep_codebook.py``, and its presets."""

import dataclasses
import math
import re
from typing import Annotated, Literal

import tyro
from annotated_types import Ge

from pipelines.config import AtLeast0, AtLeast1, NotEmpty, RunConfig, config
from pipelines.tokenizer_training.architecture import freezes
from pipelines.tokenizer_training.config import (
    QuantizerFlags,
    StartConfig,
    TrainTokenizerConfig,
    ValidationConfig,
)
from pipelines.tokenizer_training.presets import PRESETS as TRAINING
from pipelines.training.config import CheckpointsConfig, EngineConfig, TrainWorkerConfig
from samtok.config import QuantizerConfig
from samtok.errors import ConfigError

EXPERIMENT = "sweep_codebook"
"""Name of the MLflow experiment."""

STOPPED_FILE = "stopped.json"
"""Marks a trial that the scheduler ended; like a record it keeps the trial from being run again."""

_NAME = re.compile(r"(?P<kind>rq|rq-shared|vq|fsq)-(?P<size>\d+(?:x\d+)*)(?:-(?P<words>\d+))?")


@config
class SchedulerConfig:
    """Which trials run on, and how many at a time."""

    kind: Literal["plain", "asha"] = "plain"
    """``plain`` trains all to the end; ``asha`` stops the worst early, judged by held-out IoU."""
    grace_steps: AtLeast1 = 500
    """asha: steps that every trial gets."""
    reduction: Annotated[int, Ge(2)] = 3
    """asha: of so many trials one goes on at each halt."""
    concurrent: AtLeast1 = 1
    """Trials at a time."""
    max_failures: AtLeast0 = 2
    """Times that a trial is started again after its process died; it goes on from its checkpoint."""


@config
class SweepConfig(RunConfig):
    """One tokenizer per quantizer, otherwise alike. The same --out resumes it."""

    seed: AtLeast0 = 101
    """Seed of every trial."""
    quantizers: Annotated[tuple[str, ...], NotEmpty]
    """Quantizers such as rq-256x2 (two levels of 256), rq-shared-256x2, vq-1024, fsq-16x16 (a grid of 256
    codes) and fsq-16x16-2 (two such words)."""
    train: TrainTokenizerConfig
    """The run of every trial. The sweep sets out, quantizer, tracking, seed, limit and max-reject-rate."""
    base_steps: AtLeast0 = 0
    """Steps that all trials have in common, so they are trained once, without quantization; trials go on from
    there. 0 trains every trial from its own start."""
    scheduler: SchedulerConfig = SchedulerConfig()
    """Which trials run on."""

    def check(self) -> None:
        """Checks the names of the quantizers, and what a trial cannot have."""
        super().check()
        for name in self.quantizers:
            flags_of(name)
        doubled = sorted({name for name in self.quantizers if self.quantizers.count(name) > 1})
        if doubled:
            raise ConfigError(f"--.quantizers names {', '.join(doubled)} twice.")
        if self.train.workers != 1:
            raise ConfigError(
                f"a trial trains on one worker, got --.train.workers {self.train.workers}; run more trials "
                "at a time with --.scheduler.concurrent."
            )
        if self.scheduler.kind == "asha" and self.scheduler.grace_steps > self.train.steps:
            raise ConfigError(
                f"--.scheduler.grace-steps {self.scheduler.grace_steps} is more than the {self.train.steps} "
                "--.train.steps of a trial, so asha would end none; lower it, or take "
                "--.scheduler.kind plain."
            )
        if self.train.engine.deepspeed is not None:
            raise ConfigError(
                "--.train.engine.deepspeed shares a run among workers, and a trial has one; leave it out."
            )

    def trial(self, name: str, base: str | None) -> TrainTokenizerConfig:
        """Returns the run of a quantizer's trial, from the tokenizer that the common steps gave, if there
        were any."""
        start = self.train.start if base is None else StartConfig(tokenizer=base)
        return dataclasses.replace(
            self._common,
            out=f"{self.out.rstrip('/')}/trials/{name}",
            quantizer=flags_of(name),
            start=start,
            freeze=self.train.freeze if base is None else freezes(self.train),
        )

    @property
    def _common(self) -> TrainTokenizerConfig:
        """What the sweep sets in every run; the driver logs for all of them."""
        own = {name: getattr(self, name) for name in ("seed", "limit", "max_reject_rate")}
        return dataclasses.replace(self.train, tracking="off", dry_run=False, **own)

    def base(self) -> TrainTokenizerConfig:
        """Returns the run of the common steps."""
        return dataclasses.replace(
            self._common, out=f"{self.out.rstrip('/')}/base", steps=self.base_steps, quantize_from=1.0
        )


def flags_of(name: str) -> QuantizerFlags:
    """Reads the name of a quantizer; raises ConfigError if it is none."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise ConfigError(
            f"--.quantizers {name!r} is no quantizer; write rq-256x2, rq-shared-256x2, vq-1024, fsq-16x16 or "
            "fsq-16x16-2."
        )
    flags = _flags(name, found["kind"], [int(size) for size in found["size"].split("x")], found["words"])
    try:
        flags.over(QuantizerConfig())
    except ValueError as error:
        raise ConfigError(f"--.quantizers {name!r}: {error}") from error
    return flags


def _flags(name: str, kind: str, sizes: list[int], words: str | None) -> QuantizerFlags:
    if kind == "fsq":
        return QuantizerFlags(
            kind="fsq", num_codes=math.prod(sizes), num_levels=int(words or 1), grid=tuple(sizes)
        )
    if len(sizes) != (1 if kind == "vq" else 2) or words is not None:
        form = "vq-CODES" if kind == "vq" else f"{kind}-CODESxLEVELS"
        raise ConfigError(f"--.quantizers {name!r}: {kind} is written as {form}.")
    return QuantizerFlags(
        kind="vq" if kind == "vq" else "rq",
        num_codes=sizes[0],
        num_levels=1 if kind == "vq" else sizes[1],
        shared=kind == "rq-shared",
    )


TABLES = (
    *("rq-256x2", "rq-512x2", "rq-1024x2", "rq-256x4", "rq-1024x4"),
    *("vq-1024", "vq-65536", "fsq-16x16x16x16"),
)
"""Rows of the paper's Tables 12 and 13; the grid of its FSQ with 65536 codes is not given, so it is ours."""

PRESETS: dict[str, SweepConfig] = {
    # Everything once, in about a minute on two cores; the numbers mean nothing.
    "smoke": SweepConfig(
        out="runs/sweep-smoke",
        quantizers=("rq-64x2", "fsq-8x8"),
        train=dataclasses.replace(
            TRAINING["micro"],
            steps=20,
            quantize_from=0.5,
            kmeans_samples=256,
            validation=ValidationConfig(every=10, images=8, final_images=12),
            checkpoints=CheckpointsConfig(every=10),
        ),
        base_steps=20,
    ),
    # The questions of Tables 12 and 13 at the size of the shapes corpus: depth and size of RQ; RQ, VQ, FSQ
    # at equal bits (8, 10, 12, 16) and at equal words (512). A codebook of 65536 would have more entries
    # than a trial sees masks. About 25 minutes on two cores.
    "shapes": SweepConfig(
        out="runs/sweep-shapes",
        quantizers=(
            *("rq-256x2", "rq-512x2", "rq-1024x2", "rq-256x4", "rq-1024x4", "rq-shared-256x2"),
            *("rq-16x2", "vq-256", "fsq-16x16"),
            *("rq-32x2", "vq-1024", "fsq-8x8x4x4"),
            *("rq-64x2", "vq-4096", "fsq-8x8x8x8"),
            *("fsq-16x16x16x16", "vq-512"),
        ),
        train=dataclasses.replace(
            TRAINING["tiny"],
            steps=800,
            quantize_from=0.35,
            kmeans_samples=7500,
            optimizer=dataclasses.replace(TRAINING["tiny"].optimizer, lr=1e-3),
            validation=ValidationConfig(every=400, images=50, final_images=400),
            checkpoints=CheckpointsConfig(every=400),
        ),
        base_steps=3000,
        scheduler=SchedulerConfig(concurrent=2),
    ),
    # Tables 12 and 13 as the paper has them: from SAM2 weights, one GPU a trial. Not run at its size yet.
    "paper": SweepConfig(
        out=tyro.MISSING,
        quantizers=TABLES,
        train=dataclasses.replace(
            TRAINING["paper"],
            out="",
            steps=20_000,
            engine=EngineConfig(),
            quantize_from=0.05,
            kmeans_samples=131_072,
            workers=1,
            worker=TrainWorkerConfig(gpus=1, cpus=12, threads=4, loaders=8),
        ),
        scheduler=SchedulerConfig(kind="asha", grace_steps=4000, concurrent=8),
    ),
}
