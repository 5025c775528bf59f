"""What every training worker does, whatever it trains: steps, validation, checkpoints, exports. Knows no Ray.

Where there are several workers, torch.distributed is initialised before; all of them run the same code on
their share of every step. A stage adds its model, its loss and its measures. ``save_state`` and
``load_state`` are all of it that a learner of reinforcement learning needs.
"""

import dataclasses
import itertools
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from pipelines import storage
from pipelines.training import checkpoints, world
from pipelines.training.checkpoints import Checkpoint
from pipelines.training.config import TrainingConfig, ValidationConfig
from pipelines.training.engine import Engine
from pipelines.training.fit import Notify
from pipelines.training.journal import Journal
from pipelines.training.parts import EXTRA, WEIGHTS, shared_out, wholes
from pipelines.training.prepare import Prepared
from pipelines.training.resume import write_record
from pipelines.training.steps import Steps
from pipelines.training.writing import CheckpointWriter
from samtok.errors import CheckpointError, DataError
from samtok.ranks import sum_over_ranks

MIN_JUDGED = 100
"""Items of each kind that must have been drawn before a share of rejects ends a run; its end judges fewer."""

C = TypeVar("C", bound=TrainingConfig)


class Part(Protocol):
    """What a loader prepares for a step, beside what the model needs; see ``draws.Drawn``."""

    @property
    def rejects(self) -> Sequence[dict[str, Any]]: ...

    @property
    def counts(self) -> Mapping[str, int]: ...


P = TypeVar("P", bound=Part)


class StepTaker(Protocol):
    """What a trainer of any kind has."""

    steps: Steps
    engine: Engine


@dataclass
class Tally:
    """What a run has gathered so far; part of its checkpoints.

    Counts are sums over the run: of the trained unit, and of each kind of item ``KIND_in``, ``KIND_rejected``
    and ``KIND_filtered``.
    """

    validations: list[dict[str, Any]] = field(default_factory=list)  # rows of all validations
    best: dict[str, Any] | None = None  # step and score of the best one
    final: dict[str, Any] | None = None  # what was measured at the end
    counts: dict[str, int] = field(default_factory=dict)
    train_s: float = 0.0  # seconds of training, validation and storage apart
    train_cpu_s: float = 0.0  # likewise, of the first worker's CPU

    def add(self, counts: Mapping[str, int]) -> None:
        """Adds counts."""
        self.counts = dict(Counter(self.counts) + Counter(counts))


