"""What samples responses: ``HfEngine`` runs everywhere; ``vllm_engine`` is for GPUs. Knows no Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipelines.generation import models
from pipelines.grpo.config import RolloutConfig
from pipelines.training.engine import check_state
from samtok.mllm.chat import Encoded
from samtok.mllm.family import Adapter
from samtok.mllm.float_head import use_float32_head
from samtok.mllm.generation import generate
from samtok.mllm.sampling import Sampled, sample


@dataclass(frozen=True)
class Shown(Encoded):
    """A prompt with its images, for an engine that makes its own vision tensors of them."""

    images: tuple[np.ndarray, ...] = ()  # H x W x 3 uint8, in the order of the text


class RolloutEngine(Protocol):
    """Samples from a model whose weights change; ``wants_images`` says whether prompts have to be
    ``Shown``."""

    adapter: Adapter
    wants_images: bool

    def sample(self, prompts: Sequence[Encoded], *, responses: int, seed: int) -> list[list[Sampled]]:
        """Samples responses to each prompt; equal weights, prompts and seeds give equal responses."""
        ...

    def greedy(self, prompts: Sequence[Encoded]) -> list[list[int]]:
        """Returns the likeliest response to each prompt, as token ids."""
        ...

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Takes in trained weights, all of them or, if one does not fit, none; raises CheckpointError if a
        name is unknown or a shape differs."""
        ...

    def sleep(self) -> None:
        """Gives the accelerator's memory back until the next ``wake``."""
        ...

    def wake(self) -> None:
        """Takes the memory again."""
        ...


class HfEngine(RolloutEngine):
    """transformers' generation."""

    wants_images = False

    def __init__(self, model: str, config: RolloutConfig, device: torch.device | str) -> None:
        self.adapter, self.model = models.load(
            model, device=device, precision=config.precision, attention=config.attention
        )
        use_float32_head(self.model)
        self.config, self.device = config, torch.device(device)

    def sample(self, prompts: Sequence[Encoded], *, responses: int, seed: int) -> list[list[Sampled]]:
        return sample(
            self.model,
            self.adapter,
            prompts,
            num_responses=responses,
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
            grammar=self.config.grammar,
            seed=seed,
        )

    def greedy(self, prompts: Sequence[Encoded]) -> list[list[int]]:
        return generate(
            self.model,
            self.adapter,
            prompts,
            max_new_tokens=self.config.max_new_tokens,
            grammar=self.config.grammar,
        )

    @torch.no_grad()
    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        own = self.model.state_dict()
        check_state(state, {name: value.shape for name, value in own.items()})
        for name, value in state.items():
            own[name].copy_(value)

    def sleep(self) -> None:
        if self.device.type == "cuda":
            self.model.to(torch.device("cpu"))
            torch.cuda.empty_cache()

    def wake(self) -> None:
        self.model.to(self.device)
