"""What is trained: a tokenizer from random or given weights, and a head that only training needs."""

import torch
from torch import nn

from pipelines import storage
from pipelines.tokenizer_training.architecture import architecture_of, freezes
from pipelines.tokenizer_training.config import StartConfig, TrainTokenizerConfig
from samtok import checkpoint
from samtok.config import PRESETS, MaskTokenizerConfig
from samtok.errors import CheckpointError
from samtok.model.tokenizer import MaskTokenizer

FROZEN = ("image_encoder", "prompt_encoder", "mask_decoder.iou_prediction_head")  # appendix B
OBJECT_HEAD = "mask_decoder.pred_obj_score_head"


class Trainee(nn.Module):
    """A tokenizer and the head that reads the box from z, which is thrown away in the end."""

    def __init__(self, tokenizer: MaskTokenizer, *, box_head: bool) -> None:
        super().__init__()
        dim = tokenizer.config.dim
        self.tokenizer = tokenizer
        self.box_head = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 4)) if box_head else None


def build_trainee(config: TrainTokenizerConfig) -> Trainee:
    """Builds what a run trains, with the weights it starts from, on the CPU and in training mode.

    Random weights are a function of ``config.seed``. Raises CheckpointError if the starting weights are
    missing, broken, or of another architecture.
    """
    torch.manual_seed(config.seed)
    tokenizer = _start(config.start, config.model, architecture_of(config))
    trainee = Trainee(tokenizer, box_head=config.loss.box > 0)
    if freezes(config):
        freeze(tokenizer)
    return trainee.train()


def freeze(tokenizer: MaskTokenizer) -> None:
    """Leaves only mask encoder, mask decoder and quantizer to training (paper, appendix B)."""
    tokenizer.no_mem_embed.requires_grad_(False)
    for name in (*FROZEN, OBJECT_HEAD) if tokenizer.config.object_score else FROZEN:
        tokenizer.get_submodule(name).requires_grad_(False)


def _start(start: StartConfig, model: str, architecture: MaskTokenizerConfig) -> MaskTokenizer:
    if start.sam2:
        return _from_sam2(start.sam2, model, architecture)
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


def _from_sam2(uri: str, model: str, architecture: MaskTokenizerConfig) -> MaskTokenizer:
    if not model.startswith("sam2.1-"):
        known = [name for name in PRESETS if name.startswith("sam2.1-")]
        raise CheckpointError(
            f"--start.sam2 {uri} holds SAM2.1 weights and --model is {model}; use the --model of its size, "
            f"one of {', '.join(known)}."
        )
    try:
        return checkpoint.from_sam2(uri, model, quantizer=architecture.quantizer, read=storage.read_bytes)
    except CheckpointError as error:
        raise CheckpointError(
            f"--start.sam2 {uri}: {error} Check that --model {model} is its size."
        ) from error
