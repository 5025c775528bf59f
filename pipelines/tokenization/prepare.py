"""What is known before anything runs: the reader, the architecture, the fingerprint. Loads no torch."""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines import schema, shards, storage
from pipelines.cluster import with_device
from pipelines.ingestion.corpora import caveat_of, reader_of, require_source, sources_of
from pipelines.ingestion.mixtures import MixtureReader
from pipelines.ingestion.peek import opened, peek
from pipelines.ingestion.reader import MAX_NAMES, Input, Reader, Reject
from pipelines.inputs import require_sam2, require_tokenizer
from pipelines.planning import listing
from pipelines.planning.listing import Workers
from pipelines.planning.plans import inputs_digest, left_of, open_plan
from pipelines.shards import Plan
from pipelines.tokenization.config import TokenizeCorpusConfig
from samtok import folders
from samtok.config import MaskTokenizerConfig
from samtok.errors import ConfigError, DataError

log = logging.getLogger(__name__)

CODE_VERSION = 6
"""Raised with every change of the code that changes words or rows (tests/pipelines/test_fingerprints.py)."""

MAX_CHUNK_BYTES = 2**30
CHUNK_BYTES, MAX_CHUNK_ROWS = 48 * 2**20, 64
"""A chunk's pixels travel through Ray's object store at once; much smaller ones leave actors waiting for Ray:
at 128 px on two cores, chunks of 64 images gave 1.8 times the rate of chunks of 16."""


@dataclass(frozen=True)
class Tokenization:
    """A tokenization that was checked: everything it needs is there and fits."""

    config: TokenizeCorpusConfig
    """With absolute places, and all that depends on the architecture filled in."""
    reader: Reader
    architecture: MaskTokenizerConfig

    @functools.cached_property
    def settings(self) -> Mapping[str, Any]:
        """All that decides the bytes of the shards, but for what the dataset lists, which the fingerprint of
        the plan has besides; a run with other ones is refused. How many actors there are is not in it. Where
        the dataset lies is, since rows name their images."""
        config, reader, architecture = self.config, self.reader, self.architecture
        corpus, options = config.corpus, config.tokenizer_options
        return {
            **corpus.identity(),
            "dataset": reader.name,
            "source": corpus.source,
            "images": corpus.images,
            "tokenizer": config.tokenizer,
            "weights_sha256": folders.weights_sha256(config.tokenizer, read=storage.read_bytes),
            "architecture": hashlib.sha256(architecture.architecture.to_json().encode()).hexdigest(),
            "num_codes": architecture.quantizer.num_codes,
            "num_levels": architecture.quantizer.num_levels,
            "dtype": config.precision,
            "box_prompt": options.box_prompt,
            "threshold": options.threshold,
            "device": config.worker.device,
            "compile": options.compile,
            "channels_last": options.channels_last,
            "images_per_batch": options.images_per_batch,
            "masks_per_batch": options.masks_per_batch,
            "threads_per_actor": config.worker.threads,
            "shard_rows": config.shard_rows,
            "chunk_rows": config.chunk_rows,
            "reconstruct": config.reconstruct,
            "full_size_scores": config.full_size,
            "boundary_iou": config.boundary_iou,
            "keep_rle": config.keep_rle,
            "skip": sorted(config.skip),
            "min_area_px": config.min_area_px,
            "max_image_pixels": config.max_image_pixels,
            "reduced_jpeg": config.reduced_jpeg,
            "limit": config.limit,
            "seed": config.seed,
            **self._boxes,
            "schema_version": schema.SCHEMA_VERSION,
            "code_version": CODE_VERSION,
        }

    @property
    def _boxes(self) -> dict[str, Any]:
        """Settings of masks that are predicted; none where they are not, as before there were any."""
        boxes = self.config.boxes
        if boxes.sam2 is None:
            return {}
        sha256 = storage.file_sha256(boxes.weights)
        return {"sam2_sha256": sha256, "sam2_preset": boxes.preset, "min_score": boxes.min_score}

    @property
    def caveat(self) -> str:
        """What speaks against using this tokenizer on this corpus; empty if nothing is known to."""
        config = self.config
        return caveat_of(config.tokenizer, self.architecture, sources_of(config.corpus), self.reader.name)

    def tags(self, plan: Plan) -> dict[str, str]:
        """Returns what an MLflow run is found by."""
        caveat = {"caveat": self.caveat} if self.caveat else {}
        return {"fingerprint": shards.digest(plan.fingerprint), **caveat}

    def _inputs(self, index: str, workers: Workers) -> Iterator[Input | Reject]:
        """Yields the rejects of the listing and the first ``limit`` images; a few of them are opened first,
        of a mixture a few of each dataset."""
        if isinstance(self.reader, MixtureReader):
            for one in self.reader.readers:
                peek(one, careful=self.config.workers > 0, max_pixels=self.config.max_image_pixels)
        listed = self._limited(listing.inputs_of(self.reader, index, workers))
        careful, most = self.config.workers > 0, self.config.max_image_pixels
        yield from opened(self.reader, listed, careful=careful, max_pixels=most)

    def _limited(self, listed: Iterator[Input | Reject]) -> Iterator[Input | Reject]:
        taken, limit = 0, self.config.limit
        for item in listed:
            if isinstance(item, Input):
                if taken == limit:
                    return
                taken += 1
            yield item

    def plan(self, workers: Workers) -> Plan:
        """Returns the plan of an earlier run with the same settings, or makes it; raises as ``open_plan`` and
        ``opened``. ``workers`` list the parts of the corpus."""
        index = storage.join(self.config.out, "index", shards.digest(self.settings)[:8])
        try:
            plan = open_plan(
                self.config.out,
                self.settings,
                lambda: self._inputs(index, workers),
                shard_rows=self.config.shard_rows,
                chunk_rows=self.settings["chunk_rows"],
                witness=self.reader.witness,
            )
        except DataError:  # which its user mends, so what was listed of it will not hold
            storage.delete_folder(index)
            raise
        if self.config.recheck:
            self._check_listing(plan, f"{index}-recheck", workers)
        storage.delete_folder(storage.join(self.config.out, "index"))
        return plan

    def _check_listing(self, plan: Plan, index: str, workers: Workers) -> None:
        log.info("listing all of %s again, as --recheck says", self.config.corpus.source)
        storage.delete_folder(index)
        listed = self._limited(listing.inputs_of(self.reader, index, workers))
        shards.check_fingerprint(plan, {**self.settings, shards.SOURCES: inputs_digest(listed)})

    def size(self) -> str:
        """Returns how much there is to do, in one line; lists at most 1,000 images and reads 8.

        Raises:
            ConfigError: If an earlier run had other settings.
        """
        left = left_of(self.config.out, self.settings, self.reader.witness)
        if left is not None:
            return left
        found = peek(
            self.reader,
            limit=min(self.config.limit or MAX_NAMES, MAX_NAMES),
            max_pixels=self.config.max_image_pixels,
        )
        if found.images == self.config.limit:
            found = dataclasses.replace(found, more=False)
        least = "at least " if found.more else ""
        return f"{found}; {least}{-(-found.images // self.config.shard_rows)} shards"


