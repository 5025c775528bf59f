"""Numbers of steps and validations, by hand and against the metrics of evaluations."""

from typing import Any

import numpy as np
import pytest

from pipelines.grpo.groups import Outline
from pipelines.grpo.observe.metrics import step_measures, validation_measures
from pipelines.grpo.reward.components import Scored
from pipelines.grpo.reward.scoring import ValidationRow
from samtok.metrics import referring


def scored(total: float, **components: float) -> Scored:
    """A response; ``mask`` is the total unless another one is given."""
    names = ("says_none", "num_words", "num_duplicates", "num_malformed")
    return Scored({"mask": total, **dict.fromkeys(names, 0.0), **components}, total)


def outline_of(targets: int, lengths: tuple[int, int], complete: tuple[bool, bool], version: int) -> Outline:
    return Outline(
        draw=0,
        version=version,
        targets=targets,
        lengths=lengths,
        complete=complete,
        prompt_tokens=9,
    )


def test_a_step_by_hand():
    outlines = [
        outline_of(2, (4, 6), (True, False), 7),
        outline_of(0, (2, 2), (True, True), 9),
        outline_of(1, (3, 7), (False, False), 8),
    ]
    responses = [
        [scored(1.0, num_words=2), scored(0.5, num_words=3, num_duplicates=1)],
        [scored(1.0, says_none=1), scored(1.0, says_none=1)],
        [scored(0.0, says_none=1), scored(0.25, num_words=1, num_malformed=2)],
    ]
    found = step_measures(outlines, responses, version=9)
    deviations = [0.5 / np.sqrt(2), 0.0, 0.25 / np.sqrt(2)]
    expected = {
        "reward": 3.75 / 6,
        "reward_std": np.mean(deviations),
        "reward/mask": 3.75 / 6,
        "reward/says_none": 3 / 6,
        "reward/num_words": 1.0,
        "reward_targets": 1.75 / 4,
        "reward_none": 1.0,
        "said_none": 1 / 4,
        "zero_std": 1 / 3,
        "signal_targets": 1.0,
        "signal_none": 0.0,
        "none_share": 1 / 3,
        "malformed": 1 / 6,
        "duplicates": 1 / 6,
        "num_pred": 1.0,
        "tokens": 4.0,
        "cut": 3 / 6,
        "staleness": 1.0,
        "staleness_max": 2,
        "prompts": 3,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_a_step_without_one_kind_of_prompts_has_no_number_for_it():
    outlines = [outline_of(1, (1, 1), (True, True), 0)]
    found = step_measures(outlines, [[scored(0.0), scored(1.0)]], version=0)
    assert found["reward_none"] is None and found["reward_targets"] == 0.5
    assert found["signal_none"] is None and found["signal_targets"] == 1 and found["none_share"] == 0
    none = step_measures([outline_of(0, (1, 1), (True, True), 0)], [[scored(0.0), scored(1.0)]], version=0)
    assert none["reward_targets"] is None and none["said_none"] is None and none["reward_none"] == 0.5


def validation_row(
    targets: int, greedy: Scored, samples: tuple[Scored, ...] = (), **px: int
) -> ValidationRow:
    sizes = {"intersection_px": 0, "predicted_px": 0, "target_px": 0, **px}
    return ValidationRow(targets=targets, greedy=greedy, samples=samples, **sizes)


def test_a_validation_by_hand():
    hit, miss = scored(1.0, num_words=1), scored(0.0, says_none=1)
    half = scored(0.5, num_words=2)
    rows = [
        validation_row(1, hit, (hit, miss), intersection_px=50, predicted_px=60, target_px=90),
        validation_row(1, miss, (miss, half), target_px=100),
        validation_row(2, half, (hit, half), intersection_px=10, predicted_px=10, target_px=40),
        validation_row(0, hit, (hit, hit)),
        validation_row(0, scored(0.0, num_words=1), (miss, hit), predicted_px=30),
    ]
    expected = {
        "reward_greedy": 2.5 / 5,
        "targets_greedy": 1.5 / 3,
        "giou": (0.5 + 0 + 0.25 + 1 + 0) / 5,
        "ciou": 60 / (100 + 100 + 40 + 30),
        "n_acc": 1 / 2,
        "t_acc": 2 / 3,
        "exact_targets": 1 / 3,
        "exact_single": 1 / 2,
        "none_share": 2 / 5,
        "prompts": 5,
        "reward_sampled": (0.5 + 0.25 + 0.75 + 1 + 0.5) / 5,
        "targets_sampled": (0.5 + 0.25 + 0.75) / 3,
        "single_sampled": (0.5 + 0) / 2,
        "t_acc_sampled": (0.5 + 0.5 + 1) / 3,
    }
    assert validation_measures(rows) == pytest.approx(expected)


def test_the_masks_of_a_validation_are_measured_as_an_evaluation_does():
    rng = np.random.default_rng(0)
    pairs, rows = [], []
    for number in range(40):
        target = rng.random((6, 7)) < (0.0 if number % 4 == 0 else 0.4)
        predicted = rng.random((6, 7)) < (0.0 if number % 3 == 0 else 0.5)
        pairs.append((target, predicted))
        rows.append(
            validation_row(
                int(target.any()),
                scored(0.0),
                intersection_px=int((target & predicted).sum()),
                predicted_px=int(predicted.sum()),
                target_px=int(target.sum()),
            )
        )
    measured = referring.gres(referring.Samples.of_masks(pairs))
    found = validation_measures(rows)
    for name in ("giou", "ciou", "n_acc", "t_acc"):
        assert found[name] == measured[name] and 0 < measured[name] < 1
    assert found["none_share"] == measured["no_target"] / 40


def test_always_saying_none_is_what_none_share_says():
    none: dict[str, Any] = {"greedy": scored(0.0, says_none=1)}
    rows = [
        validation_row(1, **none, target_px=10),
        validation_row(2, **none, target_px=10),
        validation_row(0, scored(1.0)),
    ]
    found = validation_measures(rows)
    assert found["giou"] == found["none_share"] == found["reward_greedy"] == 1 / 3
    assert found["t_acc"] == found["targets_greedy"] == found["exact_targets"] == 0


def test_a_validation_without_rows_or_samples_has_no_numbers_for_them():
    found = validation_measures([])
    assert found["prompts"] == 0 and found["reward_greedy"] is None and found["none_share"] is None
    alone = validation_measures([validation_row(0, scored(1.0))])
    assert "reward_sampled" not in alone and alone["exact_single"] is None and alone["t_acc"] is None
