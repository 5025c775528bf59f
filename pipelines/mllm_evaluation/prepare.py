"""What is known before anything runs: whether model, tokenizer and chats fit; the fingerprint, the plan."""

import dataclasses
import hashlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pipelines import job as runs
from pipelines import provenance, schema, shards, storage
from pipelines.chats.corpus import ChatCorpus, load_chat_corpus, rows_of
from pipelines.ingestion.reader import Input
from pipelines.mllm_evaluation import models
from pipelines.mllm_evaluation.config import EvaluateMllmConfig
from pipelines.mllm_evaluation.rows import inputs_of
from samtok import checkpoint
from samtok.config import MaskTokenizerConfig
from samtok.errors import ConfigError, DataError
from samtok.metrics.referring import MODES, Mode
from samtok.metrics.text_masks import Reading
from samtok.mllm.adapters import load_adapter
from samtok.mllm.family import Adapter

log = logging.getLogger(__name__)

CODE_VERSION = 1
"""Raised by hand with every change of the code that changes answers or their scores."""


@dataclass(frozen=True)
class Job:
    """An evaluation that was checked: everything it needs is there and fits."""

    config: EvaluateMllmConfig
    """With absolute local paths, and the device chosen."""
    chat: ChatCorpus
    fingerprint: Mapping[str, Any]
    """All that decides the rows; a run with another one is refused."""
    readings: Mapping[Mode, Reading]
    """How texts become masks in each mode of scoring."""


def prepare(config: EvaluateMllmConfig) -> Job:
    """Checks what can be known before Ray starts.

    Raises:
        ConfigError: If the model, the tokenizer and the chats do not speak the same words.
        CheckpointError: If model or tokenizer cannot be read.
        DataError: If the corpus of chats is not finished.
    """
    runs.refuse_lost_folders(config.out, config.tracking)
    config = _resolved(config)
    if not config.dry_run:
        storage.check(config.out)
    chat = load_chat_corpus(config.chat)
    architecture = checkpoint.read_config(config.tokenizer, read=storage.read_bytes)
    weights = checkpoint.read_weights(config.tokenizer, read=storage.read_bytes)
    tokenizer_sha256 = hashlib.sha256(weights).hexdigest()
    with models.local_folder(config.model, weights=False) as folder:
        adapter = load_adapter(folder)
    check_words(config, adapter, chat, architecture, tokenizer_sha256)
    readings = readings_of(config, architecture.quantizer.num_levels)
    fingerprint = _fingerprint(config, chat, architecture, tokenizer_sha256, adapter.family)
    return Job(config, chat, fingerprint, readings)


def _resolved(config: EvaluateMllmConfig) -> EvaluateMllmConfig:
    """Makes local paths mean the same in workers, and chooses the device."""
    shipped = checkpoint.resolve(config.tokenizer) != config.tokenizer.rstrip("/")
    pool = config.pool
    if pool.gpus_per_actor is None:
        pool = dataclasses.replace(pool, gpus_per_actor=1.0 if torch.cuda.is_available() else 0.0)
    beside = [text.partition("=") for text in config.beside]
    return dataclasses.replace(
        config,
        model=storage.absolute(config.model.rstrip("/")),
        chat=storage.absolute(config.chat.rstrip("/")),
        out=storage.absolute(config.out),
        tokenizer=config.tokenizer if shipped else storage.absolute(config.tokenizer),
        beside=tuple(f"{name}={storage.absolute(folder)}" for name, _, folder in beside),
        pool=pool,
    )


def check_words(
    config: EvaluateMllmConfig,
    adapter: Adapter,
    chat: ChatCorpus,
    architecture: MaskTokenizerConfig,
    tokenizer_sha256: str,
) -> None:
    """Makes sure that one word means one mask to the model, the chats and the tokenizer.

    Raises:
        ConfigError: Naming the two that differ. A tokenizer that is not recorded is not compared.
    """
    quantizer = architecture.quantizer
    known = {
        "--tokenizer": (quantizer.num_codes, quantizer.num_levels, tokenizer_sha256),
        "--model": (
            adapter.vocabulary.num_codes,
            adapter.vocabulary.num_levels,
            adapter.tokenizer_sha256,
        ),
        "--chat": (chat.num_codes, chat.num_levels, chat.weights_sha256),
    }
    own_codes, own_levels, own_sha256 = known.pop("--tokenizer")
    for flag, (codes, levels, sha256) in known.items():
        place = config.model if flag == "--model" else config.chat
        if (codes, levels) != (own_codes, own_levels):
            raise ConfigError(
                f"{flag} {place} has words of {levels} levels with {codes} codes each, --tokenizer "
                f"{config.tokenizer} has {own_levels} with {own_codes}. Give the tokenizer that its words "
                "were made with."
            )
        if sha256 is not None and sha256 != own_sha256:
            raise ConfigError(
                f"{flag} {place} has the words of another mask tokenizer (weights {sha256[:12]}) than "
                f"--tokenizer {config.tokenizer} ({own_sha256[:12]}), so its words mean other masks. "
                "Give the tokenizer that its words were made with."
            )


