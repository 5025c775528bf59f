"""The numbers of a step and of a validation, out of what came back from samplers, rewards and learners."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.grpo.groups import Outline
from pipelines.grpo.reward.components import Scored
from pipelines.grpo.reward.scoring import ValidationRow
from samtok.metrics import referring
from samtok.metrics.referring import Samples

Rows = Sequence[Sequence[Scored]]


def step_measures(outlines: Sequence[Outline], scored: Rows, *, version: int) -> dict[str, float | None]:
    """Returns what is known of a step before anything is learnt.

    Args:
        outlines: Of all groups that were sampled for the step, also those that are not learnt from.
        version: Of the learner's weights, for the staleness.
    """
    totals = np.array([[response.total for response in group] for group in scored])
    wanted = np.array([one.targets > 0 for one in outlines])
    differ = np.ptp(totals, axis=1) >= 1e-9
    responses = [response for group in scored for response in group]
    lengths = [length for one in outlines for length in one.lengths]
    complete = [done for one in outlines for done in one.complete]
    names = list(responses[0].components)
    return {
        "reward": float(totals.mean()),
        "reward_std": float(totals.std(axis=1, ddof=1).mean()),
        **{f"reward/{name}": _mean([response.components[name] for response in responses]) for name in names},
        "reward_targets": _mean(totals[wanted]),
        "reward_none": _mean(totals[~wanted]),
        "said_none": _mean(_component(scored, "says_none")[wanted]),
        "zero_std": _mean(~differ),
        "signal_targets": _mean(differ[wanted]),
        "signal_none": _mean(differ[~wanted]),
        "malformed": _mean(_component(scored, "num_malformed") > 0),
        "duplicates": _mean(_component(scored, "num_duplicates") > 0),
        "num_pred": _mean(_component(scored, "num_words")),
        "tokens": _mean(lengths),
        "cut": _mean(np.logical_not(complete)),
        "staleness": _mean([version - one.version for one in outlines]),
        "staleness_max": max(version - one.version for one in outlines),
        "prompts": len(outlines),
        "none_share": _mean(~wanted),
    }


def validation_measures(rows: Sequence[ValidationRow]) -> dict[str, float | None]:
    """Returns the numbers of a validation on held-out prompts.

    ``none_share`` is what always saying "No target." would score; gIoU and N-acc alone can rise towards it
    while masks get lost, so what counts is how targets are answered.
    """
    wanted = np.array([row.targets > 0 for row in rows], bool)
    single = np.array([row.targets == 1 for row in rows], bool)
    greedy = np.array([row.greedy.total for row in rows])
    exact = np.array([row.greedy.components["mask"] >= 1 for row in rows])
    masks = referring.gres(_samples(rows))
    found: dict[str, float | None] = {
        "reward_greedy": _mean(greedy),
        "targets_greedy": _mean(greedy[wanted]),
        **{name: masks[name] for name in ("giou", "ciou", "n_acc", "t_acc")},
        "exact_targets": _mean(exact[wanted]),
        "exact_single": _mean(exact[single]),
        "none_share": _mean(~wanted),
        "prompts": len(rows),
    }
    if rows and rows[0].samples:
        sampled = np.array([np.mean([one.total for one in row.samples]) for row in rows])
        named = np.array([np.mean([one.components["num_words"] > 0 for one in row.samples]) for row in rows])
        exactly = np.array([np.mean([one.components["mask"] >= 1 for one in row.samples]) for row in rows])
        found |= {
            "reward_sampled": _mean(sampled),
            "targets_sampled": _mean(sampled[wanted]),
            "single_sampled": _mean(exactly[single]),
            "t_acc_sampled": _mean(named[wanted]),
        }
    return found


def _samples(rows: Sequence[ValidationRow]) -> Samples:
    boxes = np.zeros((len(rows), 4), np.int64)
    return Samples(
        intersection_px=np.array([row.intersection_px for row in rows], np.int64),
        predicted_px=np.array([row.predicted_px for row in rows], np.int64),
        target_px=np.array([row.target_px for row in rows], np.int64),
        predicted_box=boxes,
        target_box=boxes,
        skipped=np.zeros(len(rows), bool),
        keys=tuple(map(str, range(len(rows)))),
    )


def _component(scored: Rows, name: str) -> np.ndarray:
    return np.array([[response.components[name] for response in group] for group in scored])


def _mean(values: Any) -> float | None:
    array = np.asarray(values, np.float64)
    return float(array.mean()) if array.size else None
