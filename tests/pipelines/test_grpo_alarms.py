"""Alarms of a GRPO run on made-up series: those that fail and those that do not; the k best exports."""

import itertools
import json
import math

import numpy as np
import pytest

from pipelines import cli
from pipelines.grpo.observe.alarms import ALARMS, Alarms, AlarmsConfig, ParityLimit
from pipelines.grpo.observe.best import BestK
from samtok.errors import ConfigError

HEALTHY = {
    "prompts": 100,
    "none_share": 0.3,
    "said_none": 0.3,
    "zero_std": 0.5,
    "entropy": 0.4,
    "cut": 0.01,
    "tokens": 20.0,
    "mismatch": 1e-6,
    "skipped": 0.0,
}


MEAN = ParityLimit("mean", 0.03)


def raised(series, config=None, alarms=None):
    """Feeds rows of changes to healthy metrics; returns (step, alarm) of all that were raised."""
    alarms = alarms or Alarms(config or AlarmsConfig(), MEAN)
    rows = [{**HEALTHY, "step": step, **row} for step, row in enumerate(series)]
    return [(row["step"], alarm) for row in rows for alarm in alarms.take(row)]


def names(series, **settings):
    return [(step, alarm.name) for step, alarm in raised(series, AlarmsConfig(**settings))]


def later(steps=5, start=5, **changes):
    """Healthy at first, then so many changed steps."""
    return [{}] * start + [changes] * steps


# ---------------------------------------------------------------- collapse


def drift(first, last, steps=40):
    return [{"said_none": first + (last - first) * step / (steps - 1)} for step in range(steps)]


def masks(none, reward, signal=0.5):
    """A step by its share of responses without a mask, reward and groups that differ, of targets alone."""
    return {"said_none": none, "reward_targets": reward, "signal_targets": signal}


def ramp(first, last, steps=60):
    """Steps from one to another, in equal parts."""
    return [
        {name: first[name] + (last[name] - first[name]) * step / (steps - 1) for name in first}
        for step in range(steps)
    ]


LEVEL, RISE, SIGNAL = "(--alarms.no-mask)", "(--alarms.no-mask-rise)", "(--alarms.signal-left)"
START, BEST = "(--alarms.targets-left)", "(--alarms.targets-best-left)"
TRAJECTORIES = {
    "from 72 % to 100 % without a mask": (drift(0.72, 1.0), LEVEL),
    "the same, with the reward that is left": (ramp(masks(0.72, 0.2), masks(1.0, 0.0)), START),
    "from 30 % to 89 %": (drift(0.3, 0.89), RISE),
    "the same from there, with the reward that is left": (ramp(masks(0.3, 0.6), masks(0.89, 0.1)), START),
    "half of the way at once": ([masks(0.3, 0.4)] * 9 + [masks(0.65, 0.4)] * 9, RISE),
    "a model that says nothing from the start": ([masks(0.95, 0.04)] * 9, LEVEL),
    "a slow fall below half of the best": (
        [*ramp(masks(0.3, 0.3), masks(0.2, 0.8)), *ramp(masks(0.2, 0.8), masks(0.35, 0.35))],
        BEST,
    ),
    "masks that are wrong instead of none": (ramp(masks(0.1, 0.6), masks(0.1, 0.2)), START),
    "a part always answered and most never": (ramp(masks(0.6, 0.3), masks(0.7, 0.3, 0.02)), SIGNAL),
    "the same where the reward rises": (ramp(masks(0.6, 0.3), masks(0.55, 0.4, 0.02)), None),
    "from 5 % to 35 % where the reward rises": (ramp(masks(0.05, 0.3), masks(0.35, 0.5)), None),
    "from 5 % to 60 % where the reward rises": (ramp(masks(0.05, 0.2), masks(0.6, 0.35)), None),
    "all learnt, so that groups are equal": (ramp(masks(0.3, 0.6), masks(0.02, 0.97, 0.01)), None),
    "a reward that falls by a quarter": (ramp(masks(0.3, 0.6), masks(0.4, 0.45)), None),
    "a limit itself": ([masks(0.9, 0.05)] * 30, None),
}