def prepare(config: TokenizeCorpusConfig) -> Tokenization:
    """Checks what can be known before Ray starts of a config with absolute places.

    Raises:
        ConfigError: For an input that is not there; names the command that makes one.
    """
    require_tokenizer(config.tokenizer)
    require_source(config.corpus)
    if config.boxes.sam2 is not None:
        require_sam2(config.boxes.sam2, owner=config.boxes)
    architecture = folders.read_config(config.tokenizer, read=storage.read_bytes)
    pixels = 3 * architecture.image_size**2
    rows = config.chunk_rows or max(1, min(MAX_CHUNK_ROWS, CHUNK_BYTES // pixels))
    if rows * pixels > MAX_CHUNK_BYTES:
        raise ConfigError(
            f"--.chunk-rows {rows} makes chunks of {rows * pixels / 2**20:.0f} MB of pixels; at most "
            f"{MAX_CHUNK_BYTES // 2**20} fit. Lower it to {MAX_CHUNK_BYTES // pixels}.",
            owner=config,
        )
    config = dataclasses.replace(
        config, chunk_rows=rows, worker=with_device(config.worker, on_ray=config.workers > 0)
    )
    if config.precision == "tf32" and config.worker.device != "cuda":
        raise ConfigError("--.precision tf32 is arithmetic of GPUs; on CPUs give float32.", owner=config)
    reader = reader_of(config.corpus)
    tokenization = Tokenization(config, reader, architecture)
    if tokenization.caveat:
        log.warning("%s", tokenization.caveat)
    if not config.dry_run:
        _ = tokenization.settings  # fails here if a file is missing
    return tokenization
