"""Advantages: the reward of each response compared with its group. NumPy only, so a driver needs no torch.

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
    """Advantages of the responses of a step.

    Attributes:
        values: Advantage of each response; 0 throughout a group that is not usable.
        usable: Whether the rewards of a group differ. Other groups have no gradient and should add neither to
            the loss nor to its divisor (``sequence_weights``).
    """

    values: Float[np.ndarray, "group response"]
    usable: Bool[np.ndarray, " group"]


def advantages(
    rewards: Float[np.ndarray, "group response"], *, baseline: Baseline, scale: Scale, eps: float = 1e-6
) -> Advantages:
    """Compares every response with the others to the same prompt; no groups give no advantages.

    Args:
        rewards: Finite rewards of any range, a row per prompt; best in float64.
        baseline: What is subtracted: the mean reward of the group, or of its other responses. Differences
            from the second are unbiased, and n / (n - 1) times those from the first.
        scale: The divisor: the standard deviation of the group's rewards, that of the differences from
            the baseline over all usable groups, or 1. Deviations are unbiased (n - 1).

    Raises:
        ValueError: Groups of fewer than two responses, or rewards that are not finite.
    """
    groups, responses = rewards.shape
    if groups and responses < 2:
        raise ValueError(
            f"a response is compared with others to the same prompt, so a group needs at least 2, got "
            f"{responses}; sample more responses per prompt."
        )
    wrong = np.argwhere(~np.isfinite(rewards))
    if len(wrong):
        group, response = wrong[0]
        raise ValueError(
            f"reward of response {response} of group {group} is {rewards[group, response]}, one of "
            f"{len(wrong)} that are not finite; check the reward function."
        )
    usable = np.ptp(rewards, axis=1) > EQUAL
    others = rewards.shape[1] - 1
    differences = rewards - rewards.mean(axis=1, keepdims=True)
    if baseline == "leave_one_out":  # r - (sum - r) / (n - 1)
        differences = differences * (others + 1) / others
    divisor = 1.0
    if scale == "group":
        divisor = rewards.std(axis=1, ddof=1, keepdims=True) + eps
    elif scale == "batch" and usable.any():
        divisor = float(differences[usable].std(ddof=1)) + eps
    values = np.divide(differences, divisor, out=np.zeros_like(rewards), where=usable[:, None])
    return Advantages(values, usable)