@pytest.mark.parametrize(("series", "flag"), TRAJECTORIES.values(), ids=TRAJECTORIES)
def test_a_policy_that_gives_up_masks_has_collapsed_and_one_that_learns_has_not(series, flag):
    found = raised(series, AlarmsConfig(quiet=1000))
    assert [alarm.name for _, alarm in found] == ([] if flag is None else ["collapse"])
    assert all(str(flag) in alarm.sentence and not alarm.fatal for _, alarm in found)


def test_a_drift_to_no_target_is_a_collapse_while_reward_rises():
    found = raised([{**row, "reward": step / 40} for step, row in enumerate(drift(0.3, 1.0))])
    assert [alarm.name for _, alarm in found] == ["collapse"]
    step, alarm = found[0]
    assert 20 <= step <= 24
    assert (
        '64% of the responses to prompts with targets have no mask, as "No target." has none'
        in alarm.sentence
    )
    assert "34% did at the start, expected a rise of at most 30% (--alarms.no-mask-rise)" in alarm.sentence
    assert "Lower --optimizer.lr, raise --algorithm.kl.weight, or fine-tune longer before" in alarm.sentence
    assert "(--prompts.none-share)" in alarm.sentence and not alarm.fatal


def test_a_run_that_learns_raises_no_alarm():
    validations = [{"step": 10 * n, "t_acc_sampled": 0.8 + n / 100, "reward_sampled": 0.4} for n in range(5)]
    alarms = Alarms(AlarmsConfig(), MEAN)
    steps = [
        {
            **masks(0.3 - n / 400, 0.4 + n / 200, 0.6 - n / 200),
            "entropy": 0.5 - n / 250,
            "tokens": 20 + n / 5,
            "zero_std": 0.4 + n / 200,
        }
        for n in range(80)
    ]
    assert raised(steps, alarms=alarms) == []
    assert [alarm for row in validations for alarm in alarms.take(row)] == []


def test_one_odd_batch_and_steps_without_targets_raise_nothing():
    odd = [{}] * 10 + [{"said_none": 1.0}] + [{"said_none": math.nan}] * 30 + [{"said_none": None}] * 3
    assert names(odd) == []


@pytest.mark.parametrize(("prompts", "none_share", "step"), [(100, 0.0, 9), (10, 0.0, 19), (10, 0.5, 39)])
def test_what_is_judged_are_enough_prompts_with_targets(prompts, none_share, step):
    size = {"prompts": prompts, "none_share": none_share}
    found = names([{**masks(1.0, 0.0), **size}] * 60, quiet=1000, window=10)
    assert found == [(step, "collapse")]


SEEDS = 50
SIZES = [(4, 4), (8, 4), (16, 8)]  # prompts of a step and responses to each
CONSTANTS = [(0.05, 0.6), (0.3, 0.4), (0.6, 0.2), (0.7, 0.1)]  # said none, reward of targets


def constant(rng, prompts, group, none, reward, steps=200):
    """Returns steps of a policy that does not change. To each prompt with a target it says nothing, and is
    right, with a probability from a Beta distribution that has most of its mass near 0 and 1, so responses
    of a group are much alike."""
    there = rng.random((steps, prompts)) < 0.7  # prompts with a target
    says, right = (
        rng.binomial(group, rng.beta(mean / 2, (1 - mean) / 2, there.shape)) / group
        for mean in (none, reward)
    )
    found = [says, right, (right > 0) & (right < 1)]
    with np.errstate(invalid="ignore"):  # of a step without targets nothing is known
        means = [((values * there).sum(axis=1) / there.sum(axis=1)).tolist() for values in found]
    shares = (1 - there.mean(axis=1)).tolist()
    return [
        {"step": step, "prompts": prompts, "none_share": share, **masks(*row)}
        for step, (share, *row) in enumerate(zip(shares, *means, strict=True))
    ]


