"""Micro-batches of a learner: replies with their prompts, whole prompts together where they fit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pipelines.grpo.groups import Share
from samtok.mllm.chat import Encoded


@dataclass(frozen=True)
class Micro:
    """Some replies; what is per reply or per token is in the order of prompts and replies.

    Attributes:
        prompts: Each once, with its image.
        replies: Token ids of the replies to each.
        advantages, weights: Of each reply, float32.
        rollout: Log-probability of each token when it was sampled, float32.
    """

    prompts: list[Encoded]
    replies: list[list[np.ndarray]]
    advantages: Tensor
    weights: Tensor
    rollout: Tensor

    def without_weight(self) -> "Micro":
        """Returns the same replies, from which nothing is learnt."""
        return replace(self, weights=torch.zeros_like(self.weights))


def micro_batches(shares: Sequence[Share], most_replies: int) -> list[Micro]:
    """Cuts shares into micro-batches of at most so many replies, prompts of like length together.

    Raises:
        ValueError: There are no shares, or one without replies.
    """
    if not shares or not all(share.replies for share in shares):
        raise ValueError(f"every learner needs shares with replies, got {len(shares)} shares")
    pieces = [piece for share in sorted(shares, key=_length) for piece in _pieces(share, most_replies)]
    batches: list[list[Share]] = []
    for piece in pieces:
        if not batches or sum(len(s.replies) for s in batches[-1]) + len(piece.replies) > most_replies:
            batches.append([])
        batches[-1].append(piece)
    return [_micro(batch) for batch in batches]


def _length(share: Share) -> int:
    return len(share.group.input_ids) + max(len(share.group.replies[i]) for i in share.replies)


def _pieces(share: Share, most_replies: int) -> Iterator[Share]:
    for first in range(0, len(share.replies), most_replies):
        part = slice(first, first + most_replies)
        yield replace(
            share,
            replies=share.replies[part],
            advantages=share.advantages[part],
            weights=share.weights[part],
        )


def _micro(shares: Sequence[Share]) -> Micro:
    said = [[share.group.replies[i] for i in share.replies] for share in shares]
    return Micro(
        prompts=[share.group.encoded for share in shares],
        replies=[[reply.ids for reply in replies] for replies in said],
        advantages=torch.tensor([value for share in shares for value in share.advantages]),
        weights=torch.tensor([value for share in shares for value in share.weights]),
        rollout=torch.from_numpy(np.concatenate([reply.log_probs for replies in said for reply in replies])),
    )
