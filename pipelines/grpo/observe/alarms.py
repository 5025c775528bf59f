"""Alarms: judges the numbers of a run for the ways in which reinforcement learning fails.

"No target." is a safe answer: it pays the share of questions without a target whatever the image shows, so a
policy can drift to it while reward, gIoU and N-acc rise. The alarm ``collapse`` is for that, and
``captions`` for captions that fall apart (rules of both in ``collapse``); the others are for groups without a
signal, entropy, lengths, cut responses, skipped steps, and a learner that does not compute the probabilities
that the rollout sampled from.

Pure: numbers in, alarms out. Whoever calls logs them, and ends the run on a fatal one.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Ge

from pipelines.config import AtLeast1, NotNegative, Share, config
from pipelines.grpo.observe import collapse
from pipelines.grpo.observe.series import Series
from samtok.errors import ConfigError

ALARMS = (
    "collapse",
    "captions",
    "no_signal",
    "entropy_low",
    "entropy_high",
    "cut",
    "length",
    "mismatch",
    "skipped",
)
"""Names of all alarms, for ``stop_on``."""

_MEANS = ("entropy", "cut", "tokens")
"""Metrics of steps that are judged by their mean over the last ones, and against their mean at the start."""


@config
class AlarmsConfig:
    """When to raise an alarm, and which alarms end the run."""

    first: AtLeast1 = 5
    """Steps at the start whose mean is what later ones are compared with; of validations, the first."""
    window: AtLeast1 = 5
    """Steps whose mean is judged, so that one odd batch raises no alarm."""
    quiet: AtLeast1 = 20
    """Steps in which an alarm is not repeated."""
    prompts: AtLeast1 = 200
    """Prompts with targets (of captions: prompts) over which collapse and captions take their means at least,
    in as many steps as that takes, so that small batches raise no alarm by chance."""
    no_mask: Share = 0.9
    """Share of responses without a mask, to prompts with targets, above which the policy has collapsed,
    whatever it was at the start."""
    no_mask_rise: Share = 0.3
    """Rise of that share over that of the start which is a collapse too, unless the reward of prompts with
    targets has risen as well."""
    targets_left: Share = 0.7
    """Mean reward of prompts with targets below this share of that at the start is a collapse too."""
    targets_best_left: Share = 0.5
    """The same against the best mean so far."""
    signal_left: Share = 0.3
    """Share of the groups of prompts with targets in which rewards differ, below this share of that at the
    start: a collapse too if most of their responses have no mask and their reward has not risen."""
    captions_least: Share = 0.1
    """Mean caption_length or caption_repetition, where the reward has these components, below which captions
    have fallen apart, whatever it was at the start."""
    captions_left: Share = 0.7
    """Mean of one of these, of caption_overlap or phrase_structure below this share of that at the start
    raises captions too."""
    captions_best_left: Share = 0.5
    """The same against the best mean so far."""
    accuracy_left: Share = 0.5
    """Sampled T-acc of a validation below this share of the first one's is a collapse too."""
    zero_std: Share = 0.95
    """Share of groups with equal rewards above which a step has nothing to learn from."""
    zero_std_steps: AtLeast1 = 5
    """Steps in a row without a signal that raise the alarm."""
    entropy_low: NotNegative = 0.01
    """Mean entropy of a token, in nats, below which sampling explores nothing."""
    entropy_rise: NotNegative = 1.0
    """Rise of the entropy over that of the start, in nats, above which the policy falls apart."""
    cut: Share = 0.2
    """Share of responses cut by the limit of tokens."""
    length_ratio: Annotated[float, Ge(1)] = 2.0
    """Mean length of a response as a multiple of that at the start, above which it runs away."""
    skipped: AtLeast1 = 3
    """Skipped steps among the last ``skipped_steps`` that raise the alarm."""
    skipped_steps: AtLeast1 = 20
    """Steps over which skipped ones are counted."""
    stop_on: tuple[str, ...] = ("mismatch",)
    """Alarms that end the run, such as collapse; the others are only logged. The limit of mismatch is that of
    the checks (--checks.parity-max, --checks.parity-mean)."""

    def check(self) -> None:
        """Checks names."""
        if unknown := [name for name in self.stop_on if name not in ALARMS]:
            raise ConfigError(f"--.stop-on must be some of {', '.join(ALARMS)}, got {' '.join(unknown)}.")


