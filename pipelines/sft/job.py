"""The job ``train_mllm``: an MLLM is fine-tuned on chats with mask words.

OUT/generations/     the model's answers to held-out questions, as JSON and as pictures
and what every training job writes, see ``training.job``
"""

from collections.abc import Mapping
from typing import Any

from pipelines import job
from pipelines.job import Inputs
from pipelines.sft.config import TrainMllmConfig
from pipelines.sft.prepare import PreparedMllm, prepare
from pipelines.tracking import Tracker
from pipelines.training.job import TrainingJob


class TrainMllm(TrainingJob[TrainMllmConfig]):
    """See the module."""

    name = "train_mllm"
    rejecting = "chats"
    ready: PreparedMllm

    def check(self) -> PreparedMllm:
        return prepare(self.config)

    def size(self) -> str:
        return self.ready.size()

    def train(self, tracker: Tracker) -> None:
        from pipelines.sft.run import train_on_ray  # loads torch

        train_on_ray(self.ready, tracker)

    def publish(self, record: Mapping[str, Any], tracker: Tracker) -> list[tuple[str, str]]:
        from pipelines.sft.run import publish  # draws curves

        return publish(self.ready, record, tracker)


def train_mllm(config: TrainMllmConfig, *, inputs: Inputs | None = None) -> int:
    """Runs the job; returns its exit code."""
    return job.run(TrainMllm, config, inputs=inputs)
