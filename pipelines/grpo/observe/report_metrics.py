"""The metrics of a GRPO run: what each is in one sentence, and the curves of steps and validations."""

from collections.abc import Collection, Sequence

import numpy as np

from pipelines.reports.training import Row, column, names_of, skipped_steps
from samtok.plots.curves import Curve, CurvePanel, Events, curves_plot
from samtok.plots.rl import parts_plot

STEP = {
    "reward": "Mean reward of a response: the weighted sum of its components.",
    "reward_std": "Standard deviation of the rewards of one prompt's responses, mean over prompts.",
    "reward_targets": "Mean reward over prompts whose truth has masks.",
    "reward_none": 'Mean reward over prompts whose truth is "No target.".',
    "said_none": "Share of responses without any mask, to prompts that have targets.",
    "zero_std": "Share of prompts whose responses all have the same reward, so nothing is learnt from them.",
    "signal_targets": "Share of prompts with targets whose responses differ in their reward.",
    "signal_none": 'Share of prompts whose truth is "No target." whose responses differ in their reward.',
    "malformed": "Share of responses with an incomplete mask word.",
    "duplicates": "Share of responses with a mask word more than once.",
    "num_pred": "Mean number of mask words in a response.",
    "tokens": "Mean length of a response in tokens.",
    "cut": "Share of responses that the limit of tokens ended.",
    "entropy": "Mean entropy of the next token under the learner, in nats.",
    "kl": "Mean estimate of the divergence from the reference model per token, in nats.",
    "kl_reward": "Mean divergence from the reference model that was taken off a response's reward, in nats.",
    "clip_low": "Share of tokens whose probability fell below the lower clip, so they pull no further.",
    "clip_high": "Share of tokens whose probability rose above the upper clip, so they pull no further.",
    "mismatch": "Mean |log p| between rollout and learner per token, before the update.",
    "mismatch_max": "Largest |log p| between rollout and learner of a token.",
    "off_policy": "Mean |log p| between rollout and learner where older weights sampled, so no defect.",
    "off_policy_max": "Largest |log p| of a token where older weights sampled.",
    "staleness": "Mean number of updates between the weights that sampled and those that learn.",
    "staleness_max": "Largest number of updates between the weights that sampled and those that learn.",
    "prompts": "Prompts sampled for the step, those without a gradient included.",
    "none_share": 'Share of these prompts whose truth is "No target.".',
    "learnt": "Share of responses that were learnt from.",
    "learnt_tokens": "Tokens that were learnt from.",
    "loss": "Loss of the update; its gradient matters, its value does not.",
    "gradient_norm": "Norm of the gradient before clipping.",
    "lr": "Learning rate.",
    "skipped": "Whether (1 or 0) the update was left out for a loss or gradient that is not finite.",
    "s_rollout": "Seconds in which responses were sampled.",
    "s_reward": "Seconds in which rewards were computed.",
    "s_learn": "Seconds of log-probabilities, losses, gradients and the update.",
    "s_sync": "Seconds in which new weights went to the rollout.",
    "s_step": "Seconds of the whole step.",
    "samples_per_s": "Responses per second of a whole step.",
}
"""Of a step."""

VALIDATION = {
    "reward_sampled": "Mean reward of responses sampled at temperature 1, to held-out prompts.",
    "targets_sampled": "The same over prompts that have targets.",
    "reward_greedy": "Mean reward of the most probable responses.",
    "targets_greedy": "The same over prompts that have targets.",
    "giou": 'Mean IoU of the most probable response\'s masks per prompt, with 1 for a right "No target.".',
    "ciou": "Intersection over union of all pixels of all prompts.",
    "n_acc": 'Share of prompts without a target that are answered by "No target.".',
    "t_acc": "Share of prompts with targets that are answered by some mask.",
    "t_acc_sampled": 'The same for sampled responses; it falls first when a policy drifts to "No target.".',
    "exact_targets": "Share of prompts with targets whose words are all right.",
    "exact_single": "The same over prompts with one target.",
    "single_sampled": "The same for sampled responses.",
    "prompts": "Held-out prompts.",
    "none_share": 'Share of prompts without a target: the reward and gIoU of answering "No target." always.',
}
"""Of a validation on held-out prompts."""

