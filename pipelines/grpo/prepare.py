"""What is known of a run before anything runs: checks, fingerprint, lineage, prompts. Loads no torch."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines import storage
from pipelines.chats.prompt_selection import load_prompts
from pipelines.chats.prompts import PromptsConfig, PromptSource
from pipelines.chats.source import check_vocabulary
from pipelines.cluster import with_device
from pipelines.generation.config import WHERE
from pipelines.generation.environment import check_engine
from pipelines.generation.models import read_folder, weights_digest
from pipelines.grpo.config import GrpoConfig
from pipelines.grpo.reward.components import check_rewards, rewards_of
from pipelines.grpo.reward.earnings import holes_of
from pipelines.training.deepspeed_file import deepspeed_of
from pipelines.training.prepare import Prepared, check_packing, lineage_of, settings_of
from pipelines.training.resume import has_begun
from samtok import folders
from samtok.errors import ConfigError, DataError
from samtok.rewards import Question
from samtok.rewards.iou import NAME as IOU

log = logging.getLogger(__name__)

CODE_VERSION = 4
"""Raised with every change of the code that changes what is learnt or what this fingerprint holds."""

PEEKED = 1000
"""Samples of each corpus that a dry run reads."""

TRIED = 16
"""First prompts among which one of each kind is answered by cheap policies, to find holes of the reward."""

_FREE = (
    *("model", "tokenizer", "chats", "prompts", "placement", "sync", "checks", "alarms"),
    *("validation", "trajectories_every", "learner", "reward.workers", "reward.gpus_per_worker"),
    *("rollout.workers", "rollout.worker", "rollout.max_failures", "rollout.timeout_s"),
    *(f"rollout.{name}" for name in WHERE),
)
"""Fields that a resumed run may change, since they do not change what is learnt but for rounding, and those
that are in the fingerprint by what they come to: the hash of the weights and of the prompts."""


@dataclass(frozen=True, kw_only=True)
class PreparedGrpo(Prepared[GrpoConfig]):
    """A run that was checked. Of a dry run in a fresh folder fingerprint and lineage are empty."""

    prompts: PromptSource  # what is asked; of a dry run in a fresh folder, only what it has read of them
    held_out: PromptSource | None  # what validation asks; None for none
    is_whole: bool  # whether ``prompts`` are all

    def size(self) -> str:
        """Returns how much there is to do, in three lines."""
        config, prompts = self.config, self.prompts
        per_step = config.prompts_per_step * config.rollout.group_size
        more = "" if self.is_whole else "at least "
        return (
            f"{config.steps} steps of {config.prompts_per_step} prompts x {config.rollout.group_size} "
            f"responses = {per_step}, {config.algorithm.inner_steps} optimizer steps each\n"
            f"          {config.learner.workers} learners, {config.rollout.workers} samplers, at most "
            f"{config.slots} batches of {config.rollout.prompts_per_task} prompts in flight, responses at "
            f"most {config.rollout.max_staleness} steps old\n"
            f"          {more}{len(prompts)} prompts, {prompts.counts.get('none', 0)} of them without a "
            f"target; {0 if self.held_out is None else len(self.held_out)} held out; "
            f"{config.steps * config.prompts_per_step} are drawn"
        )


def prepare(config: GrpoConfig) -> PreparedGrpo:
    """Checks all that can be known before processes start; writes nothing.

    A dry run reads ``PEEKED`` samples of each corpus and no weights, unless a run has begun in its folder.

    Raises:
        SamtokError: For flags, weights, corpora or storage that cannot work together.
    """
    learner, rollout = config.learner, config.rollout
    config = dataclasses.replace(
        config,
        learner=dataclasses.replace(learner, worker=with_device(learner.worker)),
        rollout=dataclasses.replace(rollout, worker=with_device(rollout.worker)),
    )
    is_whole = not config.dry_run or has_begun(config.out)
    peek = None if is_whole else PEEKED
    prompts = load_prompts(config.chats, config.prompts, seed=config.seed, limit=config.limit, peek=peek)
    if (told := silence_pays(prompts.counts)) is not None:
        log.warning("%s", told)
    held_out = _held_out(config, peek)
    _check_model(config, prompts, held_out)
    check_engine(config.rollout)
    _check_reward(config, prompts)
    fingerprint: dict[str, Any] = {}
    lineage: dict[str, Any] = {}
    if is_whole:
        digest = weights_digest(config.model)
        fingerprint = {
            **settings_of(config, without=_FREE),
            "model": digest,
            "prompts": prompts.digest,
            "code_version": CODE_VERSION,
        }
        lineage = lineage_of(
            fingerprint,
            model={"uri": config.model, "sha256": digest},
            prompts=prompts.digest,
            mask_tokenizer_sha256=prompts.sources[0].corpus.weights_sha256,
        )
    return PreparedGrpo(
        config=config,
        prompts=prompts,
        held_out=held_out,
        is_whole=is_whole,
        fingerprint=fingerprint,
        lineage=lineage,
        deepspeed=deepspeed_of(config.learner, (1, 2, 3)),
    )


def silence_pays(counts: Mapping[str, int]) -> str | None:
    """Returns a warning if prompts without a target are more than those with one, by ``none`` and ``prompts``
    of a selection: whatever masks earn then is less than what saying nothing does."""
    none, targets = counts["none"], counts["prompts"] - counts["none"]
    if none <= targets:
        return None
    share = none / counts["prompts"]
    ratio = f"{none / targets:.2f}" if targets else "infinite"
    return (
        f"{share:.0%} of the prompts have no target: always saying so earns {share:.2f} on average, "
        f"masks with at most {1 - share:.2f} (p/(1-p) is {ratio}), so the model may stop saying masks. "
        "--prompts.none-share 0.3 leaves some of them out."
    )


def _held_out(config: GrpoConfig, peek: int | None) -> PromptSource | None:
    if not config.validation.chats:
        return None
    asked = PromptsConfig(
        thinking=config.prompts.thinking,
        tasks=config.prompts.tasks,
        max_prompt_tokens=config.prompts.max_prompt_tokens,
    )
    return load_prompts(config.validation.chats, asked, seed=config.seed, peek=peek, flag="validation.chats")


def _check_model(config: GrpoConfig, prompts: PromptSource, held_out: PromptSource | None) -> None:
    """Makes sure that model, mask tokenizer and prompts have the same words."""
    stated = read_folder(config.model, flag="--.model", owner=config)
    sources = [*prompts.sources, *(held_out.sources if held_out is not None else ())]
    check_vocabulary(stated, sources, config.model)
    check_packing(config.learner, stated.family)
    if not (config.reward.iou or config.validation.chats):
        return
    corpus = prompts.sources[0].corpus
    found = folders.read_config(config.tokenizer, read=storage.read_bytes).quantizer
    if (found.num_codes, found.num_levels) != (corpus.num_codes, corpus.num_levels):
        raise ConfigError(
            f"--.tokenizer {config.tokenizer} has {found.num_levels} x {found.num_codes} codes, the words of "
            f"the prompts {corpus.num_levels} x {corpus.num_codes}; give the one that made them.",
            owner=config,
        )


def _check_reward(config: GrpoConfig, prompts: PromptSource) -> None:
    """Scores a true answer, so that rewards that fail do so before anything is spent, and cheap ones, so that
    a reward says which of them it pays as well."""
    reward = config.reward
    rewards, elsewhere = rewards_of(reward), (IOU,) if reward.iou else ()
    first, *others = prompts.draws(0, min(TRIED, len(prompts)))
    question = prompts.prompt(first).question
    check_rewards(rewards, reward.weights, question, elsewhere=elsewhere)
    asked = [question, *_readable(prompts, others)]
    for hole in holes_of(asked, rewards=rewards, weights=reward.weights, elsewhere=elsewhere):
        log.warning("%s", hole)


def _readable(prompts: PromptSource, indices: Sequence[int]) -> Iterator[Question]:
    """Yields the questions that can be asked; the others become rejects when the run draws them."""
    for index in indices:
        with contextlib.suppress(DataError):
            yield prompts.prompt(index).question
