"""The curves of a GRPO run: steps, held-out looks, and where the time goes."""

from collections.abc import Collection, Sequence

import numpy as np

from pipelines.reports.training_parts import Row, column, names_of, skipped_steps
from samtok.plots.curves import Curve, CurvePanel, Events, curves_plot
from samtok.plots.rl import parts_plot

_PARTS = {"s_rollout": "rollout", "s_reward": "reward", "s_learn": "learning", "s_sync": "weight sync"}


def pictures_of(
    history: Sequence[Row], looks: Sequence[Row], *, best: int | None = None, weighted: Collection[str] = ()
) -> dict[str, bytes]:
    """Returns ``curves.png``, ``looks.png`` and ``times.png``, each if there is something to show.

    Args:
        history: Metrics, one row per step.
        looks: Held-out looks.
        best: Step with the best one.
        weighted: Components of the reward that have a weight, which are drawn; by default all of them.
    """
    pictures = {}
    if history:
        events = Events(skipped=skipped_steps(history))
        pictures["curves.png"] = curves_plot(step_panels(history, weighted), events, title="Steps")
        pictures["times.png"] = _times(history)
    if looks:
        title = "Held-out prompts"
        pictures["looks.png"] = curves_plot(_look_panels(looks), Events(best=best), title=title)
    return pictures


def step_panels(history: Sequence[Row], weighted: Collection[str]) -> list[CurvePanel]:
    """Returns the panels of ``curves.png``, in reading order; see ``pictures_of``."""
    steps = column(history, "step")
    components = names_of(history, "reward/")
    if weighted:
        components = [name for name in components if name.removeprefix("reward/") in weighted]

    def curves(*names: str) -> list[Curve]:
        return [
            Curve(name.removeprefix("reward/").replace("_", " "), steps, column(history, name), noisy=True)
            for name in names
        ]

    return [
        CurvePanel("reward and its components", curves("reward", *components)),
        CurvePanel("by truth", curves("reward_targets", "reward_none", "said_none")),
        CurvePanel("spread of rewards in a group", curves("reward_std", "zero_std")),
        CurvePanel("entropy of a token, nats", curves("entropy")),
        CurvePanel("divergence from the reference, nats", curves("kl")),
        CurvePanel("length of a reply, tokens", curves("tokens")),
        CurvePanel("mask words of a reply", curves("num_pred")),
        CurvePanel("share of replies", curves("cut", "malformed", "duplicates")),
        CurvePanel("share of clipped tokens", curves("clip_low", "clip_high")),
        CurvePanel("mean |log p| between rollout and learner", curves("mismatch", "off_policy"), log=True),
        CurvePanel("updates between rollout and learning", curves("staleness")),
        CurvePanel("gradient norm before clipping", curves("gradient_norm"), log=True),
        CurvePanel("loss", curves("loss")),
        CurvePanel("learning rate", curves("lr")),
    ]


def _look_panels(looks: Sequence[Row]) -> list[CurvePanel]:
    steps, nothing = column(looks, "step"), column(looks, "none_share")

    def curve(name: str, label: str) -> Curve:
        return Curve(label, steps, column(looks, name))

    def always(values: np.ndarray) -> Curve:
        return Curve('always "No target."', steps, values)

    return [
        CurvePanel(
            "reward",
            [curve("reward_sampled", "sampled"), curve("reward_greedy", "greedy"), always(nothing)],
        ),
        CurvePanel(
            "reward on targets",
            [curve("targets_sampled", "sampled"), curve("targets_greedy", "greedy"), always(0 * nothing)],
        ),
        CurvePanel("IoU, greedy", [curve("giou", "gIoU"), curve("ciou", "cIoU"), always(nothing)]),
        CurvePanel(
            "whether there is a target",
            [curve("n_acc", "N-acc"), curve("t_acc", "T-acc"), curve("t_acc_sampled", "T-acc, sampled")],
        ),
        CurvePanel(
            "exact words on targets",
            [curve("exact_targets", "all"), curve("exact_single", "one target")],
        ),
    ]


def _times(history: Sequence[Row]) -> bytes:
    steps = column(history, "step")
    parts = {label: np.nan_to_num(column(history, name)) for name, label in _PARTS.items()}
    whole = np.nan_to_num(column(history, "s_step"))
    parts["other"] = np.maximum(whole - np.sum(list(parts.values()), axis=0), 0.0)  # 0 where parts overlap
    return parts_plot(steps, parts, title="Where the time of a step goes", y_label="seconds")
