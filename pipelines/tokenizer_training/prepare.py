"""Checks a tokenizer training before anything runs: corpora, weights, fingerprint. Loads no torch."""

import dataclasses
import logging
from dataclasses import dataclass
from itertools import islice

from pipelines import shards, storage
from pipelines.cluster import with_device
from pipelines.ingestion.corpora import CorpusSpec, limited, require_source, specs_of
from pipelines.ingestion.peek import peek
from pipelines.ingestion.reader import Input
from pipelines.inputs import require_sam2
from pipelines.tokenizer_training.architecture import architecture_of, check_quantize_from, freezes
from pipelines.tokenizer_training.config import TrainTokenizerConfig
from pipelines.tokenizer_training.corpus import Index, digest_of
from pipelines.training.deepspeed_file import deepspeed_of
from pipelines.training.mixture import check_weights
from pipelines.training.prepare import Prepared, lineage_of, settings_of
from pipelines.training.resume import has_begun
from samtok import folders
from samtok.config import QuantizerConfig
from samtok.errors import ConfigError
from samtok.shapes import make_scene

log = logging.getLogger(__name__)

CODE_VERSION = 4
"""Raised with every change of the code that changes what is learnt (tests/pipelines/test_fingerprints.py)."""

_SCENES = 64
"""Synthetic scenes whose masks are counted."""

MAX_PEEKED = 1000
"""Images of a corpus that a dry run lists."""


@dataclass(frozen=True, kw_only=True)
class PreparedTokenizer(Prepared[TrainTokenizerConfig]):
    """A tokenizer training that was checked; workers get the corpora as they were listed, if any."""

    corpora: tuple[CorpusSpec, ...] = ()  # to train on; none for synthetic scenes
    held_out: tuple[CorpusSpec, ...] = ()  # to measure on
    training_index: Index | None = None
    validation_index: Index | None = None

    def size(self) -> str:
        """Returns the size of the run in a few lines; lists at most ``MAX_PEEKED`` images of a corpus."""
        config, images = self.config, self.config.per_step
        quantizer = architecture_of(config).quantizer
        known, more = _count(self.corpora) if self.corpora else (config.scenes_needed, False)
        epochs = "" if more else f", {config.steps * images / max(known, 1):.2f} epochs"
        frozen = "image encoder, prompt encoder, IoU and object heads" if freezes(config) else "nothing"
        return (
            f"{config.steps} steps of {images} images and at most {images * config.sampling.masks_per_image} "
            f"masks; {config.workers} workers with {config.per_worker} images each, in micro-batches of "
            f"{config.micro}\n"
            f"data      {'at least ' if more else ''}{known} images{epochs}\n"
            f"words     {quantizer.kind} of {quantizer.num_levels} x {quantizer.num_codes}, "
            f"{quantizer.num_words} words, {quantizer.bits_per_mask:.1f} bits a mask\n"
            f"frozen    {frozen}"
        )


def _count(specs: tuple[CorpusSpec, ...]) -> tuple[int, bool]:
    """Counts the images of corpora, and whether there may be more."""
    listed = [
        list(islice(spec.reader().inputs(), min(MAX_PEEKED, spec.limit or MAX_PEEKED) + 1)) for spec in specs
    ]
    usable = [sum(isinstance(item, Input) and item.num_masks != 0 for item in items) for items in listed]
    capped = [min(count, spec.limit or MAX_PEEKED) for count, spec in zip(usable, specs, strict=True)]
    return sum(capped), any(len(items) > MAX_PEEKED for items in listed)


def prepare(config: TrainTokenizerConfig) -> PreparedTokenizer:
    """Checks all that can be known before workers start; raises SamtokError for flags, weights or corpora
    that cannot work."""
    config = dataclasses.replace(config, worker=with_device(config.worker))
    specs, held_out = _specs(config)
    architecture = architecture_of(config)
    check_quantize_from(config)
    _check_embeddings(config, specs, architecture.quantizer)
    deepspeed = deepspeed_of(config.engine, (1, 2))
    start = _start(config)
    fingerprint = {
        **settings_of(config, without=("corpora", "validation.corpora", "start")),
        "freeze": freezes(config),
        "architecture": shards.digest(architecture.architecture.to_json()),
        "start": start.get("sha256", "random"),
        "train": digest_of(specs) if specs else "scenes",
        "held_out": digest_of(held_out) if held_out else "scenes",
        "code_version": CODE_VERSION,
    }
    corpora = list(config.corpora) or f"synthetic scenes, seed {config.seed}"
    return PreparedTokenizer(
        config=config,
        fingerprint=fingerprint,
        lineage=lineage_of(fingerprint, start=start, corpora=corpora),
        deepspeed=deepspeed,
        corpora=specs,
        held_out=held_out,
    )


