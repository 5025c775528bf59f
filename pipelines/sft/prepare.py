"""What is known of a fine-tuning run before anything runs: paths, checks, fingerprint, lineage, corpora."""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pipelines import job as runs
from pipelines import provenance, shards, storage
from pipelines.chats.corpus import load_chat_corpus
from pipelines.chats.source import ChatSource, check_vocabulary
from pipelines.chats.spec import ChatCorpusSpec
from pipelines.sft.config import TrainMllmConfig
from pipelines.sft.worker import Task
from pipelines.training.mixture import check_weights
from pipelines.training.mllm_export import weights_digest
from pipelines.training.resume import claim
from samtok import checkpoint
from samtok.errors import CheckpointError, ConfigError, DataError
from samtok.mllm.adapters import load_adapter
from samtok.mllm.family import Adapter

CODE_VERSION = 1
"""Raised by hand with every change of the code that changes what is learnt."""

_FREE = (
    *("out", "workers", "checkpoints", "log_every_s", "tracking", "dry_run", "max_bad_steps"),
    *("max_reject_rate", "engine", "tokenizer"),
)
"""Fields that a resumed run may change: they do not change what is learnt, but for rounding."""


def resolve(config: TrainMllmConfig) -> TrainMllmConfig:
    """Makes paths absolute and fills in what the machine decides.

    Raises:
        ConfigError: If a relative place would be lost, or a corpus is misspelt.
    """
    runs.refuse_lost_folders(config.out, config.tracking)
    gpus = config.workers.gpus
    if gpus is None:
        gpus = 1.0 if torch.cuda.is_available() else 0.0
    for flag, texts in (("corpora", config.corpora), ("validation-corpora", config.validation_corpora)):
        for text in texts:
            ChatCorpusSpec.parse(text, flag=flag)
    tokenizer = config.tokenizer
    if checkpoint.resolve(tokenizer) == tokenizer.rstrip("/"):
        tokenizer = storage.absolute(tokenizer)
    return dataclasses.replace(
        config,
        out=storage.absolute(config.out),
        model=storage.absolute(config.model),
        tokenizer=tokenizer,
        workers=dataclasses.replace(config.workers, gpus=gpus),
    )


def prepare(config: TrainMllmConfig) -> Task:
    """Checks all that can be known before workers start.

    Raises:
        SamtokError: For flags, weights, corpora or storage that cannot work together.
    """
    deepspeed = _deepspeed(config)
    if not config.dry_run:
        storage.check(config.out)
    adapter = _adapter(config)
    corpora, weights = _sources(config.corpora, "corpora")
    held_out, held_out_weights = _sources(config.validation_corpora, "validation-corpora")
    check_weights(weights)
    if any(weight is not None for weight in held_out_weights):
        raise ConfigError("--validation-corpora take no weight=; held-out chats are taken in turn")
    check_vocabulary(adapter, [*corpora, *held_out], config.model)
    config = _with_steps(config, sum(map(len, corpora)))
    digest = weights_digest(config.model)
    fingerprint = _fingerprint(config, digest, corpora, weights, held_out)
    claim(config.out, fingerprint, dry_run=config.dry_run)
    lineage = {
        "fingerprint": shards.digest(fingerprint),
        "model": {"uri": config.model, "sha256": digest, "family": adapter.family},
        "corpora": [{"uri": s.corpus.uri, "digest": s.corpus.digest} for s in corpora],
        "mask_tokenizer_sha256": corpora[0].corpus.weights_sha256,
        "versions": provenance.versions(),
    }
    return Task(
        config, lineage["fingerprint"], lineage, tuple(corpora), tuple(weights), tuple(held_out), deepspeed
    )


def _with_steps(config: TrainMllmConfig, chats: int) -> TrainMllmConfig:
    """Turns epochs into steps."""
    if config.epochs is None:
        return config
    steps = max(1, round(config.epochs * chats / config.sampling.samples_per_step))
    return dataclasses.replace(config, steps=steps, epochs=None)


def _deepspeed(config: TrainMllmConfig) -> Mapping[str, Any] | None:
    if config.engine.deepspeed is None:
        return None
    from pipelines.training.engine_deepspeed import read_deepspeed_config

    return read_deepspeed_config(config.engine.deepspeed, stages=(1, 2, 3))


def _adapter(config: TrainMllmConfig) -> Adapter:
    """Loads the model's adapter, without its weights.

    Raises:
        CheckpointError: If the folder is no model with mask words.
        ConfigError: If its family cannot be packed and should be.
    """
    try:
        with storage.local_folder(config.model) as folder:
            adapter = load_adapter(folder)
    except storage.NotFoundError as error:
        raise CheckpointError(f"--model {config.model}: {error}") from error
    if config.engine.packing and type(adapter).positions is Adapter.positions:
        raise ConfigError(
            f"--engine.packing: no call is known that keeps packed chats of {adapter.family} apart; leave "
            "the flag out. Micro-batches of like lengths cost little."
        )
    return adapter


def _sources(texts: Sequence[str], flag: str) -> tuple[list[ChatSource], list[float | None]]:
    sources, weights = [], []
    for text in texts:
        told = ChatCorpusSpec.parse(text, flag=flag)
        source = ChatSource(load_chat_corpus(storage.absolute(told.uri)), told.limit)
        if len(source) == 0:
            raise DataError(f"--{flag} {told.uri} has no samples; look at its rejects.")
        sources.append(source)
        weights.append(told.weight)
    return sources, weights


def _fingerprint(
    config: TrainMllmConfig,
    model: str,
    corpora: Sequence[ChatSource],
    weights: Sequence[float | None],
    held_out: Sequence[ChatSource],
) -> dict[str, Any]:
    """Returns all that decides what is learnt; where files lie is not in it, what they hold is."""
    body = json.loads(provenance.config_json(config))
    for name in (*_FREE, "model", "corpora", "validation_corpora"):
        del body[name]
    return {
        **body,
        "precision": config.engine.precision,
        "model": model,
        "train_on": [
            [source.corpus.digest, source.limit, weight]
            for source, weight in zip(corpora, weights, strict=True)
        ],
        "held_out": [[source.corpus.digest, source.limit] for source in held_out],
        "code_version": CODE_VERSION,
    }


def dry_run(task: Task) -> int:
    """Prints what would be done."""
    config, known = task.config, sum(map(len, task.corpora))
    samples = config.sampling.samples_per_step
    trained = [name for name, on in dataclasses.asdict(config.train).items() if on]
    sys.stdout.write(
        f"{provenance.config_json(config)}"
        f"run: {config.steps} steps of {samples} chats; {config.workers.count} workers with "
        f"{config.samples_per_worker} chats each, in micro-batches of {config.micro_samples}"
        f"{', packed' if config.engine.packing else ''}\n"
        f"data: {known} chats of {len(task.corpora)} corpora, {config.steps * samples / known:.2f} epochs; "
        f"{sum(map(len, task.held_out))} held out\n"
        f"words: {task.first_corpus.num_levels} x {task.first_corpus.num_codes} codes\n"
        f"trained: {', '.join(trained)}\n"
    )
    return 0
