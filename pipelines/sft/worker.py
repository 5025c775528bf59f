"""What every fine-tuning worker does, from its start or restart to the exported model. Knows no Ray.

Where there are several workers, torch.distributed is initialised before; all of them run the same code on
their share of every step, and the first one writes. Checkpoints hold what is trained; what is frozen comes
from the model that the run started from, whose hash is in the run's fingerprint.
"""

import dataclasses
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipelines import storage
from pipelines.chats.corpus import ChatCorpus
from pipelines.chats.source import ChatSource
from pipelines.sft.config import TrainMllmConfig
from pipelines.sft.data import Prepared, StepLoader
from pipelines.sft.evaluate import Looks
from pipelines.sft.loop import Trainer
from pipelines.training import checkpoints, world
from pipelines.training import mllm_export as export
from pipelines.training.checkpoints import Checkpoint
from pipelines.training.engine import Engine, PlainEngine, RowRate
from pipelines.training.fit import Tell
from pipelines.training.journal import Journal
from pipelines.training.resume import RECORD_FILE
from samtok.errors import CheckpointError, DataError
from samtok.mllm.adapters import load_adapter
from samtok.mllm.family import Adapter

log = logging.getLogger(__name__)

_ENOUGH_DRAWS = 100
"""Chats that must have been drawn before a share of rejects is judged."""


@dataclass(frozen=True)
class Task:
    """What a worker is given; picklable."""

    config: TrainMllmConfig
    fingerprint: str
    lineage: Mapping[str, Any]
    """Where model and data come from; it goes along with every export."""
    corpora: tuple[ChatSource, ...]
    weights: tuple[float | None, ...]
    held_out: tuple[ChatSource, ...] = ()
    deepspeed: Mapping[str, Any] | None = None
    """Body of the DeepSpeed file; None trains with the plain engine."""

    @property
    def first_corpus(self) -> ChatCorpus:
        """The corpus whose words the model learns; all of them agree."""
        return self.corpora[0].corpus


@dataclass
class Tally:
    """What a run has gathered so far; part of its checkpoints."""

    validations: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    draws: int = 0
    rejected: int = 0
    tokens: int = 0
    train_s: float = 0.0
    train_cpu_s: float = 0.0


def train_worker(task: Task, tell: Tell, device: torch.device | str = "cpu") -> None:
    """Trains from the last checkpoint, or from the start, to the end.

    Raises:
        SamtokError: For data, weights, storage or a divergence that a user can do something about.
    """
    torch.set_num_threads(task.config.workers.threads)
    with storage.local_folder(task.config.model) as folder:
        adapter = load_adapter(folder)
        model = adapter.load_model(folder, attn=task.config.engine.attention)
    model.to(torch.device(device))  # type: ignore[call-arg] transformers wraps it
    Worker(task, tell, model, adapter).run()


