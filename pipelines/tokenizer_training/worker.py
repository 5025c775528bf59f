"""What every training worker does, from its start or restart to the exported tokenizer. Knows no Ray.

Where there are several workers, torch.distributed is initialised before; all of them run the same code on
their share of every step, and the first one writes.
"""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import distributed

from pipelines import storage
from pipelines.tokenizer_training.config import TrainTokenizerConfig
from pipelines.tokenizer_training.corpus import Index
from pipelines.tokenizer_training.data import (
    MicroBatch,
    StepLoader,
    held_out_samples,
    training_sources,
    validation_sources,
)
from pipelines.tokenizer_training.evaluate import Validation, validate
from pipelines.tokenizer_training.export import export
from pipelines.tokenizer_training.loop import Trainer
from pipelines.tokenizer_training.trainee import Trainee, build_trainee
from pipelines.training import checkpoints, world
from pipelines.training.checkpoints import Checkpoint
from pipelines.training.engine import Engine, PlainEngine
from pipelines.training.fit import Tell
from pipelines.training.journal import Journal
from pipelines.training.mixture import Mixture
from pipelines.training.resume import RECORD_FILE
from samtok.errors import CheckpointError


@dataclass(frozen=True)
class Task:
    """What a worker is given; small and picklable."""

    config: TrainTokenizerConfig
    fingerprint: str
    lineage: Mapping[str, Any]
    """Where weights and data come from; it goes along with every export."""
    training_index: Index | None = None
    validation_index: Index | None = None
    deepspeed: Mapping[str, Any] | None = None
    """Body of the DeepSpeed file; None trains with the plain engine."""


@dataclass
class Tally:
    """What a run has gathered so far; part of its checkpoints."""

    validations: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    final: dict[str, Any] | None = None
    masks: int = 0
    train_s: float = 0.0
    train_cpu_s: float = 0.0


def train_worker(task: Task, tell: Tell, device: torch.device | str = "cpu") -> None:
    """Trains from the last checkpoint, or from the start, to the end.

    Raises:
        SamtokError: For data, weights, storage or a divergence that a user can do something about.
    """
    torch.set_num_threads(task.config.workers.threads)
    Worker(task, tell, torch.device(device)).run()


