"""When the watch of a run raises an alarm: ``pipelines.grpo.observe.alarms``."""

from dataclasses import dataclass

from pipelines.cli import FORBID_UNKNOWN
from pipelines.training.config import check_at_least, check_share
from samtok.errors import ConfigError

ALARMS = (
    "collapse",
    "no_signal",
    "entropy_low",
    "entropy_high",
    "cut",
    "length",
    "mismatch",
    "mismatch_stop",
    "skipped",
)
"""Names of all alarms, for ``stop_on``."""


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """When to raise an alarm, and which alarms end the run."""

    __pydantic_config__ = FORBID_UNKNOWN

    first: int = 5
    """Steps at the start whose mean is what later ones are compared with; of looks, only the first one is."""
    window: int = 5
    """Steps whose mean is judged, so that one odd batch raises no alarm."""
    quiet: int = 20
    """Steps in which an alarm is not repeated."""
    said_none: float = 0.9
    """Share of replies without a mask, to prompts that have targets, above which the policy has collapsed."""
    said_none_rise: float = 0.3
    """So much higher than at the start that share must be besides."""
    accuracy_left: float = 0.5
    """Sampled T-acc of a held-out look below this share of the first look's is a collapse too."""
    zero_std: float = 0.95
    """Share of groups with equal rewards above which a step has nothing to learn from."""
    zero_std_steps: int = 5
    """Steps in a row without a signal that raise the alarm."""
    entropy_low: float = 0.01
    """Mean entropy of a token, in nats, below which sampling explores nothing."""
    entropy_rise: float = 1.0
    """Rise of the entropy over that of the start, in nats, above which the policy falls apart."""
    cut: float = 0.2
    """Share of replies cut by the limit of tokens."""
    length_ratio: float = 2.0
    """Mean length of a reply as a multiple of that at the start, above which it runs away."""
    mismatch_warn: float = 0.005
    """Mean |log p| between rollout and learner over the tokens of a step; fp32 rounding is far below."""
    mismatch_stop: float = 0.01
    """The same, where the two no longer are one policy."""
    skipped: int = 3
    """Skipped steps among the last ``skipped_steps`` that raise the alarm."""
    skipped_steps: int = 20
    """Steps over which skipped ones are counted."""
    stop_on: tuple[str, ...] = ("mismatch_stop",)
    """Alarms that end the run, such as collapse; the others are only said."""

    def __post_init__(self) -> None:
        for name in ("first", "window", "quiet", "zero_std_steps", "skipped", "skipped_steps"):
            check_at_least(f"watch.{name.replace('_', '-')}", getattr(self, name), 1)
        for name in ("said_none", "said_none_rise", "accuracy_left", "zero_std", "cut"):
            check_share(f"watch.{name.replace('_', '-')}", getattr(self, name))
        for name in ("entropy_low", "entropy_rise", "mismatch_warn"):
            check_at_least(f"watch.{name.replace('_', '-')}", getattr(self, name), 0)
        check_at_least("watch.length-ratio", self.length_ratio, 1)
        check_at_least("watch.mismatch-stop", self.mismatch_stop, self.mismatch_warn)
        if unknown := [name for name in self.stop_on if name not in ALARMS]:
            raise ConfigError(
                f"--watch.stop-on {' '.join(unknown)} names no alarm, expected some of {', '.join(ALARMS)}"
            )