class Worker:
    """One worker of a run.

    Args:
        task: The run.
        tell: Who hears what happens.
        model: The model that the run starts from, on this worker's device.
        adapter: Its adapter.
    """

    def __init__(self, task: Task, tell: Tell, model: Any, adapter: Adapter) -> None:
        self.task, self.config, self.tell, self.out = task, task.config, tell, task.config.out
        self.model, self.adapter, self.rank = model, adapter, world.rank()
        self.trainer = build_trainer(model, adapter, task)
        self.trained = [name for name, p in model.named_parameters() if p.requires_grad]
        self.looks = Looks(model, adapter, task.held_out, self.config, alike=self.trainer.alike)
        self.tally, self.journal = Tally(), Journal(self.out)

    def run(self) -> None:
        """Goes through all steps that are left."""
        self._resume()
        loader = StepLoader(self.task.corpora, self.task.weights, self.config, self.adapter, rank=self.rank)
        clock, cpu = time.monotonic(), time.process_time()
        for samples in loader.steps(self.trainer.steps.done):
            metrics = self.trainer.take_step([prepared.sample for prepared in samples])
            self.tally.train_s += time.monotonic() - clock
            self.tally.train_cpu_s += time.process_time() - cpu
            self._note(metrics, samples, time.monotonic() - clock)
            self._look_and_save()
            clock, cpu = time.monotonic(), time.process_time()
        self._finish()

    def _note(self, metrics: dict[str, float], samples: Sequence[Prepared], seconds: float) -> None:
        rejects = [entry for prepared in samples for entry in prepared.rejects]
        self.journal.add(metrics, rejects)
        rejected = int(self.trainer.summed([len(rejects)])[0])
        self.tally.tokens += int(metrics["tokens"])
        self.tally.draws += int(metrics["samples"]) + rejected
        self.tally.rejected += rejected
        if self.rank == 0:
            self.tell("step", {**metrics, "seconds": seconds})
        self._judge_rejects()

    def _judge_rejects(self) -> None:
        """Ends a run that draws mostly chats it cannot use, by the draws of all workers and so on all."""
        share = self.tally.rejected / max(self.tally.draws, 1)
        if self.tally.draws >= _ENOUGH_DRAWS and share > self.config.max_reject_rate:
            reasons = dict.fromkeys(world.gathered([self.journal.reasons()]))
            raise DataError(
                f"{share:.1%} of {self.tally.draws} chats that were drawn cannot be used; "
                f"--max-reject-rate allows {self.config.max_reject_rate:.1%}. Are the images of the chat "
                f"corpora in place? The reasons so far, worker by worker: {'; '.join(reasons)}."
            )

    def _look_and_save(self) -> None:
        done, config = self.trainer.steps.done, self.config
        last = done == config.steps
        if self.task.held_out and (last or done % config.validation.every == 0):
            self._look()
        if last:
            self._export("final", {"step": done, "validation": (self.tally.validations or [None])[-1]})
        if last or done % config.checkpoints.every == 0:
            self._save()

    # ---------------------------------------------------------------- validation and export

    def _look(self) -> None:
        """Measures held-out chats, draws answers, and exports the model if it is the best so far."""
        done = self.trainer.steps.done
        found = self.looks.measure()
        best = self.tally.best
        row = {"step": done, **found, "best": best is None or found["loss"] < best["loss"]}
        self.tally.validations.append(row)
        if row["best"]:
            self.tally.best = {"step": done, "loss": found["loss"]}
            self._export("best", {"step": done, "validation": row})
        answers = self.looks.answers()
        if self.rank == 0:
            self.tell("validation", row)
        if self.rank == 0 and answers:
            self._show(answers, done)

    def _show(self, answers: Sequence[Mapping[str, Any]], done: int) -> None:
        name = f"generations/{done:08d}.json"
        storage.write_bytes(storage.join(self.out, name), (json.dumps(answers, indent=1) + "\n").encode())
        self.tell("generations", {"step": done, "file": name})

    def _export(self, name: str, facts: Mapping[str, Any]) -> None:
        state = self.trainer.engine.model_state()
        if self.rank == 0:
            lineage = {**self.task.lineage, "run": self.out, **facts}
            export.export(self.model, state, self.adapter, storage.join(self.out, name), lineage)

    # ---------------------------------------------------------------- checkpoints

    def _save(self) -> None:
        steps = self.trainer.steps
        self.journal.write(steps.done)
        state = self._trained_state()
        optimizer = self.trainer.engine.optimizer_state()
        if self.rank != 0:
            return
        body = {
            "step": steps.done,
            "draws": steps.done * self.config.sampling.samples_per_step,
            "bad_in_a_row": steps.bad_in_a_row,
            "skipped": steps.skipped,
            "fingerprint": self.task.fingerprint,
            "seed": self.config.seed,
            "workers": world.size(),
            "lineage": dict(self.task.lineage),
            "tally": dataclasses.asdict(self.tally),
            "journal": self.journal.state(),
        }
        checkpoints.save(self.out, Checkpoint(state, optimizer, {}, body))
        checkpoints.drop_old(self.out, self.config.checkpoints.keep)
        self.tell("checkpoint", {"step": steps.done})

    def _trained_state(self) -> dict[str, Tensor]:
        state = self.trainer.engine.model_state()
        return {name: state[name] for name in self.trained}

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
        self.trainer.engine.load_model_state(saved.model)
        self.trainer.engine.load_optimizer_state(saved.optimizer)
        steps = self.trainer.steps
        steps.done = step
        steps.bad_in_a_row, steps.skipped = saved.body["bad_in_a_row"], saved.body["skipped"]
        self.tally = Tally(**saved.body["tally"])
        self.journal.restore(saved.body["journal"])
        if self.rank == 0:
            self.tell("resumed", {"step": step})

    def _finish(self) -> None:
        """Writes the record of the run, which says that it is complete."""
        if self.rank != 0:
            return
        tally = self.tally
        record = {
            "fingerprint": self.task.fingerprint,
            "steps": self.config.steps,
            "validations": tally.validations,
            "best": tally.best,
            **self.journal.state(),
            "skipped_steps": self.trainer.steps.skipped,
            "workers": world.size(),
            "parameters": sum(_size(p) for p in self.model.parameters()),
            "tokens": tally.tokens,
            "times": {
                "training_s": round(tally.train_s, 1),
                "training_cpu_s": round(tally.train_cpu_s, 1),
                "tokens_per_s": round(tally.tokens / max(tally.train_s, 1e-9), 1),
            },
            "lineage": dict(self.task.lineage),
        }
        write_record(self.out, record)


