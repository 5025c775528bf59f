"""What is trained: a tokenizer from random or given weights, and a head that only training needs."""

import dataclasses
from pathlib import Path

import torch
from torch import nn

from pipelines import storage
from pipelines.tokenizer_training.config import StartConfig, TrainTokenizerConfig
from samtok import checkpoint
from samtok.config import PRESETS, MaskTokenizerConfig
from samtok.errors import CheckpointError, ConfigError
from samtok.model.tokenizer import MaskTokenizer

FROZEN = ("image_encoder", "prompt_encoder", "mask_decoder.iou_prediction_head")  # appendix B
OBJECT_HEAD = "mask_decoder.pred_obj_score_head"


class Trainee(nn.Module):
    """A tokenizer and the head that reads the box from z, which is thrown away in the end.

    Args:
        tokenizer: What training is for.
        box_head: Whether there is such a head.
    """

    def __init__(self, tokenizer: MaskTokenizer, *, box_head: bool) -> None:
        super().__init__()
        dim = tokenizer.config.dim
        self.tokenizer = tokenizer
        self.box_head = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 4)) if box_head else None


def architecture_of(config: TrainTokenizerConfig) -> MaskTokenizerConfig:
    """Returns the architecture that a run trains.

    Raises:
        ConfigError: If the quantizer's fields do not go together or do not fit the architecture.
        CheckpointError: If the starting tokenizer is missing or of another architecture.
    """
    base = PRESETS[config.model]
    if config.start.tokenizer:
        base = _like(config.start.tokenizer, config.model)
    try:
        return dataclasses.replace(base, quantizer=config.quantizer.over(base.quantizer))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"--quantizer.*: {error}") from error


def _like(uri: str, model: str) -> MaskTokenizerConfig:
    """Returns the architecture of a tokenizer, which but for its quantizer must be the one asked for."""
    found, wanted = checkpoint.read_config(uri, read=storage.read_bytes), PRESETS[model]
    if dataclasses.replace(found, quantizer=wanted.quantizer) == wanted:
        return found
    fields = [f.name for f in dataclasses.fields(found) if f.name != "quantizer"]
    differing = [name for name in fields if getattr(found, name) != getattr(wanted, name)]
    fitting = [
        name
        for name, preset in PRESETS.items()
        if dataclasses.replace(found, quantizer=preset.quantizer) == preset
    ]
    remedy = f"Use --model {fitting[0]}" if fitting else "Start from another tokenizer"
    raise CheckpointError(
        f"--start.tokenizer {uri} is not of the architecture --model {model}: {', '.join(differing)} differ. "
        f"{remedy}, or drop --start.tokenizer."
    )


def build_trainee(config: TrainTokenizerConfig) -> Trainee:
    """Builds what a run trains, with the weights it starts from, on the CPU and in training mode.

    Random weights are a function of ``config.seed``.

    Raises:
        CheckpointError: If the starting weights are missing, broken, or of another architecture.
    """
    torch.manual_seed(config.seed)
    tokenizer = _start(config.start, config.model, architecture_of(config))
    trainee = Trainee(tokenizer, box_head=config.loss.box > 0)
    if freezes(config):
        freeze(tokenizer)
    return trainee.train()


def freezes(config: TrainTokenizerConfig) -> bool:
    """Tells whether a run leaves SAM2's image side as it is."""
    return config.freeze if config.freeze is not None else config.start.sam2 is not None


def freeze(tokenizer: MaskTokenizer) -> None:
    """Leaves only mask encoder, mask decoder and quantizer to training (paper, appendix B)."""
    tokenizer.no_mem_embed.requires_grad_(False)
    for name in (*FROZEN, OBJECT_HEAD) if tokenizer.config.object_score else FROZEN:
        tokenizer.get_submodule(name).requires_grad_(False)


def _start(start: StartConfig, model: str, architecture: MaskTokenizerConfig) -> MaskTokenizer:
    if start.sam2:
        with storage.local_copy(start.sam2) as path:
            return _from_sam2(path, start.sam2, model, architecture)
    tokenizer = MaskTokenizer(architecture)
    if start.tokenizer:
        given = MaskTokenizer.from_pretrained(start.tokenizer, read=storage.read_bytes)
        state = given.state_dict()
        if given.config.quantizer != architecture.quantizer:  # set up anew when quantization begins
            own = tokenizer.state_dict()
            state = {k: v for k, v in state.items() if not k.startswith("quantizer.")}
            state |= {k: v for k, v in own.items() if k.startswith("quantizer.")}
        tokenizer.load_state_dict(state)
    return tokenizer


def _from_sam2(path: Path, uri: str, model: str, architecture: MaskTokenizerConfig) -> MaskTokenizer:
    if not model.startswith("sam2.1-"):
        known = [name for name in PRESETS if name.startswith("sam2.1-")]
        raise CheckpointError(
            f"--start.sam2 {uri} holds SAM2.1 weights and --model is {model}; use the --model of its size, "
            f"one of {', '.join(known)}."
        )
    try:
        return checkpoint.from_sam2(str(path), model, quantizer=architecture.quantizer)
    except CheckpointError as error:
        raise CheckpointError(
            f"--start.sam2 {uri}: {error} Check that --model {model} is its size."
        ) from error


def check_quantize_from(config: TrainTokenizerConfig) -> None:
    """Makes sure that quantization can begin when the config says.

    Raises:
        ConfigError: If codebooks are wanted at once but the given ones are of another quantizer, or if
            k-means would get fewer embeddings than there are codes.
    """
    quantizer = architecture_of(config).quantizer
    if config.quantize_from == 0:
        assert config.start.tokenizer is not None  # the config says so itself
        found = checkpoint.read_config(config.start.tokenizer, read=storage.read_bytes).quantizer
        if found != quantizer:
            raise ConfigError(
                f"--quantize-from 0 takes the codebooks of --start.tokenizer, but those are {found} and the "
                f"run asks for {quantizer}. Drop the --quantizer flags, or raise --quantize-from."
            )
        return
    if config.quantization_step == config.steps:
        return  # it never begins
    if quantizer.kind != "fsq" and config.kmeans_samples < quantizer.num_codes:
        raise ConfigError(
            f"--kmeans-samples must be at least the {quantizer.num_codes} codes of the quantizer, "
            f"got {config.kmeans_samples}"
        )
    least = config.quantization_step * config.sampling.images_per_step  # every image has a mask
    most = least * config.sampling.masks_per_image
    if quantizer.kind != "fsq" and most < quantizer.num_codes:
        raise ConfigError(
            f"{quantizer.num_codes} codes need as many embeddings to start from, but the "
            f"{config.quantization_step} steps before quantization give at most {most}. Raise "
            "--quantize-from, --steps or the batch, or take fewer --quantizer.num-codes."
        )
