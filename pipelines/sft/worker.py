"""A worker that fine-tunes an MLLM: what ``training.worker`` leaves open. Knows no Ray.

Checkpoints hold what is trained; what is frozen comes from the model that the run started from, whose hash is
in the run's fingerprint.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipelines import storage
from pipelines.generation import models
from pipelines.sft.config import TrainMllmConfig
from pipelines.sft.data import PreparedChat, step_loader
from pipelines.sft.evaluate import Validator
from pipelines.sft.loop import Trainer
from pipelines.sft.prepare import PreparedMllm
from pipelines.training import mllm
from pipelines.training.engine import engine_of, zero_stage
from pipelines.training.fit import Notify
from pipelines.training.row_rates import RowRate
from pipelines.training.worker import TrainWorker
from samtok.mllm.activations import keep_fewer_activations
from samtok.mllm.family import Adapter
from samtok.mllm.new_rows import rows_of_words


def train_worker(task: PreparedMllm, notify: Notify, device: torch.device | str = "cpu") -> None:
    """Trains from the last checkpoint, or from the start, to the end; raises SamtokError for data, weights,
    storage or a divergence that a user can do something about."""
    torch.set_num_threads(task.config.worker.threads)
    attention = task.config.engine.attention
    adapter, model = models.load(task.config.model, device=device, precision="float32", attention=attention)
    MllmWorker(task, notify, model, adapter).run()


class MllmWorker(TrainWorker[TrainMllmConfig, PreparedChat]):
    """One worker of a run; of its notices ``generations`` names a file of answers."""

    unit, score, measures_first = "tokens", "loss", True

    def __init__(self, task: PreparedMllm, notify: Notify, model: Any, adapter: Adapter) -> None:
        self.model, self.adapter, config = model, adapter, task.config
        adapter.thinking = any(source.corpus.thinking for source in task.corpora)
        self.loop = build_trainer(model, adapter, task)
        super().__init__(task, notify, self.loop, config.validation if task.held_out else None)
        self.sources, self.weights = task.corpora, task.weights
        self.precision = mllm.precision_of(config.export_precision, config.model)
        self.validator = Validator(model, adapter, task.held_out, config, alike=self.loop.alike)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def parts(self, start: int) -> Iterator[list[PreparedChat]]:
        loader = step_loader(self.sources, self.weights, self.config, self.adapter, rank=self.rank)
        return loader.steps(start)

    def take_step(self, parts: Sequence[PreparedChat]) -> dict[str, float]:
        return self.loop.take_step([part.sample for part in parts])

    def measure(self) -> dict[str, Any]:
        return self.validator.measure()

    def is_better(self, found: Mapping[str, Any], best: Mapping[str, Any] | None) -> bool:
        return best is None or found["loss"] < best["loss"]

    def after_validation(self) -> None:
        """Writes the model's own answers to held-out questions."""
        answers, done = self.validator.answers(), self.loop.steps.done
        if self.rank == 0 and answers:
            name = f"generations/{done:08d}.json"
            storage.write_bytes(storage.join(self.out, name), (json.dumps(answers, indent=1) + "\n").encode())
            self.notify("generations", {"step": done, "file": name})

    def export(self, uri: str, lineage: Mapping[str, Any]) -> None:
        state = self.loop.engine.model_state()
        if self.rank == 0:
            mllm.export(self.model, state, self.adapter, uri, lineage, precision=self.precision)

    def kept_state(self) -> dict[str, Tensor]:
        return {}

    def parameters(self) -> int:
        """Counts also those that ZeRO-3 leaves empty while they are not in use."""
        return sum(getattr(p, "ds_numel", p.numel()) for p in self.model.parameters())


def build_trainer(model: Any, adapter: Adapter, task: PreparedMllm) -> Trainer:
    """Sets what is trained, and puts the model under the engine of the run."""
    config = task.config
    mllm.set_trained(model, adapter, config)
    if config.engine.gradient_checkpointing:
        keep_fewer_activations(model)
    rates = _row_rates(model, adapter, config)
    engine = engine_of(model, config.optimizer, task.deepspeed, row_rates=rates)
    return Trainer(model, adapter, engine, config, alike=zero_stage(task.deepspeed) > 1)


def _row_rates(model: Any, adapter: Adapter, config: TrainMllmConfig) -> dict[str, RowRate]:
    """Returns which rows of which parameters learn at the rate of the new words."""
    if config.new_rows_lr is None:
        return {}
    rows, apart = rows_of_words(adapter), not config.trains_whole_llm
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    tables = {id(layer.new_rows if apart else layer.weight) for layer in layers}
    first = 0 if apart else rows.start
    rate = RowRate(first, first + len(rows), config.new_rows_factor)
    return {name: rate for name, p in model.named_parameters() if id(p) in tables}
