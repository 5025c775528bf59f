"""Losses of the policy per token, and importance weights of samples that another policy has drawn.

``r`` is the ratio of a token's probability now to that when the update began (``old``), ``A`` its advantage.
All are made for the sums of ``samtok.rl.weights``. At r = 1 the gradient of each is ``-A`` times that of the
log-probability, but for GSPO, where this holds for a sequence whose tokens share one ``A``.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from samtok.rl.sequences import sequence_means, sequence_sums

Kind = Literal["ppo", "gspo", "cispo", "reinforce"]
LOG_RATIO_LIMIT = 20.0
"""Log-ratios are kept within this before exp, as other trainers do; exp(20) is 5e8."""


@dataclass(frozen=True)
class PolicySettings:
    """Which loss, and how far the ratio may go.

    Attributes:
        kind: "ppo": ``max(-A r, -A clip(r))`` (GRPO, arXiv 2402.03300, eq. 3), with a bound of its own on
            each side (clip-higher of DAPO, arXiv 2503.14476, section 3.1). "gspo": the same with one ratio
            per sequence, ``exp(mean of its log-ratios)`` (arXiv 2507.18071, section 4). "cispo":
            ``-A clip(r) log p`` with a constant clip(r), so that every token keeps its gradient (MiniMax-M1,
            arXiv 2506.13585, section 3.1). "reinforce": ``-A r``, no clipping.
        clip_low: The ratio is clipped below ``1 - clip_low``; 1 or more is no bound.
        clip_high: The ratio is clipped above ``1 + clip_high``.
        dual_clip: Largest loss in units of ``|A|`` where A is negative (arXiv 1912.09729); above 1, or
            None for no bound. Read by "ppo" and "gspo".
    """

    kind: Kind
    clip_low: float
    clip_high: float
    dual_clip: float | None = None

    def __post_init__(self) -> None:
        if not (self.clip_low >= 0 and self.clip_high >= 0):
            raise ValueError(
                f"clip_low and clip_high must be >= 0, got {self.clip_low} and {self.clip_high}."
            )
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise ValueError(f"dual_clip must be > 1, or None for no bound, got {self.dual_clip}.")


class Terms(NamedTuple):
    """Losses of the tokens of a micro-batch.

    Attributes:
        loss: To be weighted and summed; has the gradient.
        ratio: r, the sequence's under "gspo"; without gradient.
        clipped_low: Tokens that the lower bound has changed. Under "ppo" and "gspo" these have a negative
            advantage and no gradient.
        clipped_high: The same of the upper bound, with a positive advantage.
    """

    loss: Float[Tensor, " token"]
    ratio: Float[Tensor, " token"]
    clipped_low: Bool[Tensor, " token"]
    clipped_high: Bool[Tensor, " token"]


def policy_terms(
    log_probs: Float[Tensor, " token"],
    old: Float[Tensor, " token"],
    advantages: Float[Tensor, " token"],
    sequence: Int[Tensor, " token"],
    settings: PolicySettings,
) -> Terms:
    """Returns the loss of every token of a micro-batch, which must hold whole sequences.

    Under "gspo" every token carries the whole loss of its sequence, so a token mean within the sequence is
    that loss, and the mean "sequence" of ``sequence_weights`` gives the paper's objective; other means weigh
    sequences by their length. A sequence of one token has PPO's loss.

    Args:
        log_probs: Of the sampled tokens under the present policy, with gradient.
        old: The same when the update began; no gradient flows to it.
        sequence: Which sequence of the micro-batch a token belongs to, from 0.
    """
    low, high = 1 - settings.clip_low, 1 + settings.clip_high
    log_ratio = log_probs - old.detach()
    if settings.kind == "gspo":
        log_ratio = sequence_means(log_ratio, sequence)
    ratio = _exp(log_ratio)
    seen = ratio.detach()
    below, above = seen < low, seen > high
    if settings.kind == "reinforce":
        never = torch.zeros_like(below)
        return Terms(-advantages * ratio, seen, never, never)
    if settings.kind == "cispo":
        return Terms(-advantages * seen.clamp(low, high) * log_probs, seen, below, above)
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(low, high))
    if settings.dual_clip is not None:
        bounded = torch.minimum(loss, -advantages * settings.dual_clip)
        loss = torch.where(advantages < 0, bounded, loss)
    return Terms(loss, seen, below & (advantages < 0), above & (advantages > 0))


@torch.no_grad()
def truncated_importance(
    policy_old: Float[Tensor, " token"],
    rollout: Float[Tensor, " token"],
    sequence: Int[Tensor, " token"],
    *,
    cap: float,
    level: Literal["token", "sequence"],
) -> Float[Tensor, " token"]:
    """Returns ``min(exp(policy_old - rollout), cap)``, a factor of each token's loss without gradient.

    It makes up for an engine, or older weights, that sampled with other probabilities than the learner's
    (truncated importance sampling, Ionides 2008). 1 where both agree.

    Args:
        policy_old: Log-probabilities of the learner when the update began.
        rollout: Those with which the tokens were drawn.
        sequence: As in ``policy_terms``.
        cap: Largest factor, above 0; 2 per token is usual.
        level: "token" for each token's own ratio, "sequence" for their product over the sequence.
    """
    if not cap > 0:
        raise ValueError(f"cap must be > 0, got {cap}; 2 is usual.")
    log_ratio = policy_old - rollout
    if level == "sequence":
        log_ratio = sequence_sums(log_ratio, sequence)[sequence]
    return _exp(log_ratio).clamp(max=cap)


def unusual_clips(settings: PolicySettings) -> str | None:
    """Returns a sentence if the bounds are unusual for the kind of loss, None if they are not.

    Kinds need very different ones: GSPO's ratio is a mean over a whole response and hardly leaves 1 (3e-4 and
    4e-4 in its section 5.1), CISPO only caps a weight (high 4 to 5), PPO's usual range is 0.2 to 0.3.
    """
    low, high = settings.clip_low, settings.clip_high
    if settings.kind == "gspo" and max(low, high) > 0.01:
        return (
            f"gspo needs clip_low and clip_high near 3e-4 and 4e-4, got {low:g} and {high:g}: it never clips"
        )
    if settings.kind == "cispo" and high < 1:
        return f"cispo needs clip_high >= 1, usually 4 to 5, got {high:g}: it damps what it should keep"
    if settings.kind == "ppo" and not (0.1 <= low <= 0.4 and 0.1 <= high <= 0.4):
        return f"ppo needs clip_low and clip_high between 0.1 and 0.4, got {low:g} and {high:g}"
    return None


def _exp(log_ratio: Float[Tensor, " token"]) -> Float[Tensor, " token"]:
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