def test_noise_around_a_constant_is_no_collapse():
    """In none of 50 runs of 200 steps, over sizes of batches and policies in turn."""
    cases = list(itertools.islice(itertools.cycle(itertools.product(SIZES, CONSTANTS)), SEEDS))
    false = 0
    for seed, (size, means) in enumerate(cases):
        alarms = Alarms(AlarmsConfig(), MEAN)
        false += any(alarms.take(row) for row in constant(np.random.default_rng(seed), *size, *means))
    assert false == 0, f"{false} of {SEEDS} runs raise an alarm by chance"


def test_a_collapse_is_found_in_such_noise():
    """The same batches of 8 prompts, of which more and more are answered by nothing."""
    for seed in range(5):
        rng, alarms, steps = np.random.default_rng(seed), Alarms(AlarmsConfig(), MEAN), []
        for step in range(200):
            left = 0.5 * min(1.0, max(0.02, 1.5 - step / 100))  # from step 50 to 148
            (row,) = constant(rng, 8, 4, 1 - left, left * 0.8, steps=1)
            steps += [step for alarm in alarms.take({**row, "step": step}) if alarm.name == "collapse"]
        assert 60 <= steps[0] <= 150


def test_sampled_accuracy_of_targets_that_halves_is_a_collapse():
    alarms = Alarms(AlarmsConfig(stop_on=("collapse",)), MEAN)
    validations = [
        {"step": step, "t_acc_sampled": value} for step, value in ((0, 0.8), (50, 0.41), (100, 0.39))
    ]
    found = [alarm for row in validations for alarm in alarms.take(row)]
    assert [(alarm.name, alarm.fatal) for alarm in found] == [("collapse", True)]
    assert "sampled T-acc on held-out prompts is 0.390, 0.800 at the first validation" in found[0].sentence


# ---------------------------------------------------------------- captions


def quality(**means):
    return {f"reward/{name}": value for name, value in means.items()}


GOOD = {"caption_length": 0.8, "caption_repetition": 0.97, "caption_overlap": 0.4, "phrase_structure": 0.3}


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (GOOD, {"caption_length": 0.5}, "caption_length of the responses is 0."),
        (GOOD, {"caption_repetition": 0.6}, "0.970 at the start; expected at least 70% of that"),
        (GOOD, {"caption_overlap": 0.2}, "(--alarms.captions-left)"),
        (GOOD, {"phrase_structure": 0.1}, "give the component a weight (--reward.weights)"),
        (
            {"caption_length": 0.05},
            {},
            "caption_length of the responses is 0.050 on average",
        ),
        (GOOD, {name: 0.8 * value for name, value in GOOD.items()}, None),
        (GOOD, dict.fromkeys(GOOD, 1.0), None),
        (dict.fromkeys(GOOD, 1.0), {}, None),  # what questions that are no captions have
        ({"caption_overlap": 0.02, "phrase_structure": 0.01}, {}, None),
        ({"caption_lenght": 0.9}, {"caption_lenght": 0.0}, None),
        ({}, {}, None),
    ],
)
def test_captions_that_get_worse_raise_their_alarm(before, after, said):
    series = [quality(**before)] * 9 + [quality(**{**before, **after})] * 9
    found = raised(series, AlarmsConfig(quiet=1000, stop_on=("captions",)))
    assert [alarm.name for _, alarm in found] == ([] if said is None else ["captions"])
    assert all(str(said) in alarm.sentence and alarm.fatal for _, alarm in found)


def test_captions_are_held_against_their_best_too():
    series = [quality(caption_overlap=value) for value in [0.3] * 9 + [0.8] * 9 + [0.35] * 9]
    ((step, alarm),) = raised(series, AlarmsConfig(quiet=1000))
    assert step > 18 and "0.800 at its best; expected at least 50% of that" in alarm.sentence


