"""Alarms of a GRPO run on made-up series: those that fail and those that do not; the k best exports."""

import json
import math

import pytest

from pipelines import cli
from pipelines.grpo.observe.alarms import ALARMS, Alarms, AlarmsConfig, ParityLimit
from pipelines.grpo.observe.best import BestK
from samtok.errors import ConfigError

HEALTHY = {
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


def test_a_drift_to_no_target_is_a_collapse_while_reward_rises():
    found = raised([{**row, "reward": step / 40} for step, row in enumerate(drift(0.3, 1.0))])
    assert [alarm.name for _, alarm in found] == ["collapse"]
    step, alarm = found[0]
    assert 34 <= step <= 38
    assert (
        '91% of the responses to prompts with targets have no mask, as "No target." has none'
        in alarm.sentence
    )
    assert "34% did at the start, expected at most 90% (--alarms.no-mask)" in alarm.sentence
    assert not alarm.fatal


def test_a_run_that_learns_raises_no_alarm():
    validations = [{"step": 10 * n, "t_acc_sampled": 0.8 + n / 100, "reward_sampled": 0.4} for n in range(5)]
    alarms = Alarms(AlarmsConfig(), MEAN)
    steps = [
        {
            "said_none": 0.3 - n / 400,
            "entropy": 0.5 - n / 250,
            "tokens": 20 + n / 5,
            "zero_std": 0.4 + n / 200,
        }
        for n in range(80)
    ]
    assert raised(steps, alarms=alarms) == []
    assert [alarm for row in validations for alarm in alarms.take(row)] == []


def test_a_model_that_says_no_target_from_the_start_has_not_risen_to_it():
    assert names(drift(0.92, 1.0)) == []
    assert names(drift(0.5, 0.89)) == []


def test_one_odd_batch_and_steps_without_targets_raise_nothing():
    odd = [{}] * 10 + [{"said_none": 1.0}] + [{"said_none": math.nan}] * 30 + [{"said_none": None}] * 3
    assert names(odd) == []


def test_sampled_accuracy_of_targets_that_halves_is_a_collapse():
    alarms = Alarms(AlarmsConfig(stop_on=("collapse",)), MEAN)
    validations = [
        {"step": step, "t_acc_sampled": value} for step, value in ((0, 0.8), (50, 0.41), (100, 0.39))
    ]
    found = [alarm for row in validations for alarm in alarms.take(row)]
    assert [(alarm.name, alarm.fatal) for alarm in found] == [("collapse", True)]
    assert "sampled T-acc on held-out prompts is 0.390, 0.800 at the first validation" in found[0].sentence


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
        {**row, "zero_std": 1.0, "skipped": step % 4 == 0, "tokens": 20.0 + step}
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
