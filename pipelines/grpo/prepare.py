"""What is known of a run before anything runs: paths, checks, fingerprint, lineage, prompts."""

import dataclasses
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pipelines import job as runs
from pipelines import provenance, shards, storage
from pipelines.chats.prompt_selection import load_prompts
from pipelines.chats.prompts import PromptsConfig, PromptSource
from pipelines.chats.source import check_vocabulary
from pipelines.embedded.corpora import make_chats
from pipelines.grpo.config import GrpoConfig
from pipelines.grpo.learn.learner import LearnerTask
from pipelines.grpo.reward.components import check_rewards, rewards_of
from pipelines.training.mllm_folder import weights_digest
from pipelines.training.resume import claim
from samtok import checkpoint
from samtok.errors import CheckpointError, ConfigError
from samtok.mllm.adapters import load_adapter
from samtok.rewards.iou import NAME as IOU
from samtok.rl.policy import PolicySettings, unusual_clips

TEMPORARY = "temporary"
"""As --out: a fresh folder of this machine, which the log names."""

EMBEDDED = "embedded-"
"""Before the name of a task, as --prompts.corpora: a small synthetic corpus that is made first."""

EMBEDDED_SCENES = 64

CODE_VERSION = 1
"""Raised by hand with every change of the code that changes what is learnt."""

_FREE = (
    *("out", "model", "tokenizer", "prompts", "placement", "sync", "gates", "watch", "looks", "checkpoints"),
    *("trajectories_every", "max_reject_rate", "max_bad_steps", "num_cpus", "tracking"),
    "dry_run",
)
_FREE_ROLLOUT = ("actors", "gpus", "cpus", "threads", "max_failures", "timeout_s", "python")
"""Fields that a resumed run may change: they do not change what is learnt, but for rounding."""


@dataclass(frozen=True)
class Plan:
    """A run that can begin."""

    task: LearnerTask
    prompts: PromptSource
    held_out: PromptSource | None

    @property
    def config(self) -> GrpoConfig:
        """The run, with paths made absolute."""
        return self.task.config


def resolve(config: GrpoConfig) -> GrpoConfig:
    """Makes paths absolute and fills in what the machine decides.

    Raises:
        ConfigError: If a relative place would be lost.
    """
    if config.out == TEMPORARY:
        config = _temporary(config)
    runs.refuse_lost_folders(config.out, config.tracking)
    gpus = 1.0 if torch.cuda.is_available() else 0.0

    def filled(part: Any) -> Any:
        return part if part.gpus is not None else dataclasses.replace(part, gpus=gpus)

    return dataclasses.replace(
        config,
        out=storage.absolute(config.out),
        model=_anchored(config.model),
        tokenizer=_anchored(config.tokenizer),
        learner=filled(config.learner),
        rollout=filled(config.rollout),
    )


def _temporary(config: GrpoConfig) -> GrpoConfig:
    """Gives a run a fresh folder, and its MLflow database a place in it."""
    folder = tempfile.mkdtemp(prefix="samtok-grpo-")
    tracking = config.tracking
    if tracking == GrpoConfig.tracking:
        tracking = f"sqlite:///{folder}/mlflow.db"
    return dataclasses.replace(config, out=storage.join(folder, "run"), tracking=tracking)


def with_embedded(config: GrpoConfig) -> GrpoConfig:
    """Makes the embedded corpora that a config names; Ray may be connected already."""
    home = storage.join(config.out, "embedded")
    task = config.prompts.corpora[0].removeprefix(EMBEDDED)
    if task not in ("gres", "gcg"):
        return config
    train, held_out = storage.join(home, f"{task}-train"), storage.join(home, f"{task}-val")
    make_chats(train, task)
    make_chats(held_out, task, held_out=True)
    prompts = dataclasses.replace(config.prompts, corpora=(storage.join(train, "chats"),))
    looks = dataclasses.replace(config.looks, corpora=(storage.join(held_out, "chats"),))
    return dataclasses.replace(config, prompts=prompts, looks=looks)


def _anchored(uri: str) -> str:
    """Makes a path absolute; the name of what ships stays, since every node has its own copy."""
    return storage.absolute(uri) if checkpoint.resolve(uri) == uri.rstrip("/") else uri


