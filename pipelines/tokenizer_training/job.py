"""The job ``train_tokenizer``: a mask tokenizer is trained.

OUT/train/, validation/     corpora as they were listed, see ``corpus``
and what every training job writes, see ``training.job``
"""

from functools import partial
from typing import Any

from pipelines import job
from pipelines.tokenizer_training.config import TrainTokenizerConfig
from pipelines.tokenizer_training.prepare import PreparedTokenizer, prepare
from pipelines.training.job import TrainingJob


class TrainTokenizer(TrainingJob[TrainTokenizerConfig]):
    """See the module."""

    name = "train_tokenizer"
    ready: PreparedTokenizer

    def check(self) -> PreparedTokenizer:
        return prepare(self.config)

    def size(self) -> str:
        return self.ready.size()

    def stage(self) -> Any:
        from pipelines.tokenizer_training import run

        return run


train_tokenizer = partial(job.run, TrainTokenizer)