_PARTS = {"s_rollout": "rollout", "s_reward": "reward", "s_learn": "learning", "s_sync": "weight sync"}


def meaning(name: str) -> str:
    """Returns the sentence about a metric of a step; ``-`` if it is not one of ours."""
    component = name.removeprefix("reward/")
    if component != name:
        return f"Mean of the reward's component {component}, before its weight."
    return STEP.get(name, "-")


def pictures_of(
    history: Sequence[Row],
    validations: Sequence[Row],
    *,
    best: int | None = None,
    weighted: Collection[str] = (),
) -> dict[str, bytes]:
    """Returns ``curves.png``, ``validation.png`` and ``times.png``, each if there is something to show.

    Of the reward's components those with a weight are drawn; by default all of them.
    """
    pictures = {}
    if history:
        events = Events(skipped=skipped_steps(history))
        pictures["curves.png"] = curves_plot(step_panels(history, weighted), events, title="Steps")
        parts = {label: np.nan_to_num(column(history, name)) for name, label in _PARTS.items()}
        whole, known = np.nan_to_num(column(history, "s_step")), np.sum(list(parts.values()), axis=0)
        parts["other"] = np.maximum(whole - known, 0.0)  # 0 where parts overlap
        pictures["times.png"] = parts_plot(
            column(history, "step"), parts, title="Where the time of a step goes", y_label="seconds"
        )
    if validations:
        title = "Held-out prompts"
        pictures["validation.png"] = curves_plot(
            _validation_panels(validations), Events(best=best), title=title
        )
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
        CurvePanel(
            "reward by truth; answers without masks", curves("reward_targets", "reward_none", "said_none")
        ),
        CurvePanel("spread of rewards in a group", curves("reward_std", "zero_std")),
        CurvePanel("share of groups that differ", curves("signal_targets", "signal_none")),
        CurvePanel("entropy of a token, nats", curves("entropy")),
        CurvePanel("divergence from the reference, nats", curves("kl")),
        CurvePanel("length of a response, tokens", curves("tokens")),
        CurvePanel("mask words of a response", curves("num_pred")),
        CurvePanel("share of responses", curves("cut", "malformed", "duplicates")),
        CurvePanel("share of clipped tokens", curves("clip_low", "clip_high")),
        CurvePanel("log-prob gap to the rollout, nats", curves("mismatch", "off_policy"), log=True),
        CurvePanel("updates between rollout and learning", curves("staleness")),
        CurvePanel("gradient norm before clipping", curves("gradient_norm"), log=True),
        CurvePanel("loss", curves("loss")),
        CurvePanel("learning rate", curves("lr")),
    ]


def _validation_panels(rows: Sequence[Row]) -> list[CurvePanel]:
    steps, nothing = column(rows, "step"), column(rows, "none_share")

    def curve(name: str, label: str) -> Curve:
        return Curve(label, steps, column(rows, name))

    def always(values: np.ndarray) -> Curve:
        return Curve('always "No target."', steps, values)

    return [
        CurvePanel(
            "reward", [curve("reward_sampled", "sampled"), curve("reward_greedy", "greedy"), always(nothing)]
        ),
        CurvePanel(
            "reward on targets",
            [curve("targets_sampled", "sampled"), curve("targets_greedy", "greedy"), always(0 * nothing)],
        ),
        CurvePanel("IoU, greedy", [curve("giou", "gIoU"), curve("ciou", "cIoU"), always(nothing)]),
        CurvePanel(
            "accuracy: is there a target?",
            [curve("n_acc", "N-acc"), curve("t_acc", "T-acc"), curve("t_acc_sampled", "T-acc, sampled")],
        ),
        CurvePanel(
            "exact words on targets", [curve("exact_targets", "all"), curve("exact_single", "one target")]
        ),
    ]