def test_noise_of_captions_is_no_alarm():
    rng, alarms = np.random.default_rng(0), Alarms(AlarmsConfig(), MEAN)
    for step in range(200):
        drawn = {name: float(rng.beta(mean, 1 - mean, 8).mean()) for name, mean in GOOD.items()}
        assert alarms.take({"step": step, "prompts": 8, "none_share": 0.0, **quality(**drawn)}) == []


# ---------------------------------------------------------------- the other alarms


@pytest.mark.parametrize(
    ("changes", "expected", "words"),
    [
        ({"zero_std": 0.96}, (9, "no_signal"), "96% of the groups have equal rewards"),
        ({"entropy": 0.004}, (9, "entropy_low"), "is 0.004 nats, expected at least 0.01"),
        ({"entropy": 1.5}, (9, "entropy_high"), "rose from 0.4 to 1.5 nats"),
        ({"entropy": math.inf}, (5, "entropy_high"), "rose from 0.4 to inf nats"),
        (
            {"cut": 0.3},
            (8, "cut"),
            "24% of the responses are cut by the limit of tokens, expected at most 20%",
        ),
        ({"tokens": 60.0}, (7, "length"), "has 44 tokens on average, 20 at the start"),
        ({"mismatch": 0.031}, (5, "mismatch"), "expected 0.03 on average (--checks.parity-mean)"),
        ({"mismatch": math.inf}, (5, "mismatch"), "differ by inf"),
        ({"skipped": True}, (7, "skipped"), "3 of the last 20 steps were skipped"),
    ],
)
def test_each_failure_raises_its_alarm_once_in_so_many_steps(changes, expected, words):
    found = raised(later(**changes))
    assert [(step, alarm.name) for step, alarm in found] == [expected]
    assert words in found[0][1].sentence
    assert found[0][1].fatal == (expected[1] == "mismatch")


@pytest.mark.parametrize(
    "changes",
    [
        {"zero_std": 0.95},
        {"entropy": 0.01},
        {"entropy": 1.4},
        {"cut": 0.2},
        {"tokens": 40.0},
        {"mismatch": 0.03},
        {"skipped": False},
    ],
)
def test_a_limit_itself_is_no_alarm(changes):
    assert names(later(30, **changes)) == []


def test_a_step_with_a_signal_starts_the_count_anew():
    assert names([{"zero_std": 1.0}] * 4 + [{}] + [{"zero_std": 1.0}] * 4) == []


def test_skipped_steps_far_apart_raise_nothing():
    assert names([{"skipped": step % 10 == 0} for step in range(60)]) == []


def test_an_alarm_is_repeated_after_the_quiet_steps_and_every_alarm_has_its_own():
    found = names([{"mismatch": 0.2, "cut": 1.0}] * 12, quiet=4)
    assert [step for step, name in found if name == "mismatch"] == [0, 4, 8]
    assert [step for step, name in found if name == "cut"] == [4, 8]


def test_in_float32_the_largest_difference_counts():
    alarms = Alarms(AlarmsConfig(), ParityLimit("max", 1e-4))
    assert not alarms.take({"step": 0, "mismatch": 1e-5, "mismatch_max": 1e-4})
    (alarm,) = alarms.take({"step": 1, "mismatch": 1e-5, "mismatch_max": 2e-4})
    assert alarm.fatal and "expected 0.0001 at most (--checks.parity-max)" in alarm.sentence


def test_only_the_alarms_of_the_flag_end_the_run():
    series = [{"mismatch": 0.2, "skipped": True}] * 3
    fatal = {alarm.name: alarm.fatal for _, alarm in raised(series, AlarmsConfig(stop_on=("skipped",)))}
    assert fatal == {"mismatch": False, "skipped": True}


# ---------------------------------------------------------------- state and settings