class TrainWorker(ABC, Generic[C, P]):
    """One worker of a run.

    It notifies of ``step``, ``validation``, ``checkpoint`` and ``resumed``, with numbers; without a config
    for it there is no validation.
    """

    unit: ClassVar[str]
    """Metric of a step that is summed over the run, such as masks."""
    score: ClassVar[str]
    """Measure of a validation by which the best one is found."""
    measures_first: ClassVar[bool] = False
    """Whether there is a validation before the first step too, which is never the best one."""

    def __init__(
        self, task: Prepared[C], notify: Notify, trainer: StepTaker, validation: ValidationConfig | None
    ) -> None:
        self.task, self.config, self.notify, self.out = task, task.config, notify, task.config.out
        self.trainer, self.validation, self.rank = trainer, validation, world.rank()
        self.tally, self.journal = Tally(), Journal(self.out)
        self.writer = CheckpointWriter(self.out, self.config.checkpoints.keep)

    # ---------------------------------------------------------------- what a stage adds

    @abstractmethod
    def parts(self, start: int) -> Iterator[list[P]]:
        """Yields what this worker needs for the steps from ``start`` to the last one."""

    @abstractmethod
    def take_step(self, parts: Sequence[P]) -> dict[str, float]:
        """Takes a step; collective. Returns its metrics, the unit among them."""

    @abstractmethod
    def measure(self) -> dict[str, Any]:
        """Measures on held-out data; collective."""

    @abstractmethod
    def is_better(self, found: Mapping[str, Any], best: Mapping[str, Any] | None) -> bool:
        """Returns whether what was measured is the best so far."""

    def after_validation(self) -> None:
        """Does what else belongs to a validation; collective."""

    def measure_final(self) -> dict[str, Any] | None:
        """Measures after the last step; collective. By default the last validation is taken."""
        return self.tally.validations[-1] if self.tally.validations else None

    @abstractmethod
    def export(self, uri: str, lineage: Mapping[str, Any]) -> None:
        """Writes what was trained; collective, the first worker writes."""

    def kept_state(self) -> dict[str, Tensor]:
        """Returns what a checkpoint keeps of the model besides trained weights, as every worker has it: by
        default all of it."""
        return self.trainer.engine.untrained_state()

    def extra_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns tensors and JSON values that a checkpoint keeps besides; collective."""
        return {}, {}

    def load_extra(self, saved: Checkpoint) -> None:
        """Takes them back."""

    def listed(self) -> dict[str, Any]:
        """Returns what listing the corpora could not use: ``masks_rejected``, ``rejects`` by reason, and the
        ``table`` they are in."""
        return {}

    @abstractmethod
    def parameters(self) -> int:
        """Returns how many numbers the model has."""

    # ---------------------------------------------------------------- the run

    def run(self) -> None:
        """Goes through all steps that are left."""
        try:
            self._run()
        finally:
            self.writer.settle()

    def _run(self) -> None:
        self._resume()
        if self.measures_first and self.validation is not None and not self.trainer.steps.done:
            self._validate(0)
        clock, cpu = time.monotonic(), time.process_time()
        for parts in self.parts(self.trainer.steps.done):
            metrics = self.take_step(parts)
            self.writer.check()
            seconds = time.monotonic() - clock
            self.tally.train_s += seconds
            self.tally.train_cpu_s += time.process_time() - cpu
            self._note(metrics, parts, seconds)
            self._validate_and_save()
            clock, cpu = time.monotonic(), time.process_time()
        self.writer.wait()
        if self.rank == 0:
            self._finish()

    def _note(self, metrics: dict[str, float], parts: Sequence[P], seconds: float) -> None:
        self.journal.add(metrics, [entry for part in parts for entry in part.rejects])
        own: Counter[str] = sum((Counter(part.counts) for part in parts), Counter())
        self.tally.add({self.unit: int(metrics[self.unit])})
        self.tally.add(self._summed(own))
        if self.rank == 0:
            self.notify("step", {**metrics, "seconds": seconds, **self._so_far()})
        self._judge_rejects()

    def _so_far(self) -> dict[str, int]:
        return {f"{self.unit}_so_far": self.tally.counts.get(self.unit, 0)}

    def _summed(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Sums counts over all workers."""
        names = sorted(set(world.gathered(sorted(counts))))
        if world.size() == 1:
            return dict(counts)
        own = torch.tensor([float(counts.get(name, 0)) for name in names], dtype=torch.float64)
        total = sum_over_ranks(own.to(self.device)).tolist()
        return {name: int(value) for name, value in zip(names, total, strict=True)}

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where this worker computes."""

    def _judge_rejects(self) -> None:
        """Ends a run that draws too much that it cannot use, by the draws of all workers and so on all."""
        limit, items = self.config.max_reject_rate, item_counts(self.tally.counts)
        if min((found["total"] for found in items.values()), default=0) < MIN_JUDGED:
            return  # a hundred masks may be those of one image
        for kind, found in items.items():
            total, rejected = found["total"], found["rejected"]
            if rejected > limit * total:
                reasons = dict.fromkeys(world.gathered([self.journal.reasons()]))
                raise DataError(
                    f"{rejected / total:.1%} of {total} {kind} that were drawn cannot be used; "
                    f"--max-reject-rate allows {limit:.1%}. Are the images of the corpora in place? The "
                    f"reasons so far, worker by worker: {'; '.join(reasons)}."
                )

    def _validate_and_save(self) -> None:
        done = self.trainer.steps.done
        last = done == self.config.steps
        if self.validation is not None and (last or done % self.validation.every == 0):
            self._validate(done)
        if last:
            self.tally.final = self.measure_final()
            self._export("final", {"step": done, "validation": self.tally.final})
        if last or done % self.config.checkpoints.every == 0:
            self._save()

    def _validate(self, done: int) -> None:
        """Measures, and exports the model if it is the best so far."""
        found = self.measure()
        row = {"step": done, **found, "best": done > 0 and self.is_better(found, self.tally.best)}
        self.tally.validations.append(row)
        if row["best"]:
            self.tally.best = {"step": done, self.score: found[self.score]}
            self._export("best", {"step": done, "validation": row})
        if self.rank == 0:
            self.notify("validation", row)
        if done:
            self.after_validation()

    def _export(self, name: str, facts: Mapping[str, Any]) -> None:
        self.export(storage.join(self.out, name), {**self.task.lineage, "run": self.out, **facts})

    # ---------------------------------------------------------------- checkpoints

    def _save(self) -> None:
        steps = self.trainer.steps
        self.journal.write(steps.done)
        extra, values = self.extra_state()
        body = {
            "step": steps.done,
            "draws": steps.done * self.config.per_step,
            "fingerprint": self.task.digest,
            "lineage": dict(self.task.lineage),
            "tally": dataclasses.asdict(self.tally),
            "journal": self.journal.state(),
            **values,
        }
        step = {"step": steps.done}
        save_state(
            self.writer, self.trainer, body, seed=self.config.seed, kept=self.kept_state(), extra=extra,
            committed=lambda: self.notify("checkpoint", step),
        )  # fmt: skip

    def _resume(self) -> None:
        """Goes to the last checkpoint if there is one; the first worker decides which."""
        found = checkpoints.steps(self.out) if self.rank == 0 else []
        step = world.from_first(found[-1] if found else None)
        if step is None:
            return
        saved = load_state(self.out, step, self.task.digest, self.trainer, kept=self.kept_state())
        self.load_extra(saved)
        self.trainer.steps.done = step
        self.tally = Tally(**saved.body["tally"])
        self.journal.restore(saved.body["journal"])
        if self.rank == 0:
            self.notify("resumed", {"step": step, **self._so_far()})

    def _finish(self) -> None:
        """Writes the record of the run, which says that it is complete."""
        tally, listed = self.tally, self.listed()
        lost = listed.get("masks_rejected", 0)
        counts = Counter(tally.counts) + Counter({"masks_in": lost, "masks_rejected": lost})
        record = {
            "fingerprint": self.task.digest,
            "steps": self.config.steps,
            "final": tally.final,
            "best": tally.best,
            "validations": tally.validations,
            **self.journal.state(),
            "items": item_counts(counts),
            "filtered": filtered_by_reason(counts),
            "listed": listed,
            "skipped_steps": self.trainer.steps.skipped,
            "workers": world.size(),
            "parameters": self.parameters(),
            self.unit: tally.counts.get(self.unit, 0),
            "times": {
                "training_s": round(tally.train_s, 1),
                "training_cpu_s": round(tally.train_cpu_s, 1),
                f"{self.unit}_per_s": round(tally.counts.get(self.unit, 0) / max(tally.train_s, 1e-9), 1),
            },
            "lineage": dict(self.task.lineage),
        }
        write_record(self.out, record)


def item_counts(counts: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Returns how many of each ``KIND`` of item were drawn in all, rejected and filtered."""
    kinds = [name.removesuffix("_in") for name in counts if name.endswith("_in")]
    ends = {"total": "in", "rejected": "rejected", "filtered": "filtered"}
    return {kind: {name: counts.get(f"{kind}_{end}", 0) for name, end in ends.items()} for kind in kinds}


