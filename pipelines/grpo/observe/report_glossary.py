"""What every number of a GRPO run is, in one sentence each."""

STEP = {
    "reward": "Mean reward of a reply: the weighted sum of its components.",
    "reward_std": "Standard deviation of the rewards of one prompt's replies, mean over prompts.",
    "reward_targets": "Mean reward over prompts whose truth has masks.",
    "reward_none": 'Mean reward over prompts whose truth is "No target.".',
    "said_none": "Share of replies without any mask, to prompts that have targets.",
    "zero_std": "Share of prompts whose replies all have the same reward, so nothing is learnt from them.",
    "malformed": "Share of replies with a piece of a mask word that is no whole one.",
    "duplicates": "Share of replies that say a mask word more than once.",
    "num_pred": "Mean number of mask words in a reply.",
    "tokens": "Mean length of a reply in tokens.",
    "cut": "Share of replies that the limit of tokens ended.",
    "entropy": "Mean entropy of the next token under the learner, in nats.",
    "kl": "Mean estimate of the divergence from the reference model per token, in nats.",
    "kl_reward": "Mean divergence from the reference model per reply that was taken off its reward, in nats.",
    "clip_low": "Share of tokens whose probability fell below the lower clip, so they pull no further.",
    "clip_high": "Share of tokens whose probability rose above the upper clip, so they pull no further.",
    "mismatch": "Mean |log p| between rollout and learner per token, before the update.",
    "mismatch_max": "Largest |log p| between rollout and learner of a token.",
    "off_policy": "Mean |log p| between rollout and learner where older weights sampled, so no defect.",
    "off_policy_max": "Largest |log p| of a token where older weights sampled.",
    "staleness": "Mean number of updates between the weights that sampled and those that learn.",
    "staleness_max": "Largest number of updates between the weights that sampled and those that learn.",
    "prompts": "Prompts that were asked for the step, also those that nothing was learnt from.",
    "learnt": "Share of replies that were learnt from.",
    "learnt_tokens": "Tokens that were learnt from.",
    "loss": "Loss of the update; its gradient matters, its value says little.",
    "gradient_norm": "Norm of the gradient before clipping.",
    "lr": "Learning rate.",
    "skipped": "Whether the update was left out for a loss or gradient that is no number.",
    "s_rollout": "Seconds in which replies were sampled.",
    "s_reward": "Seconds in which rewards were computed.",
    "s_learn": "Seconds of log-probabilities, losses, gradients and the update.",
    "s_sync": "Seconds in which new weights went to the rollout.",
    "s_step": "Seconds of the whole step.",
    "samples_per_s": "Replies per second of a whole step.",
}
"""Of a step."""

LOOK = {
    "reward_sampled": "Mean reward of replies sampled at temperature 1, to held-out prompts.",
    "targets_sampled": "The same over prompts that have targets.",
    "reward_greedy": "Mean reward of the most probable replies.",
    "targets_greedy": "The same over prompts that have targets.",
    "giou": 'Mean IoU of the most probable reply\'s masks per prompt, with 1 for a right "No target.".',
    "ciou": "Intersection over union of all pixels of all prompts.",
    "n_acc": 'Share of prompts without a target that are answered by "No target.".',
    "t_acc": "Share of prompts with targets that are answered by some mask.",
    "t_acc_sampled": 'The same for sampled replies; it falls first when a policy drifts to "No target.".',
    "exact_targets": "Share of prompts with targets whose words are all right.",
    "exact_single": "The same over prompts with one target.",
    "single_sampled": "The same for sampled replies.",
    "prompts": "Prompts of the look.",
    "none_share": 'Share of prompts without a target: the reward and gIoU of always saying "No target.".',
}
"""Of a look at held-out prompts."""


def meaning(name: str) -> str:
    """Returns the sentence about a metric of a step; ``-`` if it is not one of ours."""
    component = name.removeprefix("reward/")
    if component != name:
        return f"Mean of the reward's component {component}, before its weight."
    return STEP.get(name, "-")
