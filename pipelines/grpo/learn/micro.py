"""Micro-batches of a learner: responses with their prompts, whole prompts together where they fit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pipelines.grpo.groups import Share
from samtok.mllm.chat import Encoded


@dataclass(frozen=True)
class Micro:
    """Some responses; what is per response (advantages, weights) or per token is in the order of prompts and
    responses, in float32."""

    prompts: list[Encoded]  # each once, with its image
    responses: list[list[np.ndarray]]  # token ids of the responses to each
    advantages: Tensor
    weights: Tensor
    rollout: Tensor  # log-probability of each token when it was sampled, float32

    def without_weight(self) -> "Micro":
        """Returns the same responses, from which nothing is learnt."""
        return replace(self, weights=torch.zeros_like(self.weights))


def micro_batches(shares: Sequence[Share], most_responses: int) -> list[Micro]:
    """Cuts shares into micro-batches of at most so many responses, prompts of like length together; raises
    ValueError if there are no shares, or one without responses."""
    if not shares or not all(share.responses for share in shares):
        raise ValueError(f"every learner needs shares with responses, got {len(shares)} shares")
    pieces = [piece for share in sorted(shares, key=_length) for piece in _pieces(share, most_responses)]
    batches: list[list[Share]] = []
    for piece in pieces:
        if not batches or sum(len(s.responses) for s in batches[-1]) + len(piece.responses) > most_responses:
            batches.append([])
        batches[-1].append(piece)
    return [_micro(batch) for batch in batches]


def _length(share: Share) -> int:
    return len(share.group.input_ids) + max(len(share.group.responses[i]) for i in share.responses)


def _pieces(share: Share, most_responses: int) -> Iterator[Share]:
    for first in range(0, len(share.responses), most_responses):
        part = slice(first, first + most_responses)
        yield replace(
            share,
            responses=share.responses[part],
            advantages=share.advantages[part],
            weights=share.weights[part],
        )


def _micro(shares: Sequence[Share]) -> Micro:
    sampled = [[share.group.responses[i] for i in share.responses] for share in shares]
    return Micro(
        prompts=[share.group.encoded for share in shares],
        responses=[[response.ids for response in responses] for responses in sampled],
        advantages=torch.tensor([value for share in shares for value in share.advantages]),
        weights=torch.tensor([value for share in shares for value in share.weights]),
        rollout=torch.from_numpy(
            np.concatenate([one.log_probs for responses in sampled for one in responses])
        ),
    )