def filtered_by_reason(counts: Mapping[str, int]) -> dict[str, int]:
    """Returns what ``KIND_filtered/REASON`` counts, by reason."""
    return {name.partition("/")[2]: count for name, count in counts.items() if "_filtered/" in name}


# ---------------------------------------------------------------- state, for workers and learners


def save_state(
    writer: CheckpointWriter,
    trainer: StepTaker,
    body: Mapping[str, Any],
    *,
    seed: int,
    kept: Mapping[str, Tensor] | None = None,
    extra: Mapping[str, Tensor] | None = None,
    committed: Callable[[], None] = lambda: None,
) -> None:
    """Begins a checkpoint, see ``CheckpointWriter.save``; collective.

    Args:
        body: The rest as JSON, with at least ``step`` and ``fingerprint``.
        kept: Weights and buffers besides the trained ones, as every worker has them.
        extra: Other tensors, likewise.
    """
    steps, engine = trainer.steps, trainer.engine
    whole = {
        **body,
        "bad_in_a_row": steps.bad_in_a_row,
        "skipped": steps.skipped,
        "seed": seed,
        "workers": world.size(),
        "optimizer_steps": engine.steps_taken,
    }
    shared = shared_out(wholes(WEIGHTS, kept or {}) + wholes(EXTRA, extra or {}))
    writer.save(itertools.chain(engine.own_parts(), shared), whole, committed=committed)


def load_state(
    out: str, step: int, fingerprint: str, trainer: StepTaker, *, kept: Mapping[str, Tensor] | None = None
) -> Checkpoint:
    """Goes back to a checkpoint and returns it: weights, optimizer, skipped steps, ``kept``; collective.
    Raises CheckpointError if it is broken, or of a run with other settings."""
    saved, engine, others = checkpoints.load(out, step), trainer.engine, wholes(WEIGHTS, kept or {})
    if saved.body["fingerprint"] != fingerprint:
        raise CheckpointError(
            f"checkpoint {step} of {out} was made by a run with other settings. Use the settings in its "
            "config.json, or choose another --out."
        )
    taken = saved.body["optimizer_steps"]
    saved.check(engine.shapes_after(taken) | {part.key: part.shape for part in others})

    engine.restore(taken, lambda parts: saved.fill_together([*parts, *others]))
    trainer.steps.bad_in_a_row, trainer.steps.skipped = saved.body["bad_in_a_row"], saved.body["skipped"]
    return saved
