"""How a policy gives up: it stops saying masks, or its captions fall apart. Rules of two alarms; pure.

Reward, gIoU and N-acc can rise while masks get lost, so what is judged are prompts with targets alone: the
share of responses without a mask, the reward, and whether the responses of a group still differ in it.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pipelines.grpo.observe.series import Mean, Series

if TYPE_CHECKING:
    from pipelines.grpo.observe.alarms import AlarmsConfig

OF_TARGETS = ("said_none", "reward_targets", "signal_targets")
"""Metrics of steps over the prompts with targets."""
_FORM = ("reward/caption_length", "reward/caption_repetition")
"""What even a model that sees nothing can have of a caption."""
OF_CAPTIONS = (*_FORM, "reward/caption_overlap", "reward/phrase_structure")
"""Means of components of the reward, in [0, 1], where 1 is the true caption."""

_MOST = 0.5
"""Share of responses without a mask from which equal rewards mean that none is left, and not that all is
learnt."""
REMEDY = "Lower --optimizer.lr, raise --algorithm.kl.weight, or fine-tune longer before"
_CAPTIONS = f"{REMEDY}, or give the component a weight (--reward.weights)"
FEWER = "; or ask fewer questions without a target (--prompts.none-share)"

Metrics = Mapping[str, Series]


def collapse(metrics: Metrics, config: "AlarmsConfig") -> Iterator[str]:
    """Yields a sentence for each sign that masks are given up, the surest first."""
    yield from _no_mask(metrics, config)
    yield from _less_reward(metrics["reward_targets"], config)
    yield from _no_signal(metrics, config)


def captions(metrics: Metrics, config: "AlarmsConfig") -> Iterator[str]:
    """Yields a sentence for each quality of captions that is lost."""
    for name in OF_CAPTIONS:
        series, said = metrics[name], f"{name.removeprefix('reward/')} of the responses"
        now = series.now
        if name in _FORM and now is not None and now.value < config.captions_least:
            yield (
                f"{said} is {now.value:.3f} on average, expected at least {config.captions_least:g} "
                f"(--alarms.captions-least). {_CAPTIONS}."
            )
        for before, when, left, flag in (
            (series.start, "at the start", config.captions_left, "captions-left"),
            (series.best, "at its best", config.captions_best_left, "captions-best-left"),
        ):
            if series.fell(before, left):
                yield (
                    f"{said} {_fall(now, before, when)}; expected at least {left:.0%} of that "
                    f"(--alarms.{flag}). {_CAPTIONS}."
                )


def _no_mask(metrics: Metrics, config: "AlarmsConfig") -> Iterator[str]:
    now, start = metrics["said_none"].now, metrics["said_none"].start
    if now is None or start is None:
        return
    said = (
        f'{now.value:.0%} of the responses to prompts with targets have no mask, as "No target." has none; '
        f"{start.value:.0%} did at the start"
    )
    if now.value > config.no_mask:
        yield f"{said}, expected at most {config.no_mask:.0%} (--alarms.no-mask). {REMEDY}{FEWER}."
    elif now.value - start.value > config.no_mask_rise and not _rose(metrics["reward_targets"]):
        yield (
            f"{said}, expected a rise of at most {config.no_mask_rise:.0%} (--alarms.no-mask-rise) where the "
            f"reward does not rise. {REMEDY}{FEWER}."
        )


def _less_reward(series: Series, config: "AlarmsConfig") -> Iterator[str]:
    for before, when, left, flag in (
        (series.start, "at the start", config.targets_left, "targets-left"),
        (series.best, "at its best", config.targets_best_left, "targets-best-left"),
    ):
        if series.fell(before, left):
            yield (
                f"the reward of prompts with targets {_fall(series.now, before, when)}; expected at least "
                f"{left:.0%} of that (--alarms.{flag}). {REMEDY}{FEWER}."
            )


def _no_signal(metrics: Metrics, config: "AlarmsConfig") -> Iterator[str]:
    signal, none = metrics["signal_targets"], metrics["said_none"].now
    if none is None or none.value <= _MOST or _rose(metrics["reward_targets"]):
        return
    if signal.fell(signal.start, config.signal_left):
        yield (
            "the share of groups of prompts with targets whose rewards differ "
            f"{_fall(signal.now, signal.start, 'at the start')}; expected at least {config.signal_left:.0%} "
            f"of that (--alarms.signal-left). {none.value:.0%} of the responses there have no mask: little "
            f"is left that could bring masks back. {REMEDY}{FEWER}."
        )


def _rose(series: Series) -> bool:
    now, start = series.now, series.start
    return now is not None and start is not None and now.value > start.value


def _fall(now: Mean | None, before: Mean | None, when: str) -> str:
    assert now is not None and before is not None  # else nothing fell
    return f"is {now.value:.3f} on average, {before.value:.3f} {when}"
