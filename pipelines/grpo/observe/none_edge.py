"""Whether saying "No target." pays more than masks do, as the model answers before it has learnt. Pure.

Of all prompts a share p has no target. There "No target." earns 1 (Eq. 5), and nothing where there is one.
The model's own responses earn q on average to prompts without a target and r to prompts with one. So

    always saying "No target."   p
    answering as it does         p q + (1 - p) r
    gain of saying nothing       p (1 - q) - (1 - p) r

A policy that answers a share of all prompts by "No target.", whatever the image shows, and the rest as
before, earns that share of the gain besides. While the gain is above 0, saying nothing more often is uphill
from the very start and asks for no look at the image, so learning finds it before it finds better masks.
The gain is 0 where r = (1 - q) p / (1 - p). For a model that never says "No target." this is the edge
p / (1 - p), which no reward reaches if more than half of the prompts have no target. One that tells the two
kinds of prompts apart (q near 1) has little to gain and much to lose, and may well learn from such prompts; p
alone says too little.

Where a reward has further components, saying nothing earns what such responses have earned among those
sampled: s0 without a target and s1 with one, in the place of 1 and 0:

    gain = p (s0 - q) - (1 - p) (r - s1)

This is of rewards; advantages that are divided by their group's deviation weigh groups otherwise. And it is
of the start; what comes later is watched by the alarm ``collapse``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.grpo.groups import Outline
from pipelines.grpo.reward.components import Scored

_SURE = 2.0
"""Standard errors by which a gain must be above 0."""
_FEWER = 0.9
"""Share of the largest share without a target that pays, which is advised."""


@dataclass(frozen=True, kw_only=True)
class NoneEdge:
    """What was measured; letters as above."""

    prompts: int  # that were sampled
    share: float  # p, in (0, 1)
    targets: float  # r
    none: float  # q
    silent_targets: float  # s1
    silent_none: float  # s0
    error: float  # standard error of the gain, over prompts

    @property
    def edge(self) -> float:
        """p / (1 - p)."""
        return self.share / (1 - self.share)

    @property
    def silence(self) -> float:
        """What always saying "No target." earns."""
        return self.share * self.silent_none + (1 - self.share) * self.silent_targets

    @property
    def answers(self) -> float:
        """What the sampled responses earn, with both kinds of prompts in their share."""
        return self.share * self.none + (1 - self.share) * self.targets

    @property
    def gain(self) -> float:
        """What always saying "No target." earns beyond that."""
        return self.silence - self.answers

    @property
    def pays(self) -> bool:
        """Whether saying nothing pays, by more than chance, or masks earn nothing at all."""
        return self.gain > _SURE * self.error or self.targets <= self.silent_targets

    @property
    def most(self) -> float:
        """The share of prompts without a target at which the gain is 0; 0 if masks earn nothing."""
        masks = max(self.targets - self.silent_targets, 0.0)
        missed = max(self.silent_none - self.none, 0.0)
        return masks / (masks + missed) if masks else 0.0

    def __str__(self) -> str:
        """The numbers as a sentence."""
        return (
            f"{self.share:.0%} of the prompts have no target (p/(1-p) is {self.edge:.2f}); before learning, "
            f"responses to {self.prompts} prompts earn {self.targets:.3f} where there are targets and "
            f"{self.none:.3f} where there are none, {self.answers:.3f} together. Always saying "
            f'"No target." would earn {self.silence:.3f}, {self.gain:+.3f} (standard error {self.error:.3f}).'
        )

    @property
    def remedy(self) -> str:
        """What to do where it pays, with flags."""
        share = math.floor(100 * _FEWER * self.most) / 100
        if not share:
            return (
                "Masks earn next to nothing yet: fine-tune longer before (jobs/train_mllm.py), or ask for "
                "targets alone (--prompts.none-share 0)."
            )
        return (
            f"Masks pay as long as at most {self.most:.0%} have no target: --prompts.none-share {share:g} "
            "leaves the others out. Or fine-tune longer before (jobs/train_mllm.py)."
        )


def none_edge(
    outlines: Sequence[Outline],
    scored: Sequence[Sequence[Scored]],
    *,
    share: float | None = None,
    silence: float = 1.0,
) -> NoneEdge | None:
    """Measures the first groups of a run; None with fewer than two prompts of a kind, which say nothing.

    Args:
        share: Of prompts without a target among all of the run; by default that of these groups.
        silence: What "No target." earns where it is right, if no response has said it there.
    """
    wanted = np.array([one.targets > 0 for one in outlines], bool)
    share = float((~wanted).mean()) if share is None and len(wanted) else share
    if share is None or not 0 < share < 1 or min(wanted.sum(), (~wanted).sum()) < 2:
        return None
    totals = np.array([[one.total for one in group] for group in scored])
    silent = np.array([[one.components["says_none"] > 0 for one in group] for group in scored])
    targets, none = totals[wanted].mean(axis=1), totals[~wanted].mean(axis=1)
    ends = (
        _mean(totals[wanted][silent[wanted]], 0.0),
        _mean(totals[~wanted][silent[~wanted]], silence),
    )
    errors = share * _error(none, ends), (1 - share) * _error(targets, ends)
    return NoneEdge(
        prompts=len(wanted),
        share=share,
        targets=float(targets.mean()),
        none=float(none.mean()),
        silent_targets=ends[0],
        silent_none=ends[1],
        error=math.hypot(*errors),
    )


def _error(values: np.ndarray, ends: tuple[float, float]) -> float:
    """Returns the standard error of a mean. Its deviation is that with two prompts besides, the worst and the
    best answered, so that a few prompts that happen to be alike are not taken for certain."""
    return float(np.append(values, ends).std(ddof=1)) / math.sqrt(len(values))


def _mean(values: np.ndarray, otherwise: float) -> float:
    return float(values.mean()) if len(values) else otherwise
