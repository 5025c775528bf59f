"""Whether saying nothing pays more than masks: by hand, by a table of models, and what a run does then."""

import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from pipelines.grpo.config import ChecksConfig
from pipelines.grpo.groups import Outline
from pipelines.grpo.observe.checks import Checks
from pipelines.grpo.observe.none_edge import NoneEdge, none_edge
from pipelines.grpo.reward.components import Scored
from samtok.errors import ConfigError


def outlines_of(*targets: int) -> list[Outline]:
    return [
        Outline(draw=n, version=0, targets=count, lengths=(1,), complete=(True,), prompt_tokens=1)
        for n, count in enumerate(targets)
    ]


def said(total: float, *, none: bool = False) -> Scored:
    return Scored({"says_none": float(none)}, total)


def edge(share: float, targets: float, none: float, **changes: float) -> NoneEdge:
    """What Eq. 5 alone gives."""
    given = {"silent_targets": 0.0, "silent_none": 1.0, "error": 0.0, **changes}
    return NoneEdge(prompts=100, share=share, targets=targets, none=none, **given)


def test_a_step_by_hand():
    nothing, mask, format_alone = said(1.1, none=True), said(0.6), said(0.1, none=True)
    groups = [[mask, format_alone], [said(1.1), said(0.1)], [nothing, nothing], [nothing, said(0.1)]]
    found = none_edge(outlines_of(1, 2, 0, 0), groups)
    assert found is not None
    assert (found.prompts, found.share, found.edge) == (4, 0.5, 1.0)
    assert (found.targets, found.none) == (pytest.approx(0.475), pytest.approx(0.85))
    assert (found.silent_targets, found.silent_none) == (pytest.approx(0.1), pytest.approx(1.1))
    assert found.silence == pytest.approx(0.6) and found.answers == pytest.approx(0.6625)
    assert found.gain == pytest.approx(0.5 * 0.25 - 0.5 * 0.375)
    means = np.array([0.35, 0.6, 0.1, 1.1]), np.array([1.1, 0.6, 0.1, 1.1])
    assert found.error == pytest.approx(math.sqrt(sum(0.25 * one.var(ddof=1) / 2 for one in means)))
    assert found.most == pytest.approx(0.375 / (0.375 + 0.25))


def test_the_share_of_all_prompts_counts_and_what_nobody_said_is_worth_what_it_would_earn():
    groups = [[said(0.5), said(0.3)], [said(0.4), said(0.4)], [said(0.0), said(0.0)], [said(0.0), said(0.0)]]
    found = none_edge(outlines_of(1, 1, 0, 0), groups, share=0.3, silence=2.0)
    assert found is not None and (found.share, found.silent_none, found.silent_targets) == (0.3, 2.0, 0.0)
    assert found.gain == pytest.approx(0.3 * 2.0 - 0.7 * 0.4)


@pytest.mark.parametrize(
    ("targets", "share"),
    [((1, 1, 1), None), ((0, 0, 0), None), ((1, 1, 0), None), ((1, 1, 0, 0), 0.0), ((), None)],
)
def test_too_few_prompts_of_a_kind_say_nothing(targets, share):
    groups = [[said(0.5), said(0.4)] for _ in targets]
    assert none_edge(outlines_of(*targets), groups, share=share) is None


def test_few_prompts_that_are_alike_are_not_taken_for_certain():
    few, many = (
        none_edge(
            outlines_of(*[1] * n, *[0] * n), [[said(0.4), said(0.4)]] * n + [[said(0.0), said(0.0)]] * n
        )
        for n in (2, 40)
    )
    assert few is not None and many is not None
    assert few.gain == pytest.approx(many.gain) and few.gain > 0
    assert (few.pays, many.pays) == (False, True)


