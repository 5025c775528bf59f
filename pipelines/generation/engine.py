"""What generates: one interface over transformers, vLLM and servers. Knows no Ray.

``open_engine`` returns the one that a config names. All of them take prompts as an adapter encodes them, and
give token ids and log-probabilities of the same distribution: no filter but the temperature, no token that
``samtok.mllm.grammar`` excludes. ``asked_of`` makes a prompt what an engine takes.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pipelines.config import Precision
from pipelines.generation import models
from pipelines.generation.config import EngineConfig
from pipelines.training.engine import check_shapes
from samtok.errors import ConfigError, DataError
from samtok.mllm.chat import Encoded, Turn
from samtok.mllm.family import Adapter
from samtok.mllm.float_head import use_float32_head
from samtok.mllm.generation import generate
from samtok.mllm.sampling import Sampled, sample
from samtok.mllm.token_budget import cut


@dataclass(frozen=True)
class Shown(Encoded):
    """A prompt with its dialogue and images, for an engine that makes its own tensors of them."""

    turns: tuple[Turn, ...] = ()
    images: tuple[np.ndarray, ...] = ()  # H x W x 3 uint8, one for each place in the text, in its order


class Engine(Protocol):
    """Generates with one model.

    ``wants_images`` says whether prompts have to be ``Shown``, with ``max_images`` and
    ``max_prompt_tokens`` at most; ``batches`` whether it batches by itself, so that any number of prompts is
    given at once.
    """

    adapter: Adapter
    wants_images: bool
    max_images: int
    max_prompt_tokens: int
    batches: bool

    def sample(
        self, prompts: Sequence[Encoded], *, responses: int, seed: int, temperature: float = 1.0
    ) -> list[list[Sampled]]:
        """Samples responses to each prompt; equal weights, prompts and seeds give equal responses."""
        ...

    def greedy(self, prompts: Sequence[Encoded]) -> list[list[int]]:
        """Returns the likeliest response to each prompt, as token ids."""
        ...

    def replies(
        self, prompts: Sequence[Encoded], *, temperature: float, seed: int
    ) -> list[list[int] | DataError]:
        """Returns one response to each prompt, as token ids, or why it was refused; at temperature 0 the
        likeliest."""
        if not temperature:
            return [*self.greedy(prompts)]
        drawn = self.sample(prompts, responses=1, seed=seed, temperature=temperature)
        return [one.ids.tolist() for (one,) in drawn]


class LearningEngine(Engine, Protocol):
    """An engine whose model is trained elsewhere, as samplers of reinforcement learning have it."""

    def load_weights(self, shapes: Mapping[str, torch.Size], weights: Iterable[tuple[str, Tensor]]) -> None:
        """Takes in trained weights one by one, all of them or, if one does not fit, none.

        Args:
            shapes: Of all that come.
            weights: With their names; one may be gone when the next one is asked for.

        Raises:
            CheckpointError: A name is unknown or a shape differs.
        """
        ...

    def sleep(self) -> None:
        """Gives the accelerator's memory back until the next ``wake``."""
        ...

    def wake(self) -> None:
        """Takes the memory again."""
        ...


class HfEngine(LearningEngine):
    """transformers' generation, with a model that is in this process."""

    wants_images = False
    max_images = max_prompt_tokens = sys.maxsize
    batches = False

    def __init__(self, adapter: Adapter, model: Any, *, max_new_tokens: int, grammar: bool) -> None:
        self.adapter, self.model, self.device = adapter, model, torch.device(model.device)
        self.limits = {"max_new_tokens": max_new_tokens, "grammar": grammar}

    def sample(
        self, prompts: Sequence[Encoded], *, responses: int, seed: int, temperature: float = 1.0
    ) -> list[list[Sampled]]:
        numbers = {"num_responses": responses, "seed": seed, "temperature": temperature}
        return sample(self.model, self.adapter, prompts, **numbers, **self.limits)

    def greedy(self, prompts: Sequence[Encoded]) -> list[list[int]]:
        return generate(self.model, self.adapter, prompts, **self.limits)

    @torch.no_grad()
    def load_weights(self, shapes: Mapping[str, torch.Size], weights: Iterable[tuple[str, Tensor]]) -> None:
        own = self.model.state_dict()
        check_shapes(shapes, {name: value.shape for name, value in own.items()})
        for name, value in weights:
            own[name].copy_(value)

    def sleep(self) -> None:
        if self.device.type == "cuda":
            self.model.to(torch.device("cpu"))
            torch.cuda.empty_cache()

    def wake(self) -> None:
        self.model.to(self.device)


