"""What is known of a training run before anything runs: paths, checks, fingerprint, lineage, corpora."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipelines import job as runs
from pipelines import provenance, shards, storage
from pipelines.ingestion.corpora import CorpusSpec
from pipelines.tokenizer_training.config import TrainTokenizerConfig
from pipelines.tokenizer_training.corpus import Index, build_index
from pipelines.tokenizer_training.trainee import architecture_of, check_quantize_from, freezes
from pipelines.tokenizer_training.worker import Task
from pipelines.training.mixture import check_weights
from pipelines.training.resume import claim, has_begun
from samtok import checkpoint
from samtok.errors import ConfigError

log = logging.getLogger(__name__)

CODE_VERSION = 1
"""Raised by hand with every change of the code that changes what is learnt."""

_FREE = ("out", "workers", "checkpoints", "log_every_s", "tracking", "dry_run", "max_bad_steps", "engine")
"""Fields that a resumed run may change: they do not change what is learnt, but for rounding."""


def resolve(config: TrainTokenizerConfig) -> TrainTokenizerConfig:
    """Makes paths absolute and fills in what the machine decides.

    Raises:
        ConfigError: If a relative place would be lost, or a corpus is misspelt.
    """
    runs.refuse_lost_folders(config.out, config.tracking)
    gpus = config.workers.gpus
    if gpus is None:
        gpus = 1.0 if torch.cuda.is_available() else 0.0
    start = config.start
    if start.tokenizer and checkpoint.resolve(start.tokenizer) == start.tokenizer.rstrip("/"):
        start = dataclasses.replace(start, tokenizer=storage.absolute(start.tokenizer))
    if start.sam2:
        start = dataclasses.replace(start, sam2=storage.absolute(start.sam2))
    for flag, specs in (("corpora", config.corpora), ("validation-corpora", config.validation_corpora)):
        for text in specs:
            CorpusSpec.parse(text, flag=flag)
    return dataclasses.replace(
        config,
        out=storage.absolute(config.out),
        start=start,
        workers=dataclasses.replace(config.workers, gpus=gpus),
    )


def prepare(config: TrainTokenizerConfig) -> Task:
    """Checks all that can be known before workers start, and lists the corpora.

    Raises:
        SamtokError: For flags, weights, data or storage that cannot work.
    """
    architecture_of(config)
    check_quantize_from(config)
    deepspeed = _deepspeed(config)
    if not config.dry_run:
        storage.check(config.out)
    specs, held_out = _specs(config)
    with _index_folder(config) as folder:
        training = _index(specs, storage.join(folder, "train"), config.out)
        validation = _index(held_out, storage.join(folder, "validation"), config.out)
    start = _start(config)
    fingerprint = _fingerprint(config, start, training, validation)
    claim(config.out, fingerprint, dry_run=config.dry_run)
    digest = shards.digest(fingerprint)
    lineage = {
        "fingerprint": digest,
        "start": start,
        "corpora": list(config.corpora) or f"synthetic scenes, seed {config.seed}",
        "versions": provenance.versions(),
    }
    return Task(config, digest, lineage, training, validation, deepspeed)


def _specs(config: TrainTokenizerConfig) -> tuple[list[CorpusSpec], list[CorpusSpec]]:
    """Returns the corpora to train and to measure on.

    Raises:
        ConfigError: If only some have weights, or one to measure on has.
    """
    specs = [CorpusSpec.parse(text, flag="corpora").absolute() for text in config.corpora]
    held_out = [CorpusSpec.parse(t, flag="validation-corpora").absolute() for t in config.validation_corpora]
    check_weights([spec.weight for spec in specs])
    if weighted := [spec.name for spec in held_out if spec.weight is not None]:
        raise ConfigError(
            f"--validation-corpora {', '.join(weighted)} has a weight, but held-out images are taken in "
            "turn; drop weight="
        )
    trained = [spec.corpus for spec in specs]
    for spec in held_out:
        if spec.corpus in trained:
            log.warning(
                "%s is trained on and measured on; its numbers say nothing of other images", spec.name
            )
    return specs, held_out


@contextlib.contextmanager
def _index_folder(config: TrainTokenizerConfig) -> Iterator[str]:
    """Gives the folder for the lists of corpora; a dry run leaves none behind."""
    if not config.dry_run:
        yield config.out
        return
    with tempfile.TemporaryDirectory() as folder:
        yield folder


def _index(specs: Sequence[CorpusSpec], folder: str, out: str) -> Index | None:
    """Lists corpora; the list of an attempt that trained nothing makes place for one of other corpora."""
    if not specs:
        return None
    try:
        return build_index(specs, folder)
    except ConfigError:
        if has_begun(out):
            raise
        storage.delete_folder(folder)
        return build_index(specs, folder)


def _deepspeed(config: TrainTokenizerConfig) -> Mapping[str, Any] | None:
    if config.engine.deepspeed is None:
        return None
    from pipelines.training.engine_deepspeed import read_deepspeed_config

    return read_deepspeed_config(config.engine.deepspeed)


def _start(config: TrainTokenizerConfig) -> dict[str, str]:
    """Returns where the weights come from, with their SHA-256."""
    if config.start.tokenizer:
        weights = checkpoint.read_weights(config.start.tokenizer, read=storage.read_bytes)
        return {"tokenizer": config.start.tokenizer, "sha256": hashlib.sha256(weights).hexdigest()}
    if config.start.sam2:
        with storage.local_copy(config.start.sam2) as path:
            return {"sam2": config.start.sam2, "sha256": _sha256_of(path)}
    return {"random": f"seed {config.seed}"}


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fingerprint(
    config: TrainTokenizerConfig, start: Mapping[str, str], training: Index | None, validation: Index | None
) -> dict[str, Any]:
    """Returns all that decides what is learnt; where files lie is not in it, what they hold is."""
    body = json.loads(provenance.config_json(config))
    for name in (*_FREE, "corpora", "validation_corpora", "start"):
        del body[name]
    return {
        **body,
        "freeze": freezes(config),
        "precision": config.engine.precision,
        "architecture": shards.digest(architecture_of(config).to_json()),
        "start": start.get("sha256", "random"),
        "train": training.digest if training else "scenes",
        "held_out": validation.digest if validation else "scenes",
        "code_version": CODE_VERSION,
    }


def dry_run(task: Task) -> int:
    """Prints what would be done."""
    config = task.config
    sys.stdout.write(provenance.config_json(config))
    architecture = architecture_of(config)
    images = config.sampling.images_per_step
    quantizer = architecture.quantizer
    known = task.training_index.num_images if task.training_index else config.scenes_needed
    sys.stdout.write(
        f"run: {config.steps} steps of {images} images and at most "
        f"{images * config.sampling.masks_per_image} masks; {config.workers.count} workers with "
        f"{config.images_per_worker} images each, in micro-batches of {config.micro_images}\n"
        f"data: {known} images, {config.steps * images / known:.2f} epochs\n"
        f"words: {quantizer.kind} of {quantizer.num_levels} x {quantizer.num_codes}, "
        f"{quantizer.num_words} words, {quantizer.bits_per_mask:.1f} bits a mask\n"
        f"frozen: {'image encoder, prompt encoder, IoU and object heads' if freezes(config) else 'nothing'}\n"
    )
    return 0