@pytest.mark.parametrize(
    ("found", "pays", "advice"),
    [
        (edge(0.56, 0.5, 0.3), True, "--prompts.none-share 0.37"),  # the authors' GRES-8k, a weak model
        (edge(0.56, 0.9, 0.95), False, None),  # the same prompts, a model that tells them apart
        (edge(0.3, 0.5, 0.3), False, None),  # what presets leave of them
        (edge(0.5, 0.4, 0.0), True, "--prompts.none-share 0.25"),  # p / (1 - p) itself, of a model
        (edge(0.5, 1.0, 0.0), False, None),  # that never says "No target."
        (edge(0.3, 0.42, 0.0), True, "--prompts.none-share 0.26"),  # 0.3 / 0.7 is 0.429
        (edge(0.3, 0.44, 0.0), False, None),
        (edge(0.3, 0.0, 1.0), True, "--prompts.none-share 0)"),  # says nothing already: gain 0
        (edge(0.3, 0.001, 0.2), True, "--prompts.none-share 0)"),
        (edge(0.5, 0.4, 0.5, error=0.02), True, "--prompts.none-share 0.4 "),
        (edge(0.5, 0.4, 0.5, error=0.04), False, None),  # perhaps
        (edge(0.4, 0.6, 1.1, silent_targets=0.1, silent_none=1.1), False, None),  # 0.1 for the format
        (edge(0.4, 0.15, 0.3, silent_targets=0.1, silent_none=1.1), True, "--prompts.none-share 0.05"),
    ],
)
def test_saying_nothing_pays_where_it_gains_more_than_masks_earn(found, pays, advice):
    assert found.pays == pays
    assert not pays or advice in found.remedy
    if pays and found.most:
        less = edge(found.most * 0.9, found.targets, found.none)
        assert found.silent_targets or not less.pays


def test_the_numbers_are_a_sentence():
    assert str(edge(0.56, 0.5, 0.3, error=0.02)) == (
        "56% of the prompts have no target (p/(1-p) is 1.27); before learning, responses to 100 prompts earn "
        "0.500 where there are targets and 0.300 where there are none, 0.388 together. Always saying "
        '"No target." would earn 0.560, +0.172 (standard error 0.020).'
    )


def checks_of(mode: str, *, none: int, weights: tuple[float | None, ...] = (None,)) -> Checks:
    """Checks of a run that asks 100 prompts."""
    settings = SimpleNamespace(
        checks=ChecksConfig(none_edge=cast(Any, mode)), reward=SimpleNamespace(weights={"mask": 1.0})
    )
    prompts = SimpleNamespace(counts={"none": none, "prompts": 100}, weights=weights)
    return Checks(cast(Any, settings), cast(Any, prompts), cast(Any, None), cast(Any, None))


TARGETS = (1,) * 20 + (0,) * 20
GROUPS = [*[[said(0.2), said(0.4)]] * 20, *[[said(0.0), said(0.0)], [said(0.0), said(0.2)]] * 10]


@pytest.mark.parametrize(
    ("mode", "none", "learns", "level", "words"),
    [
        ("refuse", 20, True, "INFO", "20% of the prompts have no target"),
        ("warn", 50, True, "WARNING", "50% of the prompts have no target"),
        ("refuse", 50, False, "WARNING", "--prompts.none-share 0.21"),
        ("refuse", 0, True, "INFO", "whether masks pay is not measured"),
        ("off", 50, True, None, ""),
    ],
)
def test_a_run_says_what_it_measured(caplog, mode, none, learns, level, words):
    with caplog.at_level("INFO"):
        checks_of(mode, none=none).masks_pay(outlines_of(*TARGETS), GROUPS, learns=learns)
    assert [record.levelname for record in caplog.records] == ([level] if level else [])
    assert words in caplog.text


def test_a_run_that_would_learn_to_say_nothing_is_refused():
    with pytest.raises(
        ConfigError,
        match=r"50% of the prompts.*\+0.3.*--prompts.none-share 0.21.*--checks.none-edge warn learns",
    ):
        checks_of("refuse", none=50).masks_pay(outlines_of(*TARGETS), GROUPS, learns=True)


def test_of_weighted_corpora_the_share_that_is_drawn_counts(caplog):
    with caplog.at_level("INFO"):
        checks_of("warn", none=5, weights=(1.0, 2.0)).masks_pay(outlines_of(*TARGETS), GROUPS, learns=True)
    assert "50% of the prompts have no target" in caplog.text
