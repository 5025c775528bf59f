"""What is known before anything runs: the reader, the architecture, the fingerprint, the plan."""

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
from pipelines import schema, shards, storage
from pipelines.ingestion.corpora import absolute_corpus, reader_of
from pipelines.ingestion.reader import Input, Reader, Reject
from pipelines.tokenization.config import TokenizeCorpusConfig
from samtok import checkpoint
from samtok.config import MaskTokenizerConfig
from samtok.errors import ConfigError

log = logging.getLogger(__name__)

CODE_VERSION = 2
"""Raised by hand with every change of the code that changes words or rows."""

MAX_CHUNK_BYTES = 2**30
CHUNK_BYTES, MAX_CHUNK_ROWS = 48 * 2**20, 64
"""A chunk's pixels travel through Ray's object store at once; much smaller ones leave actors waiting for Ray:
at 128 px on two cores, chunks of 64 images gave 1.8 times the rate of chunks of 16."""


@dataclass(frozen=True)
class Job:
    """A tokenization that was checked: everything it needs is there and fits."""

    config: TokenizeCorpusConfig
    """With absolute local paths, and all that depends on the architecture filled in."""
    reader: Reader
    architecture: MaskTokenizerConfig
    fingerprint: Mapping[str, Any]
    """All that decides the bytes of the shards; a run with another one is refused."""


def prepare(config: TokenizeCorpusConfig) -> Job:
    """Checks what can be known before Ray starts: the storage, the dataset's files, the tokenizer."""
    runs.refuse_lost_folders(config.out, config.tracking)
    config = _with_absolute_paths(config)
    if not config.dry_run:
        storage.check(config.out)
    architecture = checkpoint.read_config(config.tokenizer.uri, read=storage.read_bytes)
    config = _filled_in(config, architecture)
    reader = reader_of(config.corpus)
    return Job(config, reader, architecture, _fingerprint(config, reader, architecture))


def _filled_in(config: TokenizeCorpusConfig, architecture: MaskTokenizerConfig) -> TokenizeCorpusConfig:
    """Replaces what is chosen by the architecture and the machine, and checks what the user chose."""
    pixels = 3 * architecture.image_size**2
    rows = config.chunk_rows or max(1, min(MAX_CHUNK_ROWS, CHUNK_BYTES // pixels))
    if rows * pixels > MAX_CHUNK_BYTES:
        raise ConfigError(
            f"--chunk-rows {rows} makes chunks of {rows * pixels / 2**20:.0f} MB of pixels; at most "
            f"{MAX_CHUNK_BYTES // 2**20} fit. Lower it to {MAX_CHUNK_BYTES // pixels}."
        )
    pool = config.pool
    if pool.gpus_per_actor is None:
        pool = dataclasses.replace(pool, gpus_per_actor=1.0 if torch.cuda.is_available() else 0.0)
    return dataclasses.replace(config, chunk_rows=rows, pool=pool)


def _with_absolute_paths(config: TokenizeCorpusConfig) -> TokenizeCorpusConfig:
    """Makes local paths mean the same in workers, whose working directory is another."""
    tokenizer = config.tokenizer
    shipped = checkpoint.resolve(tokenizer.uri) != tokenizer.uri.rstrip("/")
    uri = tokenizer.uri if shipped else storage.absolute(tokenizer.uri)
    return dataclasses.replace(
        config,
        out=storage.absolute(config.out),
        corpus=absolute_corpus(config.corpus),
        tokenizer=dataclasses.replace(tokenizer, uri=uri),
    )


def _fingerprint(
    config: TokenizeCorpusConfig, reader: Reader, architecture: MaskTokenizerConfig
) -> dict[str, Any]:
    """How many actors there are is not in it. Where the dataset lies is, since rows name their images."""
    corpus, tokenizer = config.corpus, config.tokenizer
    weights = checkpoint.read_weights(tokenizer.uri, read=storage.read_bytes)
    return {
        **corpus.identity(),
        "dataset": reader.name,
        "source": corpus.source,
        "images": corpus.images,
        "sources": shards.digest(reader.sources()),
        "tokenizer": tokenizer.uri,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "architecture": hashlib.sha256(architecture.to_json().encode()).hexdigest(),
        "num_codes": architecture.quantizer.num_codes,
        "num_levels": architecture.quantizer.num_levels,
        "dtype": tokenizer.dtype,
        "box_prompt": tokenizer.box_prompt,
        "threshold": tokenizer.threshold,
        "device": "cuda" if config.pool.gpus_per_actor else "cpu",
        "compile": tokenizer.compile,
        "images_per_batch": tokenizer.images_per_batch,
        "masks_per_batch": tokenizer.masks_per_batch,
        "threads_per_actor": config.pool.threads_per_actor,
        "shard_rows": config.shard_rows,
        "chunk_rows": config.chunk_rows,
        "reconstruct": config.reconstruct,
        "boundary_iou": config.boundary_iou,
        "keep_rle": config.keep_rle,
        "skip": sorted(config.skip),
        "min_area_px": config.min_area_px,
        "limit": config.limit,
        "seed": config.seed,
        "schema_version": schema.SCHEMA_VERSION,
        "code_version": CODE_VERSION,
    }


def plan_of(job: Job) -> shards.Plan:
    """Returns the plan of an earlier run of the same job, or makes it.

    Raises:
        ConfigError: If the earlier run had other settings.
    """
    config, plan = job.config, shards.load_plan(job.config.out)
    if plan is not None:
        shards.check_fingerprint(plan, job.fingerprint)
        return plan
    log.info("planning %s from %s", config.out, config.corpus.source)
    return shards.make_plan(
        config.out,
        job.fingerprint,
        _inputs(job),
        shard_rows=config.shard_rows,
        chunk_rows=job.fingerprint["chunk_rows"],
    )


def _inputs(job: Job) -> Iterator[Input | Reject]:
    """Yields the rejects of the listing and the first ``limit`` images."""
    taken, limit = 0, job.config.limit
    for item in job.reader.inputs():
        if isinstance(item, Input):
            if taken == limit:
                return
            taken += 1
        yield item


def dry_run(job: Job) -> int:
    """Prints what would be done: the config, the fingerprint, and how much is left to do."""
    sys.stdout.write(runs.config_json(job.config))
    sys.stdout.write(json.dumps(dict(job.fingerprint), indent=2) + "\n")
    sys.stdout.write(f"plan: {foresee(job)}\n")
    return 0


def foresee(job: Job) -> str:
    """Says how much there is to do, in one line; lists the dataset and writes nothing.

    Raises:
        ConfigError: If an earlier run had other settings.
    """
    plan = shards.load_plan(job.config.out)
    if plan is not None:
        shards.check_fingerprint(plan, job.fingerprint)
        left = len(plan.shard_rows) - len(shards.committed(plan))
        return f"{plan.num_inputs} images in {len(plan.shard_rows)} shards, {left} left"
    images = masks = rejects = unknown = 0
    for item in _inputs(job):
        if isinstance(item, Input):
            images += 1
            masks += item.num_masks or 0
            unknown += item.num_masks is None
        else:
            rejects += 1
    count = -(-images // job.config.shard_rows)
    known = f"{masks} masks" if not unknown else "masks known after reading"
    return f"{images} images, {known}, {count} shards, {rejects} rejects when listing"
