"""The job ``train_tokenizer``: a mask tokenizer is trained.

OUT/train/, validation/     corpora as they were listed, see ``corpus``
and what every training job writes, see ``training.job``
"""

from collections.abc import Mapping
from typing import Any

from pipelines import job
from pipelines.job import Inputs
from pipelines.tokenizer_training.config import TrainTokenizerConfig
from pipelines.tokenizer_training.prepare import PreparedTokenizer, prepare
from pipelines.tracking import Tracker
from pipelines.training.job import TrainingJob


class TrainTokenizer(TrainingJob[TrainTokenizerConfig]):
    """See the module."""

    name = "train_tokenizer"
    rejecting = "images"
    ready: PreparedTokenizer

    def check(self) -> PreparedTokenizer:
        return prepare(self.config)

    def size(self) -> str:
        return self.ready.size()

    def train(self, tracker: Tracker) -> None:
        from pipelines.tokenizer_training.run import task_of, train_on_ray  # loads torch

        train_on_ray(task_of(self.ready), tracker)

    def publish(self, record: Mapping[str, Any], tracker: Tracker) -> list[tuple[str, str]]:
        from pipelines.tokenizer_training.run import publish  # loads torch

        return publish(self.ready, record, tracker)


def train_tokenizer(config: TrainTokenizerConfig, *, inputs: Inputs | None = None) -> int:
    """Runs the job; returns its exit code."""
    return job.run(TrainTokenizer, config, inputs=inputs)