def prepare(config: GrpoConfig) -> Plan:
    """Checks all that can be known before processes start.

    Raises:
        SamtokError: For flags, weights, corpora or storage that cannot work together.
    """
    if not config.dry_run:
        storage.check(config.out)
    prompts = load_prompts(config.prompts, seed=config.seed)
    held_out = _held_out(config)
    _check_model(config, prompts, held_out)
    _check_reward(config, prompts)
    told = config.algorithm.resolved
    odd = unusual_clips(PolicySettings(told.limit, told.clip_low, told.clip_high, config.algorithm.dual_clip))
    if odd is not None:
        sys.stderr.write(f"warning: {odd}\n")
    digest = weights_digest(checkpoint.resolve(config.model))
    fingerprint = _fingerprint(config, digest, prompts)
    claim(config.out, fingerprint, dry_run=config.dry_run)
    lineage = {
        "fingerprint": shards.digest(fingerprint),
        "model": {"uri": config.model, "sha256": digest},
        "prompts": prompts.digest,
        "mask_tokenizer_sha256": prompts.sources[0].corpus.weights_sha256,
        "versions": provenance.versions(),
    }
    task = LearnerTask(config, lineage["fingerprint"], lineage, _deepspeed(config))
    return Plan(task, prompts, held_out)


def _held_out(config: GrpoConfig) -> PromptSource | None:
    if not config.looks.corpora:
        return None
    asked = PromptsConfig(
        corpora=config.looks.corpora,
        thinking=config.prompts.thinking,
        tasks=config.prompts.tasks,
        max_prompt_tokens=config.prompts.max_prompt_tokens,
    )
    return load_prompts(asked, seed=config.seed)


def _check_model(config: GrpoConfig, prompts: PromptSource, held_out: PromptSource | None) -> None:
    """Makes sure that model and prompts speak the same words."""
    try:
        with storage.local_folder(checkpoint.resolve(config.model)) as folder:
            adapter = load_adapter(folder)
    except storage.NotFoundError as error:
        raise CheckpointError(f"--model {config.model}: {error}") from error
    sources = [*prompts.sources, *(held_out.sources if held_out is not None else ())]
    check_vocabulary(adapter, sources, config.model)
    _check_tokenizer(config, prompts)


def _check_tokenizer(config: GrpoConfig, prompts: PromptSource) -> None:
    """Makes sure that the mask tokenizer, where it is needed, made these words."""
    if not (config.reward.iou or config.looks.corpora):
        return
    corpus = prompts.sources[0].corpus
    found = checkpoint.read_config(config.tokenizer, read=storage.read_bytes).quantizer
    if (found.num_codes, found.num_levels) != (corpus.num_codes, corpus.num_levels):
        raise ConfigError(
            f"--tokenizer {config.tokenizer} has {found.num_levels} x {found.num_codes} codes, the prompts' "
            f"words {corpus.num_levels} x {corpus.num_codes}; give the one that made them"
        )


def _check_reward(config: GrpoConfig, prompts: PromptSource) -> None:
    """Scores a true answer, so that rewards that fail are told before anything is spent."""
    reward = config.reward
    rewards = rewards_of(
        reward.plug_ins,
        tp=reward.true_positives,
        count_malformed=reward.count_malformed,
        partial=reward.partial,
    )
    question = prompts.prompt(prompts.draws(0, 1)[0]).question
    check_rewards(rewards, reward.weights, question, elsewhere=(IOU,) if reward.iou else ())


def _deepspeed(config: GrpoConfig) -> Mapping[str, Any] | None:
    if config.learner.deepspeed is None:
        return None
    from pipelines.training.deepspeed_file import read_deepspeed_config

    return read_deepspeed_config(config.learner.deepspeed, stages=(1, 2, 3), owner=config.learner)


def _fingerprint(config: GrpoConfig, model: str, prompts: PromptSource) -> dict[str, Any]:
    """Returns all that decides what is learnt; where files lie is not in it, what they hold is."""
    body = json.loads(provenance.config_json(config))
    for name in _FREE:
        del body[name]
    for name in _FREE_ROLLOUT:
        del body["rollout"][name]
    body["learner"] = {"precision": config.learner.precision}
    body["reward"] = {k: v for k, v in body["reward"].items() if k not in ("workers", "gpus_per_worker")}
    return {**body, "model": model, "prompts": prompts.digest, "code_version": CODE_VERSION}


def describe(plan: Plan) -> str:
    """Returns the resolved config and the size of the run as text; both presets are seen in full so."""
    config, prompts = plan.config, plan.prompts
    replies = config.prompts_per_step * config.rollout.group_size
    told = config.algorithm.resolved
    return (
        f"{provenance.config_json(config)}"
        f"algorithm: {config.algorithm.name}: {told}\n"
        f"run: {config.steps} steps of {config.prompts_per_step} prompts x {config.rollout.group_size} "
        f"replies = {replies}, {config.algorithm.inner_steps} optimizer steps each; "
        f"{config.learner.count} learners, "
        f"{config.rollout.actors} samplers, at most {config.slots} tasks of "
        f"{config.rollout.prompts_per_task} prompts under way, replies at most "
        f"{config.rollout.max_staleness} steps old\n"
        f"prompts: {len(prompts)}, {prompts.counts.get('none', 0)} of them without a target, "
        f"{config.steps * config.prompts_per_step / len(prompts):.2f} epochs; "
        f"{0 if plan.held_out is None else len(plan.held_out)} held out\n"
    )