class Worker:
    """One worker of a run.

    Args:
        task: The run.
        tell: Who hears what happens.
        device: Where this worker computes.
    """

    def __init__(self, task: Task, tell: Tell, device: torch.device) -> None:
        config = task.config
        self.task, self.config, self.tell, self.out = task, config, tell, config.out
        self.rank, self.world = world.rank(), world.size()
        self.trainee = build_trainee(config).to(device)
        self.tokenizer = self.trainee.tokenizer
        if config.engine.precision == "bfloat16":
            self.tokenizer.autocast_dtype = torch.bfloat16
        self._same_weights()
        self.trainer = Trainer(self.trainee, _engine(self.trainee, task), config)
        self.sources = training_sources(config, task.training_index)
        self.held_out = validation_sources(config, task.validation_index)
        self.tally, self.journal = Tally(), Journal(config.out)

    def run(self) -> None:
        """Goes through all steps that are left."""
        self._resume()
        clock, cpu = time.monotonic(), time.process_time()
        if self.trainer.steps.done < self.config.steps:
            for batches in self._loader().steps(self.trainer.steps.done):
                metrics = self.trainer.take_step([micro.batch for micro in batches])
                self.tally.train_s += time.monotonic() - clock
                self.tally.train_cpu_s += time.process_time() - cpu
                self._note(metrics, batches, time.monotonic() - clock)
                self._look_and_save()
                clock, cpu = time.monotonic(), time.process_time()
                if self.trainer.steps.done == self.config.steps:
                    break
        if self.rank == 0:
            self._finish()

    def _loader(self) -> StepLoader:
        mixture = Mixture([len(source) for source in self.sources], self._weights(), self.config.seed)
        return StepLoader(self.sources, mixture, self.config, self.tokenizer.config, rank=self.rank)

    def _weights(self) -> Sequence[float | None]:
        index = self.task.training_index
        return [None] * len(self.sources) if index is None else [entry.weight for entry in index.corpora]

    def _note(self, metrics: dict[str, float], batches: Sequence[MicroBatch], seconds: float) -> None:
        metrics["images"] = self.config.sampling.images_per_step
        self.tally.masks += int(metrics["masks"])
        self.journal.add(metrics, [entry for micro in batches for entry in micro.rejects])
        if self.rank == 0:
            self.tell("step", {**metrics, "seconds": seconds, "masks_so_far": self.tally.masks})

    def _look_and_save(self) -> None:
        done, config = self.trainer.steps.done, self.config
        last = done == config.steps
        if last or done % config.validation.every == 0:
            self._look()
        if last:
            self.tally.final = self._validate(config.validation.final_images, full=True).row()
            self._export("final", {"step": done, "validation": self.tally.final})
        if last or done % config.checkpoints.every == 0:
            self._save()

    # ---------------------------------------------------------------- validation and export

    def _validate(self, images: int, *, full: bool = False) -> Validation:
        config = self.config.validation
        samples = held_out_samples(
            self.held_out,
            images,
            masks_per_image=config.masks_per_image,
            seed=config.seed,
            rank=self.rank,
            world=self.world,
        )
        return validate(self.tokenizer, samples, quantize=self.trainer.quantizes, full=full)

    def _look(self) -> None:
        """Measures, and exports the tokenizer if it is the best so far that speaks in codes."""
        found, done = self._validate(self.config.validation.images), self.trainer.steps.done
        best = self.tally.best
        is_best = found.quantized and (best is None or found.iou > best["iou"])
        row = {"step": done, **found.row(), "best": is_best}
        self.tally.validations.append(row)
        if is_best:
            self.tally.best = {"step": done, "iou": found.iou}
            self._export("best", {"step": done, "validation": row})
        if self.rank == 0:
            self.tell("validation", row)

    def _export(self, name: str, facts: Mapping[str, Any]) -> None:
        if self.rank == 0:
            lineage = {**self.task.lineage, "run": self.out, **facts}
            export(self.tokenizer, storage.join(self.out, name), lineage)

    # ---------------------------------------------------------------- checkpoints

    def _save(self) -> None:
        steps = self.trainer.steps
        self.journal.write(steps.done)
        optimizer, recent = self.trainer.engine.optimizer_state(), self.trainer.gathered_recent()
        if self.rank != 0:
            return
        body = {
            "step": steps.done,
            "draws": steps.done * self.config.sampling.images_per_step,
            "bad_in_a_row": steps.bad_in_a_row,
            "skipped": steps.skipped,
            "fingerprint": self.task.fingerprint,
            "seed": self.config.seed,
            "workers": self.world,
            "lineage": dict(self.task.lineage),
            "recent_counts": [count for _, count in recent],
            "tally": dataclasses.asdict(self.tally),
            "journal": self.journal.state(),
        }
        extra = {f"{i:08d}": z for i, (z, _) in enumerate(recent)}
        checkpoints.save(self.out, Checkpoint(self.trainee.state_dict(), optimizer, extra, body))
        checkpoints.drop_old(self.out, self.config.checkpoints.keep)
        self.tell("checkpoint", {"step": steps.done})

    def _resume(self) -> None:
        """Goes to the last checkpoint if there is one; the first worker says which."""
        found = checkpoints.steps(self.out) if self.rank == 0 else []
        step = world.from_first(found[-1] if found else None)
        if step is None:
            return
        saved = checkpoints.load(self.out, step)
        if saved.body["fingerprint"] != self.task.fingerprint:
            raise CheckpointError(
                f"checkpoint {step} of {self.out} was made by a run with other settings. Use the settings in "
                "its config.json, or choose another --out."
            )
        checkpoints.load_module(self.trainee, saved.model, f"{step} of {self.out}")
        self.trainer.engine.load_optimizer_state(saved.optimizer)
        recent = [saved.extra[name] for name in sorted(saved.extra)]
        self.trainer.restore_recent(list(zip(recent, saved.body["recent_counts"], strict=True)))
        steps = self.trainer.steps
        steps.done = step
        steps.bad_in_a_row, steps.skipped = saved.body["bad_in_a_row"], saved.body["skipped"]
        self.tally = Tally(**saved.body["tally"])
        self.journal.restore(saved.body["journal"])
        if self.rank == 0:
            self.tell("resumed", {"step": step, "masks_so_far": self.tally.masks})

    def _finish(self) -> None:
        """Writes the record of the run, which says that it is complete."""
        tally = self.tally
        record = {
            "fingerprint": self.task.fingerprint,
            "steps": self.config.steps,
            "final": tally.final,
            "best": tally.best,
            "validations": tally.validations,
            **self.journal.state(),
            "skipped_steps": self.trainer.steps.skipped,
            "workers": self.world,
            "parameters": sum(p.numel() for p in self.tokenizer.parameters()),
            "masks": tally.masks,
            "times": {
                "training_s": round(tally.train_s, 1),
                "training_cpu_s": round(tally.train_cpu_s, 1),
                "masks_per_s": round(tally.masks / max(tally.train_s, 1e-9), 1),
            },
            "lineage": dict(self.task.lineage),
        }
        write_record(self.out, record)

    def _same_weights(self) -> None:
        if self.world > 1:
            for tensor in self.trainee.state_dict().values():
                distributed.broadcast(tensor, src=0)


def write_record(out: str, record: Mapping[str, Any]) -> None:
    """Writes what became of a run; it is the last file that training writes."""
    storage.write_bytes(storage.join(out, RECORD_FILE), (json.dumps(record, indent=2) + "\n").encode())


def _engine(trainee: Trainee, task: Task) -> Engine:
    if task.deepspeed is None:
        return PlainEngine(trainee, task.config.optimizer)
    from pipelines.training.engine_deepspeed import DeepSpeedEngine  # loads DeepSpeed

    return DeepSpeedEngine(trainee, task.config.optimizer, task.deepspeed)
