"""Options of ``jobs/train_mllm.py``; the presets are in ``presets``."""

import math
from typing import Annotated

from annotated_types import MinLen

from pipelines.chats.spec import ChatCorpusText
from pipelines.config import AtLeast0, AtLeast1, Positive, ShippedPlace, config
from pipelines.training.config import ExportPrecision, MllmEngineConfig, TrainingConfig, TrainsMllm
from pipelines.training.config import ValidationConfig as BaseValidationConfig
from samtok.errors import ConfigError


@config
class SamplingConfig:
    """Which chats make a step."""

    samples_per_step: AtLeast1 = 16
    """Chats of a step over all workers: the global batch."""
    max_tokens: AtLeast1 = 4096
    """Chats with more tokens, image tokens included, are left out and counted; nothing is ever cut."""


@config
class ValidationConfig(BaseValidationConfig):
    """Validation on held-out chats during training and at its end; the best model is exported."""

    chats: tuple[ChatCorpusText, ...] = ()
    """Held-out chat corpora, written as --chats; without any there is no validation. Of several the loss of
    each is told apart too."""
    every: AtLeast1 = 200
    """Steps between validations; there is one before the first step and one after the last."""
    samples: AtLeast1 = 64
    """Held-out chats whose loss is taken, the first of the held-out corpora."""
    generations: AtLeast0 = 8
    """Of these, so many last questions are answered by the model and drawn beside the truth; 0 draws none."""
    max_new_tokens: AtLeast1 = 128
    """Longest answer there."""


@config
class TrainMllmConfig(TrainingConfig, TrainsMllm):
    """An MLLM is fine-tuned on chats with mask words."""

    model: ShippedPlace
    """A model that knows the mask words: a folder (jobs/extend_mllm.py), a shipped name or a hub id."""
    chats: Annotated[tuple[ChatCorpusText, ...], MinLen(1)]
    """Chat corpora to train on (jobs/compose_dialogues.py): FOLDER, or uri=FOLDER,weight=2,limit=1000."""
    tokenizer: ShippedPlace
    """Mask tokenizer of the corpora's words, which draws the model's answers: a shipped name, a
    folder or a hub id."""
    sampling: SamplingConfig = SamplingConfig()
    epochs: Positive | None = None
    """Times that training goes through the corpora, instead of --steps."""
    new_rows_lr: Positive | None = None
    """Highest learning rate of the embedding rows of mask words; by default that of all other weights."""
    export_precision: ExportPrecision = "model"
    """Type of the weights in best/ and final/: that of --model, mostly bfloat16, or float32 as trained."""
    engine: MllmEngineConfig = MllmEngineConfig()
    micro_batch_tokens: AtLeast1 | None = None
    """Tokens that a forward and backward pass of a worker computes at most, padding included, in place of
    --micro-batch; a longer chat goes alone. Several workers exchange chats so that their passes are of like
    size. Decides memory and speed, not what is learnt."""
    validation: ValidationConfig = ValidationConfig()

    def check(self) -> None:
        """Checks what several fields decide together."""
        super().check()
        if self.epochs is not None and math.isinf(self.epochs):
            raise ConfigError("--.epochs must be finite, got inf.")
        if self.new_rows_lr is not None and not self.train.llm:
            raise ConfigError("--.new-rows-lr needs --.train.llm, which the rows are part of.")
        self.check_shares("--.sampling.samples-per-step")

    @property
    def per_step(self) -> int:
        return self.sampling.samples_per_step

    @property
    def new_rows_factor(self) -> float:
        """Learning rate of the rows of mask words as a multiple of the others'."""
        return 1.0 if self.new_rows_lr is None else self.new_rows_lr / self.optimizer.lr
