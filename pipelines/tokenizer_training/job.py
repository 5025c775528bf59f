"""The job ``train_tokenizer``: a mask tokenizer is trained.

OUT/train/, validation/     corpora as they were listed, see ``corpus``
and what every training job writes, see ``training.job``
"""

from typing import Any

from pipelines import job
from pipelines.job import Inputs
from pipelines.tokenizer_training.config import TrainTokenizerConfig
from pipelines.tokenizer_training.prepare import PreparedTokenizer, prepare
from pipelines.training.job import TrainingJob


class TrainTokenizer(TrainingJob[TrainTokenizerConfig]):
    """See the module."""

    name = "train_tokenizer"
    rejecting = "images"
    ready: PreparedTokenizer

    def check(self) -> PreparedTokenizer:
        return prepare(self.config)

    def stage(self) -> Any:
        from pipelines.tokenizer_training import run

        return run


def train_tokenizer(config: TrainTokenizerConfig, *, inputs: Inputs | None = None) -> int:
    """Runs the job; returns its exit code."""
    return job.run(TrainTokenizer, config, inputs=inputs)