class ParityLimit(NamedTuple):
    """How far samplers and learners may be apart in log-probabilities."""

    kind: Literal["max", "mean"]
    value: float

    @property
    def words(self) -> str:
        """The limit as a message has it."""
        over = "at most" if self.kind == "max" else "on average"
        return f"{self.value:g} {over} (--checks.parity-{self.kind})"


class Alarm(NamedTuple):
    """Something that a person should look at; a fatal one ends the run."""

    name: str
    sentence: str
    fatal: bool


class Alarms:
    """Takes in the metrics of steps and validations, in order, and raises alarms."""

    def __init__(self, config: AlarmsConfig, parity: ParityLimit) -> None:
        self.config, self.parity = config, parity
        kept = {"early": {}, "late": {}, "raised": {}, "without_signal": 0, "skipped": [], "series": {}}
        self.restore(kept)

    def take(self, metrics: Mapping[str, Any]) -> list[Alarm]:
        """Takes in one step's metrics, or one validation's, and returns the alarms that they raise.

        Args:
            metrics: With ``step``, which never falls. What is missing, None or NaN (a batch may have no
                prompt with targets) is passed over; infinite is too much of anything.
        """
        step = int(metrics["step"])
        numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, Real)}
        numbers = {name: value for name, value in numbers.items() if not math.isnan(value)}
        alarms = []
        for name, sentence in self._judge(step, numbers):
            before = self._raised.get(name)
            if before is None or step - before >= self.config.quiet:
                self._raised[name] = step
                alarms.append(Alarm(name, sentence, name in self.config.stop_on))
        return alarms

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps; plain JSON."""
        names = ("early", "late", "raised", "without_signal", "skipped")
        kept = {name: getattr(self, f"_{name}") for name in names}
        return copy.deepcopy(kept) | {"series": {name: one.state() for name, one in self._series.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to what a checkpoint kept."""
        kept = copy.deepcopy(dict(state))
        self._early: defaultdict[str, list[float]] = defaultdict(list, kept["early"])
        self._late: defaultdict[str, list[float]] = defaultdict(list, kept["late"])
        self._raised: dict[str, int] = kept["raised"]
        self._without_signal: int = kept["without_signal"]
        self._skipped: list[int] = kept["skipped"]
        first, window, prompts = self.config.first, self.config.window, self.config.prompts
        self._series: defaultdict[str, Series] = defaultdict(
            lambda: Series(first=first, window=window, prompts=prompts)
        )
        for name, one in kept.get("series", {}).items():
            self._series[name].restore(one)

    def _judge(self, step: int, numbers: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        """Yields every alarm as name and sentence, raised before or not."""
        for name in _MEANS:
            if name in numbers:
                self._remember(name, numbers[name])
        if "t_acc_sampled" in numbers:
            yield from self._validation(numbers["t_acc_sampled"])
        yield from self._collapse(numbers)
        if "entropy" in numbers:
            yield from self._entropy()
        if "cut" in numbers or "tokens" in numbers:
            yield from self._lengths()
        if "zero_std" in numbers:
            yield from self._signal(numbers["zero_std"])
        apart = numbers.get("mismatch_max" if self.parity.kind == "max" else "mismatch")
        if apart is not None and apart > self.parity.value:
            yield (
                "mismatch",
                f"rollout and learner differ by {apart:.2g} in the log-probability of a token, expected "
                f"{self.parity.words}. They are not one policy: check the weights that were sent, the image "
                "inputs and the precision of both.",
            )
        if numbers.get("skipped"):
            yield from self._skip(step)

    def _remember(self, name: str, value: float) -> None:
        if len(self._early[name]) < self.config.first:
            self._early[name].append(value)
        self._late[name] = [*self._late[name], value][-self.config.window :]

    def _now(self, name: str) -> float | None:
        """Returns the mean over the last steps, None before there are enough."""
        values = self._late[name]
        return _mean(values) if len(values) == self.config.window else None

    def _start(self, name: str) -> float | None:
        """Returns the mean over the first steps, None before they are over."""
        values = self._early[name]
        return _mean(values) if len(values) == self.config.first else None

    def _collapse(self, numbers: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        watched = [name for name in (*collapse.OF_TARGETS, *collapse.OF_CAPTIONS) if name in numbers]
        if not watched:
            return
        prompts, targets = numbers["prompts"], numbers["prompts"] * (1 - numbers["none_share"])
        for name in watched:
            self._series[name].add(numbers[name], targets if name in collapse.OF_TARGETS else prompts)
        for sentence in collapse.collapse(self._series, self.config):
            yield "collapse", sentence
        for sentence in collapse.captions(self._series, self.config):
            yield "captions", sentence

    def _validation(self, now: float) -> Iterator[tuple[str, str]]:
        if not self._early["t_acc_sampled"]:
            self._early["t_acc_sampled"].append(now)
            return
        start, left = self._early["t_acc_sampled"][0], self.config.accuracy_left
        if now < left * start:
            yield (
                "collapse",
                f"sampled T-acc on held-out prompts is {now:.3f}, {start:.3f} at the first validation; "
                f"expected at least {left:.0%} of that (--alarms.accuracy-left). "
                f"{collapse.REMEDY}{collapse.FEWER}.",
            )

    def _entropy(self) -> Iterator[tuple[str, str]]:
        config, now, start = self.config, self._now("entropy"), self._start("entropy")
        if now is not None and now < config.entropy_low:
            yield (
                "entropy_low",
                f"the mean entropy of a token is {now:.3g} nats, expected at least {config.entropy_low:g} "
                "(--alarms.entropy-low): responses of a group are alike. Raise the upper clip or the "
                "temperature, or lower the learning rate.",
            )
        if now is not None and start is not None and now - start > config.entropy_rise:
            yield (
                "entropy_high",
                f"the mean entropy of a token rose from {start:.3g} to {now:.3g} nats, expected a rise of at "
                f"most {config.entropy_rise:g} (--alarms.entropy-rise). Lower the learning rate or raise "
                "the KL weight.",
            )

    def _lengths(self) -> Iterator[tuple[str, str]]:
        config, cut = self.config, self._now("cut")
        if cut is not None and cut > config.cut:
            yield (
                "cut",
                f"{cut:.0%} of the responses are cut by the limit of tokens, expected at most "
                f"{config.cut:.0%} (--alarms.cut). Raise the limit of new tokens, or reward short responses.",
            )
        now, start = self._now("tokens"), self._start("tokens")
        if now is not None and start is not None and now > config.length_ratio * start:
            yield (
                "length",
                f"a response has {now:.0f} tokens on average, {start:.0f} at the start; expected at most "
                f"{config.length_ratio:g} times that (--alarms.length-ratio). See on the page of "
                "trajectories what they are; a reward may pay for length.",
            )

    def _signal(self, share: float) -> Iterator[tuple[str, str]]:
        config = self.config
        self._without_signal = self._without_signal + 1 if share > config.zero_std else 0
        if self._without_signal >= config.zero_std_steps:
            yield (
                "no_signal",
                f"{share:.0%} of the groups have equal rewards, and more than {config.zero_std:.0%} had for "
                f"{self._without_signal} steps in a row (--alarms.zero-std): there is nothing to learn from. "
                "Choose prompts that the model answers sometimes, raise the responses per prompt, or give "
                "partial credit.",
            )

    def _skip(self, step: int) -> Iterator[tuple[str, str]]:
        config = self.config
        self._skipped = [old for old in self._skipped if step - old < config.skipped_steps] + [step]
        if len(self._skipped) >= config.skipped:
            yield (
                "skipped",
                f"{len(self._skipped)} of the last {config.skipped_steps} steps were skipped for a loss or "
                f"gradient that is no number, expected fewer than {config.skipped} (--alarms.skipped). Lower "
                "the learning rate, or look for the prompts of these steps among the trajectories.",
            )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