def open_engine(
    model: str,
    config: EngineConfig,
    *,
    device: torch.device | str,
    precision: Precision,
    grammar: bool,
    learns: bool = False,
    sleeps: bool = False,
    max_prompt_tokens: int | None = None,
    sha256: str | None = None,
) -> Any:
    """Returns the engine that a config names, with its model loaded or its server found.

    Args:
        model: Folder or URI of the model.
        grammar: Allow whole mask words only.
        learns: It is to be a ``LearningEngine``, whose logits are in float32 as a learner's.
        sleeps: It has to give its memory back at times.
        max_prompt_tokens: Longest prompt; None if that is not known.
        sha256: Of the model, as ``models.load`` takes it.

    Raises:
        CheckpointError: The model cannot be loaded, or has other weights.
        ClusterError: A server does not answer.
    """
    if config.engine == "hf":
        adapter, loaded = models.load(
            model, device=device, precision=precision, attention=config.attention, sha256=sha256
        )
        if learns:
            use_float32_head(loaded)
        return HfEngine(adapter, loaded, max_new_tokens=config.max_new_tokens, grammar=grammar)
    models.require_same(model, sha256, sha256 and models.sha256_of(model))
    if config.engine == "http":
        from pipelines.generation.http_engine import HttpEngine

        return HttpEngine(model, config, grammar=grammar)
    from pipelines.generation.vllm_engine import VllmEngine  # only in an environment that has vLLM

    return VllmEngine(
        model,
        config,
        device=device,
        precision=precision,
        grammar=grammar,
        learns=learns,
        sleeps=sleeps,
        max_prompt_tokens=max_prompt_tokens,
    )


def asked_of(
    engine: Engine, encoded: Encoded, turns: Sequence[Turn], images: Sequence[np.ndarray]
) -> Encoded:
    """Returns a prompt as an engine takes it: with its dialogue and images beside it, where it wants them.

    Raises:
        DataError: ``too_many_images`` or ``too_long`` for more than the engine takes.
    """
    if len(encoded) > engine.max_prompt_tokens:
        raise DataError(
            f"the prompt has {len(encoded)} tokens, the engine takes {engine.max_prompt_tokens}.",
            reason="too_long",
        )
    if not engine.wants_images:
        return encoded
    order = [part for turn in turns for part in turn.parts if isinstance(part, int)]
    if len(order) > engine.max_images:
        raise DataError(
            f"the prompt has {len(order)} images, the engine takes {engine.max_images} (its max-images).",
            reason="too_many_images",
        )
    placed = tuple(images[number] for number in order)
    return Shown(**vars(encoded), turns=tuple(turns), images=placed)


def in_order(
    engine: Engine,
    prompts: Sequence[Encoded],
    *,
    batch_size: int,
    batch_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[list[int] | DataError]:
    """Returns a response to each prompt, as token ids, or why it was refused. An engine that does not batch
    by itself is given prompts of similar length at a time.

    Args:
        batch_size: Prompts of a pass.
        batch_tokens: Instead, tokens of its prompts at most, padding included.
        temperature: 0 takes the likeliest tokens.
        seed: Of the sampling.
    """
    lengths = [len(prompt) for prompt in prompts]
    batches = cut(lengths) if engine.batches else cut(lengths, batch_size, batch_tokens)
    found: list[list[int] | DataError] = [[]] * len(prompts)
    start = 0
    for batch in batches:
        asked = [prompts[place] for place in batch]
        answers = engine.replies(asked, temperature=temperature, seed=seed + start)
        for place, answer in zip(batch, answers, strict=True):
            found[place] = answer
        start += len(batch)
    return found


def check_prompt(prompt: Encoded, seen: Sequence[int] | None) -> None:
    """Makes sure that vLLM or a server read the prompt that we encoded; raises ConfigError if it did not."""
    ours = prompt.input_ids.tolist()
    if list(seen or ()) != ours:
        raise ConfigError(
            f"the engine read a prompt of {len(ours)} tokens as {len(seen or ())}, or as other ones, so "
            "answers would belong to another prompt. Its image processor sizes images differently: use a "
            "release of transformers there that reads images as this one does, or the engine hf."
        )
