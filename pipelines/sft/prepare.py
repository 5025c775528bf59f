"""Checks a fine-tuning run before anything runs: model, corpora, fingerprint. Loads no torch."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.chats.corpus import load_chat_corpus
from pipelines.chats.source import ChatSource, check_vocabulary, require_images
from pipelines.chats.spec import chat_specs_of
from pipelines.cluster import with_device
from pipelines.generation.models import read_folder, weights_digest
from pipelines.inputs import require_tokenizer
from pipelines.sft.config import TrainMllmConfig
from pipelines.training.deepspeed_file import deepspeed_of
from pipelines.training.mixture import check_weights
from pipelines.training.prepare import Prepared, check_packing, lineage_of, settings_of
from samtok.errors import ConfigError, DataError

CODE_VERSION = 2
"""Raised with every change of the code that changes what is learnt (tests/pipelines/test_fingerprints.py)."""


@dataclass(frozen=True, kw_only=True)
class PreparedMllm(Prepared[TrainMllmConfig]):
    """A fine-tuning run that was checked."""

    corpora: tuple[ChatSource, ...]  # to train on
    weights: tuple[float | None, ...]  # of each in the mixture, or None for all of them
    held_out: tuple[ChatSource, ...]  # to validate on

    def size(self) -> str:
        """Returns the size of the run in a few lines."""
        config, known, chats = self.config, sum(map(len, self.corpora)), self.config.per_step
        words = self.corpora[0].corpus  # all of them agree
        tokens = config.micro_batch_tokens
        most = config.micro if tokens is None else f"at most {tokens} tokens"
        return (
            f"{config.steps} steps of {chats} chats; {config.workers} workers with {config.per_worker} chats "
            f"each, in micro-batches of {most}{', packed' if config.engine.packing else ''}\n"
            f"data      {known} chats of {len(self.corpora)} corpora, "
            f"{config.steps * chats / known:.2f} epochs; {sum(map(len, self.held_out))} held out\n"
            f"words     {words.num_levels} x {words.num_codes} codes\n"
            f"trained   {', '.join(config.trained)}"
        )


def prepare(config: TrainMllmConfig) -> PreparedMllm:
    """Checks all that can be known before workers start; raises SamtokError for flags, weights or corpora
    that cannot work together."""
    config = dataclasses.replace(config, worker=with_device(config.worker))
    deepspeed = deepspeed_of(config.engine, (1, 2, 3))
    require_tokenizer(config.tokenizer)
    folder = read_folder(config.model, flag="--.model", owner=config)
    check_packing(config.engine, folder.family)
    corpora, weights = _sources(config.chats, "chats", config.limit)
    held_out, held_out_weights = _sources(config.validation.chats, "validation.chats")
    check_weights(weights)
    if any(weight is not None for weight in held_out_weights):
        raise ConfigError(
            "--.chats takes no weight=, since held-out chats are taken in turn.", owner=config.validation
        )
    check_vocabulary(folder, [*corpora, *held_out], config.model)
    if config.epochs is not None:
        steps = max(1, round(config.epochs * sum(map(len, corpora)) / config.per_step))
        config = dataclasses.replace(config, steps=steps, epochs=None)
    digest = weights_digest(config.model)
    fingerprint = {
        **settings_of(config, without=("model", "chats", "validation.chats", "tokenizer")),
        "model": digest,
        "train_on": [
            [source.corpus.digest, source.limit, weight]
            for source, weight in zip(corpora, weights, strict=True)
        ],
        "held_out": [[source.corpus.digest, source.limit] for source in held_out],
        "code_version": CODE_VERSION,
    }
    lineage = lineage_of(
        fingerprint,
        model={"uri": config.model, "sha256": digest, "family": folder.family},
        corpora=[{"uri": source.corpus.uri, "digest": source.corpus.digest} for source in corpora],
        mask_tokenizer_sha256=corpora[0].corpus.weights_sha256,
    )
    return PreparedMllm(
        config=config,
        fingerprint=fingerprint,
        lineage=lineage,
        deepspeed=deepspeed,
        corpora=tuple(corpora),
        weights=tuple(weights),
        held_out=tuple(held_out),
    )


def _sources(
    texts: Sequence[str], flag: str, limit: int | None = None
) -> tuple[list[ChatSource], list[float | None]]:
    sources, weights = [], []
    for spec in chat_specs_of(texts, flag=flag):
        limits = [one for one in (spec.limit, limit) if one is not None]
        source = ChatSource(load_chat_corpus(spec.uri, flag=f"--{flag}"), min(limits, default=None))
        if len(source) == 0:
            raise DataError(f"--{flag} {spec.uri} has no samples; look at its rejects.")
        require_images(source)
        sources.append(source)
        weights.append(spec.weight)
    return sources, weights