@pytest.mark.parametrize("cut_at", [2, 7, 21, 34, 38])
def test_resumed_alarms_are_those_of_an_uninterrupted_run(cut_at):
    series = [
        {
            **row,
            **{"zero_std": 1.0, "skipped": step % 4 == 0, "tokens": 20.0 + step},
            **{"reward_targets": 0.5 + step % 3 / 10, "reward/caption_overlap": 0.8 - step / 60},
        }
        for step, row in enumerate(drift(0.3, 1.0))
    ]
    rows = [{**HEALTHY, "step": step, **row} for step, row in enumerate(series)]
    rows.insert(1, {"step": 0, "t_acc_sampled": 0.9})
    rows.insert(37, {"step": 35, "t_acc_sampled": 0.2})
    whole, first, second = (Alarms(AlarmsConfig(), MEAN) for _ in range(3))
    wanted = [alarm for row in rows for alarm in whole.take(row)]
    got = [alarm for row in rows[:cut_at] for alarm in first.take(row)]
    second.restore(json.loads(json.dumps(first.state())))
    got += [alarm for row in rows[cut_at:] for alarm in second.take(row)]
    assert len(wanted) >= 5
    assert got == wanted
    assert second.state() == whole.state()


def test_going_on_does_not_change_an_exported_state():
    alarms = Alarms(AlarmsConfig(), MEAN)
    raised(later(), alarms=alarms)
    state = alarms.state()
    before = json.dumps(state)
    raised(later(skipped=True), alarms=alarms)
    assert json.dumps(state) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stop_on": ("collaps",)}, "--stop-on must be some of collapse, "),
        ({"no_mask": 1.2}, "--no-mask must be in [0, 1], got 1.2"),
        ({"window": 0}, "--window must be >= 1, got 0"),
        ({"length_ratio": 0.5}, "--length-ratio must be >= 1, got 0.5"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError) as error:
        AlarmsConfig(**settings)
    assert message in str(error.value)


def test_the_command_line_names_which_alarms_end_the_run():
    config = cli.parse(AlarmsConfig, {}, ["--stop-on", *ALARMS], doc="")
    assert config.stop_on == ALARMS


# ---------------------------------------------------------------- the k best exports


def verdicts(best, values):
    return [tuple(best.take({"step": 10 * n, "targets": value})) for n, value in enumerate(values)]


def test_the_k_best_stay_and_what_they_push_out_is_dropped():
    best = BestK("targets", 2)
    assert verdicts(best, [0.3, 0.1, 0.2, 0.1, 0.4]) == [
        (True, []),
        (True, []),
        (True, [10]),
        (False, []),
        (True, [20]),
    ]
    assert best.best == [(40, 0.4), (0, 0.3)]


def test_the_earliest_wins_a_tie_and_what_is_no_number_never_wins():
    assert verdicts(BestK("targets", 1), [0.2, 0.2, 0.3, math.nan, None]) == [
        (True, []),
        (False, []),
        (True, [0]),
        (False, []),
        (False, []),
    ]


def test_a_repeated_step_is_judged_anew():
    best = BestK("targets", 1)
    verdicts(best, [0.3, 0.5])
    assert best.take({"step": 10, "targets": 0.5}) == (True, [])
    assert best.best == [(10, 0.5)]


def test_resumed_choices_are_those_of_an_uninterrupted_run():
    first, second = BestK("targets", 2), BestK("targets", 2)
    verdicts(first, [0.3, 0.1, 0.2])
    second.restore(json.loads(json.dumps(first.state())))
    assert second.take({"step": 30, "targets": 0.25}) == (True, [20])
    fewer = BestK("targets", 1)
    fewer.restore(first.state())
    assert fewer.take({"step": 30, "targets": 0.0}) == (False, [20])


def test_a_choice_by_another_metric_or_none_is_refused():
    with pytest.raises(ConfigError, match="no 'giou' to choose the best by; it has targets"):
        BestK("giou", 1).take({"step": 0, "targets": 1.0})
    with pytest.raises(ConfigError, match="with the max of targets, now it is the max of giou"):
        BestK("giou", 1).restore(BestK("targets", 1).state())