def readings_of(config: EvaluateMllmConfig, num_levels: int) -> dict[Mode, Reading]:
    """Returns the modes of scoring: the authors' scripts know words of two levels only."""
    found: dict[Mode, Reading] = {mode: Reading.of(config.benchmark, mode) for mode in MODES}
    found["strict"] = dataclasses.replace(found["strict"], malformed=config.broken_words)
    return found if num_levels == 2 else {"strict": found["strict"]}


def _fingerprint(
    config: EvaluateMllmConfig,
    chat: ChatCorpus,
    architecture: MaskTokenizerConfig,
    tokenizer_sha256: str,
    family: str,
) -> dict[str, Any]:
    """How many actors there are is not in it, nor where things lie, but for the images that chats name."""
    return {
        "kind": "predictions",
        "benchmark": config.benchmark,
        "chat": chat.digest,
        "tasks": sorted(config.asked_tasks),
        "turns": config.turns,
        "limit": config.limit,
        "family": family,
        "model_sha256": models.sha256_of(config.model),
        "tokenizer_sha256": tokenizer_sha256,
        "num_codes": architecture.quantizer.num_codes,
        "num_levels": architecture.quantizer.num_levels,
        "grammar": config.grammar,
        "broken_words": config.broken_words,
        "scored_part": config.scored_part,
        "device": "cuda" if config.pool.gpus_per_actor else "cpu",
        "threads_per_actor": config.pool.threads_per_actor,
        "shard_rows": config.shard_rows,
        **dataclasses.asdict(config.generation),
        "schema_version": schema.SCHEMA_VERSION,
        "code_version": CODE_VERSION,
    }


_QUESTIONS = ("benchmark", "chat", "tasks", "turns", "limit")


def questions_digest(fingerprint: Mapping[str, Any]) -> str:
    """Returns what two runs must have in common so that their numbers can stand side by side."""
    return shards.digest({name: fingerprint[name] for name in _QUESTIONS})


def plan_of(job: Job) -> shards.Plan:
    """Returns the plan of an earlier run of the same job, or makes it.

    Raises:
        ConfigError: If the earlier run had other settings.
        DataError: If the chats have no question of the wanted tasks, or no masks to compare with.
    """
    config, plan = job.config, shards.load_plan(job.config.out)
    if plan is not None:
        shards.check_fingerprint(plan, job.fingerprint)
        return plan
    log.info("planning %s from %s", config.out, config.chat)
    rows = config.shard_rows
    return shards.make_plan(config.out, job.fingerprint, _inputs(job), shard_rows=rows, chunk_rows=rows)


def _inputs(job: Job) -> Iterator[Input]:
    config = job.config
    found = inputs_of(rows_of(job.chat), tasks=config.asked_tasks, turns=config.turns)
    if not found:
        there = sorted({row["task"] for row in rows_of(job.chat)})
        raise DataError(
            f"{config.chat} has no questions of the tasks {', '.join(config.asked_tasks)}; it has "
            f"{', '.join(there) or 'none at all'}. Choose --tasks, or compose chats for {config.benchmark}."
        )
    yield from found[: config.limit]


def dry_run(job: Job) -> int:
    """Prints what would be done: the config, the fingerprint, and how much is left to do."""
    sys.stdout.write(provenance.config_json(job.config))
    sys.stdout.write(json.dumps(dict(job.fingerprint), indent=2) + "\n")
    sys.stdout.write(f"plan: {_foresee(job)}\n")
    return 0


def _foresee(job: Job) -> str:
    plan = shards.load_plan(job.config.out)
    if plan is not None:
        shards.check_fingerprint(plan, job.fingerprint)
        left = len(plan.shard_rows) - len(shards.committed(plan))
        return f"{plan.num_inputs} images in {len(plan.shard_rows)} shards, {left} left"
    found = list(_inputs(job))
    questions = sum(item.num_masks or 0 for item in found)
    return f"{len(found)} images, {questions} questions, {-(-len(found) // job.config.shard_rows)} shards"
