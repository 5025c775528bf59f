"""How much better than its group a reply is. NumPy only, so that a driver needs no torch.

=========  ==============  ======  ==============================================
algorithm  baseline        scale   source
=========  ==============  ======  ==============================================
GRPO       group           group   arXiv 2402.03300, section 4.1.2
Dr. GRPO   group           none    arXiv 2503.20783, section 3.2
RLOO       leave_one_out   none    arXiv 2402.14740
ScaleRL    group           batch   arXiv 2510.13786
=========  ==============  ======  ==============================================
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

Baseline = Literal["group", "leave_one_out"]
Scale = Literal["group", "batch", "none"]

EQUAL = 1e-9
"""Rewards of a group that differ by no more than this are the same; above the rounding of sums in float64."""


class Advantages(NamedTuple):
    """What the replies of a step are worth.

    Attributes:
        values: Advantage of each reply; 0 throughout a group that is not usable.
        usable: Whether the rewards of a group differ. Other groups teach nothing and should neither add to
            the loss nor to what it is divided by (``sequence_weights``).
    """

    values: Float[np.ndarray, "group reply"]
    usable: Bool[np.ndarray, " group"]


def advantages(
    rewards: Float[np.ndarray, "group reply"], *, baseline: Baseline, scale: Scale, eps: float = 1e-6
) -> Advantages:
    """Compares every reply with the others to the same prompt; no groups give no advantages.

    Args:
        rewards: Finite rewards of any range, a row per prompt; best in float64.
        baseline: What is subtracted: the mean of the group, or of its other replies. The second is unbiased
            and n / (n - 1) times the first.
        scale: What is divided by: the standard deviation of the group's rewards, that of the differences from
            the baseline over all usable groups, or 1. Deviations are unbiased (n - 1).
        eps: Added to the deviation.

    Raises:
        ValueError: Groups of fewer than two replies, or rewards that are no numbers.
    """
    _check(rewards)
    usable = np.ptp(rewards, axis=1) > EQUAL
    others = rewards.shape[1] - 1
    differences = rewards - rewards.mean(axis=1, keepdims=True)
    if baseline == "leave_one_out":  # r - (sum - r) / (n - 1)
        differences = differences * (others + 1) / others
    divisor = _divisor(rewards, differences, usable, scale, eps)
    values = np.divide(differences, divisor, out=np.zeros_like(rewards), where=usable[:, None])
    return Advantages(values, usable)


def _divisor(
    rewards: Float[np.ndarray, "group reply"],
    differences: Float[np.ndarray, "group reply"],
    usable: Bool[np.ndarray, " group"],
    scale: Scale,
    eps: float,
) -> Float[np.ndarray, "group 1"] | float:
    if scale == "group":
        return rewards.std(axis=1, ddof=1, keepdims=True) + eps
    if scale == "batch" and usable.any():
        return float(differences[usable].std(ddof=1)) + eps
    return 1.0


def _check(rewards: Float[np.ndarray, "group reply"]) -> None:
    groups, replies = rewards.shape
    if groups and replies < 2:
        raise ValueError(
            f"a reply is compared with others to the same prompt, so a group needs at least 2, got "
            f"{replies}; sample more replies per prompt."
        )
    wrong = np.argwhere(~np.isfinite(rewards))
    if len(wrong):
        group, reply = wrong[0]
        raise ValueError(
            f"reward of reply {reply} of group {group} is {rewards[group, reply]}, one of {len(wrong)} that "
            "are no finite numbers; look at the reward function."
        )
