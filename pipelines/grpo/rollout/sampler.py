"""A process that samples: reads prompts, asks the engine, and hands groups over. Knows no Ray."""

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from pipelines.chats.prompts import Prompt, PromptSource, encode_prompt
from pipelines.chats.source import load_images, rejected
from pipelines.generation.engine import LearningEngine, asked_of, open_engine
from pipelines.grpo.config import GrpoConfig
from pipelines.grpo.groups import Group, Outline, RolloutTask, group_of, outline
from pipelines.grpo.transport import Weights, WeightTransport
from pipelines.training.steps import mixed_seed
from samtok.errors import DataError
from samtok.mllm.chat import Encoded
from samtok.mllm.sampling import Sampled

log = logging.getLogger(__name__)

_SAMPLE, _VALIDATION = 0x726F6C6C, 0x6C6F6F6B
"""First words of the seeds here, so that no other use of the run's seed draws the same numbers."""


_Asked = tuple[list[tuple[int, int, Prompt, Encoded]], list[dict[str, Any]]]
"""Prompts that can be asked, each with its draw and index, and rejects for the others."""


@dataclass(frozen=True)
class Sampling:
    """What a task came to, but for the groups themselves."""

    outlines: tuple[Outline, ...]  # of the groups, in the order of the draws
    rejects: tuple[dict[str, Any], ...]  # of prompts that could not be asked
    version: int  # of the weights


class Sampler:
    """Samples groups."""

    def __init__(
        self,
        config: GrpoConfig,
        prompts: PromptSource,
        held_out: PromptSource | None,
        transport: WeightTransport,
        device: torch.device | str = "cpu",
    ) -> None:
        torch.set_num_threads(config.rollout.worker.threads)
        self.config, self.prompts, self.held_out, self.transport = config, prompts, held_out, transport
        self.engine: LearningEngine = open_engine(
            config.model,
            config.rollout,
            device=device,
            precision=config.rollout.precision,
            grammar=config.rollout.grammar,
            learns=True,
            sleeps=config.placement == "colocated",
            max_prompt_tokens=config.prompts.max_prompt_tokens,
        )
        self.version, self.digest = -1, ""
        threads = partial(torch.set_num_threads, config.rollout.worker.threads)
        self._reader = ThreadPoolExecutor(1, "reads-ahead", initializer=threads)
        self._ahead: tuple[int, Future[_Asked]] | None = None

    def sync(self, weights: Weights) -> tuple[int, str]:
        """Takes in published weights; returns their version and digest.

        Raises:
            CheckpointError: A piece is damaged or does not fit; weights and version stay as they were.
        """
        self.engine.load_weights(weights.shapes, self.transport.fetch(weights))
        self.version, self.digest = weights.version, weights.digest
        return self.version, self.digest

    def roll(self, task: RolloutTask, upcoming: RolloutTask | None = None) -> tuple[Sampling, list[Group]]:
        """Samples responses to the prompts of a task; a prompt that cannot be asked is rejected.

        Args:
            upcoming: What will probably come next; its prompts are read while responses are sampled.
        """
        number, ahead = self._ahead or (None, None)
        if ahead is not None and number == task.number:
            self._ahead = None
            asked, rejects = ahead.result()
        else:
            asked, rejects = self._read(self.prompts, task.draws)
        if upcoming is not None:
            reading = self._reader.submit(self._read_now, self.prompts, upcoming.draws)
            self._ahead = upcoming.number, reading
        groups = self._groups(
            asked, self.config.rollout.group_size, mixed_seed(self.config.seed, _SAMPLE, task.number)
        )
        return Sampling(tuple(map(outline, groups)), tuple(rejects), self.version), groups

    def validate(self, indices: Sequence[int]) -> tuple[list[Group], list[Group]]:
        """Answers held-out prompts: greedily, and with ``--validation.samples`` samples of each."""
        assert self.held_out is not None
        asked, rejects = self._read(self.held_out, [(index, index) for index in indices])
        if rejects:
            log.warning(
                "%d of %d held-out prompts cannot be asked and are left out of the validation; the first: %s",
                *(len(rejects), len(indices), rejects[0]["message"]),
            )
        answers = self.engine.greedy([encoded for *_, encoded in asked])
        stops = self.engine.adapter.stop_ids
        greedy = [
            self._group(draw, index, prompt, encoded, [_certain(ids, stops)])
            for (draw, index, prompt, encoded), ids in zip(asked, answers, strict=True)
        ]
        samples = self.config.validation.samples
        seed = mixed_seed(self.config.seed, _VALIDATION, indices[0]) if indices else 0
        return greedy, self._groups(asked, samples, seed) if samples else []

    def _read(self, source: PromptSource, draws: Sequence[tuple[int, int]]) -> _Asked:
        """Returns the prompts that can be asked, with their draws, and rejects for the others."""
        if self._ahead is not None:
            wait([self._ahead[1]])  # one thread reads at a time
        return self._read_now(source, draws)

    def _read_now(self, source: PromptSource, draws: Sequence[tuple[int, int]]) -> _Asked:
        asked, rejects = [], []
        for draw, index in draws:
            try:
                prompt, limit = source.prompt(index), self.config.max_image_pixels
                most = self.config.prompts.max_prompt_tokens
                images = load_images(prompt.row, limit)
                encoded = encode_prompt(self.engine.adapter, prompt, most, images)
                asked.append((draw, index, prompt, asked_of(self.engine, encoded, prompt.turns, images)))
            except DataError as error:
                rejects.append(rejected(source.row(index), error))
        return asked, rejects

    def _groups(
        self, asked: Sequence[tuple[int, int, Prompt, Encoded]], responses: int, seed: int
    ) -> list[Group]:
        prompts = [encoded for *_, encoded in asked]
        numbers = {"responses": responses, "seed": seed, "temperature": self.config.rollout.temperature}
        sampled = self.engine.sample(prompts, **numbers)
        return [self._group(*one, group) for one, group in zip(asked, sampled, strict=True)]

    def _group(
        self, draw: int, index: int, prompt: Prompt, encoded: Encoded, responses: Sequence[Sampled]
    ) -> Group:
        texts = [self.engine.adapter.text_of(one.ids.tolist()) for one in responses]
        return group_of(draw, index, prompt, encoded, responses, texts=texts, version=self.version)


def _certain(ids: list[int], stop_ids: Sequence[int]) -> Sampled:
    complete = bool(ids) and ids[-1] in stop_ids
    return Sampled(np.array(ids, np.int32), np.zeros(len(ids), np.float32), complete)
