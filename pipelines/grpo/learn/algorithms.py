"""The algorithms that ``--algorithm.name`` knows, as the choices they are made of. Loads no torch.

They differ in five places only: what is subtracted from a reward, what it is divided by, what limits the
step, how tokens are averaged, and whether prompts that teach nothing are replaced.
"""

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

from annotated_types import Gt

from pipelines.config import AtLeast1, NotNegative, Positive, config
from samtok.errors import ConfigError

Name = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo"]
Limit = Literal["ppo", "gspo", "cispo", "reinforce"]
Mean = Literal["token", "prompt", "sequence", "constant"]
Scale = Literal["group", "batch", "none"]
Baseline = Literal["group", "leave_one_out"]


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """All choices made; by default GRPO (arXiv 2402.03300), with the token mean of all later trainers."""

    limit: Limit = "ppo"
    clip_low: float = 0.2
    clip_high: float = 0.2
    baseline: Baseline = "group"
    scale: Scale = "group"
    mean: Mean = "token"
    dynamic_sampling: bool = False


ALGORITHMS: dict[Name, Algorithm] = {
    "grpo": Algorithm(),
    # arXiv 2503.20783: no division by the deviation, and by a constant instead of lengths.
    "dr_grpo": Algorithm(scale="none", mean="constant"),
    # arXiv 2503.14476: a higher upper limit, token mean, prompts that teach nothing are replaced.
    "dapo": Algorithm(clip_high=0.28, dynamic_sampling=True),
    # arXiv 2507.18071: one ratio per response, with limits of another size.
    "gspo": Algorithm(limit="gspo", clip_low=3e-4, clip_high=4e-4, mean="sequence"),
    # arXiv 2506.13585: the weight is limited, never the gradient.
    "cispo": Algorithm(limit="cispo", clip_low=1.0, clip_high=4.0),
    # arXiv 2402.14740: every response against the mean of the others.
    "rloo": Algorithm(limit="reinforce", baseline="leave_one_out", scale="none", mean="constant"),
}


@config
class KlConfig:
    """Distance to the model that the run started from, which keeps the policy near it."""

    weight: NotNegative = 0.0
    """Weight of the distance; 0 loads no reference model."""
    kind: Literal["k1", "k2", "k3", "k3_straight"] = "k3"
    """Estimator per token: k1 log-ratio, k2 half its square, k3 as in GRPO; k3_straight has the value of k3
    and the gradient of k2, which is the right one."""
    place: Literal["loss", "reward"] = "loss"
    """Added to the loss, or subtracted from the reward before advantages are taken."""

    def check(self) -> None:
        """An estimator for the loss has no place in the reward."""
        if self.place == "reward" and self.kind == "k3_straight":
            raise ConfigError("--.kind k3_straight is for the loss; in the reward take k1, k2 or k3.")


@config
class AlgorithmConfig:
    """How rewards become steps. Unset fields are those of the named algorithm."""

    name: Name = "grpo"
    """grpo, dr_grpo, dapo, gspo, cispo or rloo."""
    limit: Limit | None = None
    """What keeps a step small: the clipped ratio of tokens (ppo) or of responses (gspo), a clipped weight
    (cispo), or nothing (reinforce)."""
    clip_low: NotNegative | None = None
    """How far the ratio may fall below 1."""
    clip_high: NotNegative | None = None
    """How far the ratio may rise above 1."""
    dual_clip: Annotated[float, Gt(1)] | None = None
    """Largest ratio that counts for responses worse than the mean (arXiv 1912.09729); above 1."""
    baseline: Baseline | None = None
    """Subtracted from a reward: the mean of its group, or of the others in it."""
    scale: Scale | None = None
    """What the difference is divided by: the deviation within the group, of the batch, or nothing."""
    mean: Mean | None = None
    """How tokens are averaged: all alike; within prompts; within responses; or over a constant, the limit of
    tokens."""
    dynamic_sampling: bool | None = None
    """Ask further prompts in place of those whose responses all got the same reward."""
    max_tries: AtLeast1 = 4
    """dynamic_sampling: most prompts asked per step, as a multiple of prompts_per_step."""
    mask_zero_variance: bool = True
    """Leave groups of equal rewards out of the loss and of what it is divided by."""
    mask_cut: bool = False
    """Leave responses that were cut at the limit of tokens out of the loss."""
    kl: KlConfig = KlConfig()
    """Distance to the start."""
    importance_cap: Positive | None = None
    """Weight tokens by p_learner / p_rollout up to this, against the mismatch of the two engines and old
    responses (truncated importance sampling); unset leaves it out. Needed with --rollout.max-staleness."""
    importance_level: Literal["token", "sequence"] = "token"
    """Ratio of each token, or of the whole response."""
    inner_steps: AtLeast1 = 1
    """Optimizer steps per batch of responses, each on a part of the prompts."""

    def check(self) -> None:
        """Dynamic sampling replaces what would be kept otherwise."""
        if self.resolved.dynamic_sampling and not self.mask_zero_variance:
            raise ConfigError(
                "dynamic sampling asks further prompts in place of those that teach nothing, and "
                "--.no-mask-zero-variance keeps those; leave it out, or set --.dynamic-sampling False."
            )

    @property
    def resolved(self) -> Algorithm:
        """The named algorithm with the fields that are set here."""
        base = ALGORITHMS[self.name]
        given: Any = {f.name: value for f in fields(base) if (value := getattr(self, f.name)) is not None}
        return replace(base, **given)
