"""Checks that a run learns from right numbers: equal probabilities on both sides, images that matter, masks
that pay."""

import logging
import math
from collections.abc import Sequence
from typing import Any

from pipelines.chats.prompts import PromptSource
from pipelines.grpo.config import GrpoConfig
from pipelines.grpo.groups import Outline, RolloutTask
from pipelines.grpo.learn.learner_group import LearnerGroup
from pipelines.grpo.observe.none_edge import none_edge
from pipelines.grpo.reward.components import Scored
from pipelines.grpo.team import Team
from samtok.errors import CheckpointError, ConfigError

log = logging.getLogger(__name__)

_PROBE = 1 << 40
"""Numbers of tasks from here on are probes, whose responses are not learnt from."""

NO_EFFECT = 1e-6
"""Change of log-probabilities below which an image has none."""


class Checks:
    """Probes samplers and learners, at the same weights, with fresh responses to the first prompts."""

    def __init__(self, config: GrpoConfig, prompts: PromptSource, team: Team, learners: LearnerGroup) -> None:
        self.config, self.prompts, self.team, self.learners = config, prompts, team, learners

    def start(self, step: int) -> None:
        """Makes all checks, before the first step and after a restart; raises CheckpointError if one of them
        fails."""
        if not (self.config.checks.parity_every or self.config.checks.image):
            return
        refs = self._probe(step)
        if self.config.checks.parity_every:
            self._compare(refs, step)
        if self.config.checks.image:
            self._require_effect(refs)

    def parity(self, step: int) -> None:
        """Compares both sides' log-probabilities of fresh responses; raises CheckpointError if they are
        further apart than ``GrpoConfig.parity``."""
        self._compare(self._probe(step), step)

    def masks_pay(
        self, outlines: Sequence[Outline], scored: Sequence[Sequence[Scored]], *, learns: bool
    ) -> None:
        """Holds what was sampled for the first step against always saying "No target." (``none_edge``).

        Args:
            learns: Whether the run learns from them; if not, a warning is all.

        Raises:
            ConfigError: Saying nothing pays more, and ``--checks.none-edge`` is refuse.
        """
        mode = self.config.checks.none_edge
        if mode == "off":
            return
        silence = self.config.reward.weights.get("mask", 0.0)
        found = none_edge(outlines, scored, share=self._none_share(), silence=silence)
        if found is None:
            log.info("whether masks pay is not measured: too few prompts with a target, or without one")
        elif not found.pays:
            log.info("%s", found)
        elif mode == "refuse" and learns:
            raise ConfigError(f"{found} {found.remedy} --checks.none-edge warn learns all the same.")
        else:
            log.warning("%s %s", found, found.remedy)

    def _none_share(self) -> float | None:
        """Returns the share of prompts without a target that the run draws; None if weights change it."""
        counts, weights = self.prompts.counts, self.prompts.weights
        return None if any(weight is not None for weight in weights) else counts["none"] / counts["prompts"]

    def _probe(self, step: int) -> list[Any]:
        size = self.config.rollout.prompts_per_task
        indices = self.prompts.draws(0, size)
        self.team.turn("samplers")
        return self.team.pool.probe(RolloutTask(_PROBE + step, tuple(enumerate(indices))))

    def _compare(self, refs: list[Any], step: int) -> None:
        self.team.turn("learners")
        found = self.learners.parity(*refs)
        limit = self.config.parity
        log.info(
            "parity at step %d: samplers and learners differ by %.2g on average and %.2g at most in the "
            "log-probabilities of %d tokens",
            *(step, found["mean"], found["max"], found["tokens"]),
        )
        if not found[limit.kind] <= limit.value:
            raise CheckpointError(
                f"at step {step} samplers and learners disagree about the same tokens: log-probabilities "
                f"differ by {found['mean']:.3g} on average and {found['max']:.3g} at most, expected "
                f"{limit.words}. Weights, images, positions or types differ: compare --rollout.precision "
                "with --precision and the attentions of both."
            )

    def _require_effect(self, refs: list[Any]) -> None:
        self.team.turn("learners")
        effect = self.learners.image_effect(refs[0])
        if math.isinf(effect):
            log.info("the first prompt has no image, so its effect is not checked")
        elif effect < NO_EFFECT:
            raise CheckpointError(
                f"turning the image of a prompt into its negative changes log-probabilities by {effect:.1g}: "
                "the model does not see it. Is --model a vision-language model whose weights were all "
                "loaded? --checks.no-image leaves this check out."
            )
