"""A worker that trains a tokenizer: what ``training.worker`` leaves open. Knows no Ray."""

import dataclasses
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from pipelines import storage
from pipelines.ingestion.corpora import is_of_shapes
from pipelines.tokenizer_training.batch import MicroBatch
from pipelines.tokenizer_training.config import TrainTokenizerConfig
from pipelines.tokenizer_training.corpus import listed
from pipelines.tokenizer_training.data import (
    held_out_samples,
    step_loader,
    training_sources,
    validation_sources,
)
from pipelines.tokenizer_training.evaluate import validate
from pipelines.tokenizer_training.loop import Trainer
from pipelines.tokenizer_training.prepare import PreparedTokenizer
from pipelines.tokenizer_training.trainee import build_trainee
from pipelines.training import world
from pipelines.training.checkpoints import Checkpoint
from pipelines.training.engine import engine_of
from pipelines.training.fit import Notify
from pipelines.training.worker import TrainWorker
from samtok.config import SYNTHETIC
from samtok.folders import weights_sha256
from samtok.model.state import save_folder


def train_worker(task: PreparedTokenizer, notify: Notify, device: torch.device | str = "cpu") -> None:
    """Trains from the last checkpoint, or from the start, to the end; raises SamtokError for data, weights,
    storage or a divergence that a user can do something about."""
    torch.set_num_threads(task.config.worker.threads)
    TokenizerWorker(task, notify, torch.device(device)).run()


class TokenizerWorker(TrainWorker[TrainTokenizerConfig, MicroBatch]):
    """One worker of a run."""

    unit, score = "masks", "iou"

    def __init__(self, task: PreparedTokenizer, notify: Notify, device: torch.device) -> None:
        config = task.config
        self.trainee = build_trainee(config).to(device)
        self.tokenizer = self.trainee.tokenizer
        if config.precision == "bfloat16":
            self.tokenizer.autocast_dtype = torch.bfloat16
        if world.size() > 1:
            for tensor in self.trainee.state_dict().values():
                distributed.broadcast(tensor, src=0)
        if config.compile:
            self.tokenizer.image_encoder.compile()  # in place: the names of the weights stay
        engine = engine_of(self.trainee, config.optimizer, task.deepspeed)
        self.loop = Trainer(self.trainee, engine, config)
        super().__init__(task, notify, self.loop, config.validation)
        self.sources = training_sources(config, task.training_index)
        self.held_out = validation_sources(config, task.validation_index)
        self.corpora = [spec.corpus for spec in task.corpora]
        self.index = index = task.training_index
        self.weights = (
            [None] * len(self.sources) if index is None else [entry.spec.weight for entry in index.corpora]
        )

    @property
    def device(self) -> torch.device:
        return self.tokenizer.device

    def parts(self, start: int) -> Iterator[list[MicroBatch]]:
        model = self.tokenizer.config
        return step_loader(self.sources, self.weights, self.config, model, rank=self.rank).steps(start)

    def take_step(self, parts: Sequence[MicroBatch]) -> dict[str, float]:
        metrics = self.loop.take_step([micro.batch for micro in parts])
        return metrics | {"images": self.config.per_step}

    def measure(self) -> dict[str, Any]:
        return self._measured(self.config.validation.images)

    def is_better(self, found: Mapping[str, Any], best: Mapping[str, Any] | None) -> bool:
        """Only what goes through codes can be the best."""
        return found["quantized"] and (best is None or found["iou"] > best["iou"])

    def measure_final(self) -> dict[str, Any]:
        return self._measured(self.config.validation.final_images, full=True)

    def _measured(self, images: int, *, full: bool = False) -> dict[str, Any]:
        config = self.config.validation
        samples = held_out_samples(
            self.held_out,
            images,
            masks_per_image=config.masks_per_image,
            seed=config.seed,
            rank=self.rank,
            world=world.size(),
        )
        return validate(self.tokenizer, samples, quantize=self.loop.quantizes, full=full)

    def export(self, uri: str, lineage: Mapping[str, Any]) -> None:
        if self.rank != 0:
            return
        seen = SYNTHETIC if all(is_of_shapes(corpus.source) for corpus in self.corpora) else ""
        with tempfile.TemporaryDirectory(prefix="samtok-") as folder:
            config = dataclasses.replace(self.tokenizer.config, trained_on=seen)
            save_folder(self.tokenizer, config, folder)
            body = json.dumps({**lineage, "weights_sha256": weights_sha256(folder)}, indent=2) + "\n"
            (Path(folder) / "lineage.json").write_text(body)
            storage.replace_folder(Path(folder), uri)

    def extra_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns the embeddings that k-means will be fitted to."""
        recent = self.loop.gathered_recent()
        tensors = {f"{i:08d}": z for i, (z, _) in enumerate(recent)}
        return tensors, {"recent_counts": [count for _, count in recent]}

    def load_extra(self, saved: Checkpoint) -> None:
        recent = saved.extra().values()
        self.loop.restore_recent(list(zip(recent, saved.body["recent_counts"], strict=True)))

    def listed(self) -> dict[str, Any]:
        return listed(self.index)

    def parameters(self) -> int:
        return sum(p.numel() for p in self.tokenizer.parameters())