def _size(parameter: Tensor) -> int:
    """Returns the numbers of a parameter, which ZeRO-3 leaves empty while it is not in use."""
    return getattr(parameter, "ds_numel", parameter.numel())


def write_record(out: str, record: Mapping[str, Any]) -> None:
    """Writes what became of a run; it is the last file that training writes."""
    storage.write_bytes(storage.join(out, RECORD_FILE), (json.dumps(record, indent=2) + "\n").encode())


def build_trainer(model: Any, adapter: Adapter, task: Task) -> Trainer:
    """Sets what is trained, and puts the model under the engine of the run."""
    adapter.freeze(model, **dataclasses.asdict(task.config.train))
    if task.config.engine.gradient_checkpointing:
        keep_fewer_activations(model)
    alike = task.deepspeed is not None and task.deepspeed["zero_optimization"]["stage"] > 1
    return Trainer(model, adapter, _engine(model, adapter, task), task.config, alike=alike)


def keep_fewer_activations(model: Any) -> None:
    """Turns gradient checkpointing on, which transformers is renaming."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _engine(model: Any, adapter: Adapter, task: Task) -> Engine:
    rates = _row_rates(model, adapter, task.config)
    if task.deepspeed is None:
        return PlainEngine(model, task.config.optimizer, row_rates=rates)
    from pipelines.training.engine_deepspeed import DeepSpeedEngine  # loads DeepSpeed

    return DeepSpeedEngine(model, task.config.optimizer, task.deepspeed, row_rates=rates)


def _row_rates(model: Any, adapter: Adapter, config: TrainMllmConfig) -> dict[str, RowRate]:
    """Returns which rows of which parameters learn at the rate of the new words."""
    if config.new_rows_lr is None:
        return {}
    ids = sorted(adapter.word_ids.all)
    if ids != list(range(ids[0], ids[-1] + 1)):
        raise CheckpointError(
            "--new-rows-lr needs mask words whose token ids follow each other; those of this checkpoint do "
            "not. Leave the flag out."
        )
    tables = {id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    rate = RowRate(ids[0], ids[-1] + 1, config.new_rows_factor)
    return {name: rate for name, p in model.named_parameters() if p.requires_grad and id(p) in tables}
