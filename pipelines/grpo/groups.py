"""What goes from samplers to rewards and learners: a prompt with its responses, and a learner's share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipelines.chats.prompts import Prompt
from samtok.mllm.chat import Encoded
from samtok.mllm.sampling import Sampled
from samtok.rewards.response import Question, Response


@dataclass(frozen=True)
class RolloutTask:
    """Prompts that are sampled in one batch, each with its number in the order of the run and its index."""

    number: int  # from 0 over the whole run; results are used in this order
    draws: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Group:
    """One prompt as samplers and learners read it, and its responses; arrays only, so a node's processes
    share one copy."""

    draw: int  # number of the prompt in the order of the run
    index: int  # the prompt
    question: Question  # what rewards see of it
    input_ids: np.ndarray
    mm_token_type_ids: np.ndarray
    vision: dict[str, np.ndarray]
    responses: tuple[Sampled, ...]  # what was sampled
    texts: tuple[str, ...]  # the responses as text with mask words
    version: int  # of the weights that sampled them

    @property
    def encoded(self) -> Encoded:
        """The prompt as a dialogue of which nothing is learnt; owns its memory."""
        ids = torch.tensor(self.input_ids)
        return Encoded(
            input_ids=ids,
            labels=torch.full_like(ids, -100),
            mm_token_type_ids=torch.tensor(self.mm_token_type_ids),
            vision={name: torch.tensor(value) for name, value in self.vision.items()},
        )

    @property
    def answers(self) -> list[Response]:
        """The responses as rewards see them."""
        return [
            Response(text=text, token_ids=tuple(one.ids.tolist()), complete=one.complete)
            for text, one in zip(self.texts, self.responses, strict=True)
        ]


def group_of(
    draw: int,
    index: int,
    prompt: Prompt,
    encoded: Encoded,
    responses: Sequence[Sampled],
    *,
    texts: Sequence[str],
    version: int,
) -> Group:
    """Makes a group of a prompt and its responses; see ``Group``."""
    return Group(
        draw=draw,
        index=index,
        question=prompt.question,
        input_ids=encoded.input_ids.numpy(),
        mm_token_type_ids=encoded.mm_token_type_ids.numpy(),
        vision={name: value.numpy() for name, value in encoded.vision.items()},
        responses=tuple(responses),
        texts=tuple(texts),
        version=version,
    )


@dataclass(frozen=True)
class Outline:
    """What the driver knows of a group; the group itself stays in the object store."""

    draw: int
    version: int
    targets: int
    lengths: tuple[int, ...]  # tokens of each response
    complete: tuple[bool, ...]  # whether each response ended by itself
    prompt_tokens: int  # tokens of the prompt

    @property
    def cost(self) -> int:
        """Tokens that a learner reads of it."""
        return self.prompt_tokens * len(self.lengths) + sum(self.lengths)


def outline(group: Group) -> Outline:
    """Returns what the driver has to know."""
    return Outline(
        draw=group.draw,
        version=group.version,
        targets=len(group.question.truth),
        lengths=tuple(map(len, group.responses)),
        complete=tuple(one.complete for one in group.responses),
        prompt_tokens=len(group.input_ids),
    )


@dataclass(frozen=True)
class Share:
    """What a learner learns from one group in one optimizer step."""

    group: Any  # the group, or a reference to it
    responses: tuple[int, ...]  # indices of the responses that count
    advantages: tuple[float, ...]  # of each of them
    weights: tuple[float, ...]  # what each token of each of them counts in the loss of the whole step
