"""The architecture that a run trains, and whether its quantization can begin. Loads no torch."""

import dataclasses

from pipelines import storage
from pipelines.inputs import require_tokenizer
from pipelines.tokenizer_training.config import TrainTokenizerConfig
from samtok import folders
from samtok.config import PRESETS, MaskTokenizerConfig
from samtok.errors import CheckpointError, ConfigError


def architecture_of(config: TrainTokenizerConfig) -> MaskTokenizerConfig:
    """Returns the architecture that a run trains; raises ConfigError if the quantizer's fields do not fit,
    CheckpointError if the starting tokenizer is missing or of another architecture."""
    base = PRESETS[config.model]
    if config.start.tokenizer:
        require_tokenizer(config.start.tokenizer, flag="--.tokenizer", owner=config.start)
        base = _like(config.start.tokenizer, config.model)
    try:
        return dataclasses.replace(base, quantizer=config.quantizer.over(base.quantizer))
    except ValueError as error:
        raise ConfigError(f"--.quantizer.*: {error}", owner=config) from error


def _like(uri: str, model: str) -> MaskTokenizerConfig:
    """Returns the architecture of a tokenizer, which but for its quantizer must be the one asked for."""
    found, wanted = folders.read_config(uri, read=storage.read_bytes).architecture, PRESETS[model]
    if _fits(found, wanted):
        return found
    fields = [f.name for f in dataclasses.fields(found) if f.name != "quantizer"]
    differing = [name for name in fields if getattr(found, name) != getattr(wanted, name)]
    fitting = [name for name, preset in PRESETS.items() if _fits(found, preset)]
    remedy = f"Use --model {fitting[0]}" if fitting else "Start from another tokenizer"
    raise CheckpointError(
        f"--start.tokenizer {uri} is not of the architecture --model {model}: {', '.join(differing)} differ. "
        f"{remedy}, or drop --start.tokenizer."
    )


def _fits(found: MaskTokenizerConfig, preset: MaskTokenizerConfig) -> bool:
    return dataclasses.replace(found, quantizer=preset.quantizer) == preset


def freezes(config: TrainTokenizerConfig) -> bool:
    """Returns whether a run leaves SAM2's image side as it is."""
    return config.freeze if config.freeze is not None else config.start.sam2 is not None


def check_quantize_from(config: TrainTokenizerConfig) -> None:
    """Makes sure that quantization can begin when the config says; raises ConfigError if the codebooks for an
    immediate start are of another quantizer, or k-means would get fewer embeddings than there are codes."""
    quantizer = architecture_of(config).quantizer
    if config.quantize_from == 0 and config.start.tokenizer is not None:
        found = folders.read_config(config.start.tokenizer, read=storage.read_bytes).quantizer
        if found != quantizer:
            raise ConfigError(
                f"--.quantize-from 0 takes the codebooks of --.start.tokenizer, but those are {found} and "
                f"the run asks for {quantizer}. Drop the --.quantizer flags, or raise --.quantize-from.",
                owner=config,
            )
        return
    if config.quantization_step in (0, config.steps) or not config.fits_codebooks(quantizer.kind):
        return  # it never begins, or needs no k-means
    if config.kmeans_samples < quantizer.num_codes:
        raise ConfigError(
            f"--.kmeans-samples must be >= {quantizer.num_codes}, the codes of the quantizer, got "
            f"{config.kmeans_samples}.",
            owner=config,
        )
    least = config.quantization_step * config.sampling.images_per_step  # every image has a mask
    most = least * config.sampling.masks_per_image
    if most < quantizer.num_codes:
        raise ConfigError(
            f"{quantizer.num_codes} codes need as many embeddings to start from, but the "
            f"{config.quantization_step} steps before quantization give at most {most}. Raise "
            "--.quantize-from, --.steps or the batch, or take fewer --.quantizer.num-codes.",
            owner=config,
        )
