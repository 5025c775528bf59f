"""From rewards to what learners are given: advantages, weights of tokens, and each learner's share.

Pure. All of it is decided here over the whole step, so that neither the number of learners nor the order in
which responses came matters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.grpo.groups import Outline, Share
from pipelines.grpo.learn.algorithms import AlgorithmConfig
from samtok.rl.advantages import advantages
from samtok.rl.weights import sequence_weights


@dataclass(frozen=True)
class Update:
    """What a step learns: the shares per optimizer step and learner, none if nothing can be learnt."""

    advantages: np.ndarray  # of every response of every group, those that are left out included
    used: np.ndarray  # whether each response counts
    parts: list[list[list[Share]]]


def plan_update(
    outlines: Sequence[Outline],
    refs: Sequence[Any],
    rewards: np.ndarray,
    config: AlgorithmConfig,
    *,
    learners: int,
    max_tokens: int,
    most_groups: int | None = None,
) -> Update:
    """Plans the optimizer steps of one step of the run.

    Args:
        rewards: Total of every response, group by group.
        max_tokens: Longest response, for the constant mean.
        most_groups: With dynamic sampling, groups that count; further ones are left out.
    """
    algorithm = config.resolved
    found = advantages(rewards, baseline=algorithm.baseline, scale=algorithm.scale)
    chosen = found.usable if config.mask_zero_variance else np.ones(len(outlines), bool)
    if most_groups is not None:
        chosen = chosen & (np.cumsum(chosen) <= most_groups)
    complete = np.array([one.complete for one in outlines], bool)
    used = chosen[:, None] & (complete if config.mask_cut else np.ones_like(complete))
    numbers = [n for n in range(len(outlines)) if used[n].any()]
    parts: list[list[list[Share]]] = []
    for first in range(min(config.inner_steps, len(numbers))):
        own = numbers[first :: config.inner_steps]
        weights = sequence_weights(
            [outlines[n].lengths for n in own],
            [used[n].tolist() for n in own],
            mean=algorithm.mean,
            max_tokens=max_tokens,
        )
        shares = [
            _share(refs[n], used[n], found.values[n], weight) for n, weight in zip(own, weights, strict=True)
        ]
        parts.append(_spread(shares, [outlines[n].cost for n in own], learners))
    return Update(found.values, used, parts)


def _share(ref: Any, used: np.ndarray, values: np.ndarray, weights: Sequence[float]) -> Share:
    responses = tuple(int(i) for i in np.flatnonzero(used))
    return Share(
        group=ref,
        responses=responses,
        advantages=tuple(float(values[i]) for i in responses),
        weights=tuple(float(weights[i]) for i in responses),
    )


def _spread(shares: Sequence[Share], costs: Sequence[int], learners: int) -> list[list[Share]]:
    """Gives each learner about as many tokens, the largest shares first; none is left without a share."""
    spread: list[list[Share]] = [[] for _ in range(learners)]
    loads = [0] * learners
    for n in sorted(range(len(shares)), key=lambda n: (-costs[n], n)):
        least = min(range(learners), key=lambda at: (loads[at], at))
        spread[least].append(shares[n])
        loads[least] += costs[n]
    idle = Share(shares[0].group, shares[0].responses[:1], advantages=(0.0,), weights=(0.0,))
    return [own or [idle] for own in spread]