def _check_embeddings(
    config: TrainTokenizerConfig, specs: tuple[CorpusSpec, ...], quantizer: QuantizerConfig
) -> None:
    """Makes sure that k-means will have an embedding for every code, by the masks of the first images; raises
    ConfigError."""
    images = config.quantization_step * config.sampling.images_per_step
    if (
        not config.fits_codebooks(quantizer.kind)
        or config.quantization_step in (0, config.steps)
        or images >= quantizer.num_codes
    ):
        return  # no k-means, or enough at one mask an image
    expected = images * _masks_per_image(config, specs)
    if expected < quantizer.num_codes:
        raise ConfigError(
            f"{quantizer.num_codes} codes need as many embeddings to start from, but the {images} images "
            f"before quantization give about {expected:.0f}. Raise --.steps, --.quantize-from or "
            "--.sampling.images-per-step, or take fewer --.quantizer.num-codes.",
            owner=config,
        )


def _masks_per_image(config: TrainTokenizerConfig, specs: tuple[CorpusSpec, ...]) -> float:
    """Returns how many masks of an image a step trains on, on average over the first images."""
    most, least_px = config.sampling.masks_per_image, config.sampling.min_area_px
    if specs:
        items = [item for spec in specs for item in spec.reader().head().items if isinstance(item, Input)]
        counts = [item.num_masks for item in items if item.num_masks != 0]
    else:
        scenes = [make_scene(config.seed, index, config.world) for index in range(_SCENES)]
        counts = [sum(int(one.mask.sum()) >= least_px for one in scene.objects) for scene in scenes]
    known = [most if count is None else min(count, most) for count in counts]
    return sum(known) / len(known) if known else most


def _specs(config: TrainTokenizerConfig) -> tuple[tuple[CorpusSpec, ...], tuple[CorpusSpec, ...]]:
    """Returns the corpora to train and to measure on; raises ConfigError if one is misspelt or not there,
    only some have weights, or one to measure on has."""
    specs = tuple(limited(spec, config.limit) for spec in specs_of(config.corpora, flag="corpora"))
    held_out = tuple(specs_of(config.validation.corpora, flag="validation.corpora"))
    check_weights([spec.weight for spec in specs])
    if weighted := [spec.name for spec in held_out if spec.weight is not None]:
        raise ConfigError(
            f"--.corpora {', '.join(weighted)} has a weight, but held-out images are taken in turn; drop "
            "weight=.",
            owner=config.validation,
        )
    fresh = not has_begun(config.out)
    for spec in (*specs, *held_out):
        require_source(spec.corpus)
        if fresh:
            peek(spec.reader(), careful=not config.dry_run, max_pixels=config.max_image_pixels)
    trained = [spec.corpus for spec in specs]
    for spec in held_out:
        if spec.corpus in trained:
            log.warning(
                "%s is trained on and measured on; its numbers do not hold for other images", spec.name
            )
    return specs, held_out


def _start(config: TrainTokenizerConfig) -> dict[str, str]:
    """Returns where the weights come from, with their SHA-256; refuses a SAM2 file that is not there."""
    start = config.start
    if start.tokenizer:
        digest = folders.weights_sha256(start.tokenizer, read=storage.read_bytes)
        return {"tokenizer": start.tokenizer, "sha256": digest}
    if start.sam2:
        other = "or start from none: `python jobs/train_tokenizer.py --preset micro` does"
        weights = require_sam2(start.sam2, owner=start, other=other)
        return {"sam2": start.sam2, "sha256": storage.file_sha256(weights)}
    return {"random": f"seed {config.seed}"}
