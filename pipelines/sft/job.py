"""The job ``train_mllm``: an MLLM is fine-tuned on chats with mask words.

OUT/generations/     the model's answers to held-out questions, as JSON and as pictures
and what every training job writes, see ``training.job``
"""

from functools import partial
from typing import Any

from pipelines import job
from pipelines.sft.config import TrainMllmConfig
from pipelines.sft.prepare import PreparedMllm, prepare
from pipelines.training.job import TrainingJob


class TrainMllm(TrainingJob[TrainMllmConfig]):
    """See the module."""

    name = "train_mllm"
    ready: PreparedMllm

    def check(self) -> PreparedMllm:
        return prepare(self.config)

    def size(self) -> str:
        return self.ready.size()

    def stage(self) -> Any:
        from pipelines.sft import run

        return run


train_mllm = partial(job.run, TrainMllm)
