"""Processors and models of checkpoint folders, as transformers loads them, with our errors."""

from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from samtok.errors import CheckpointError


def load_processor(folder: str | Path) -> ProcessorMixin:
    """Loads a checkpoint's processor; CheckpointError if transformers cannot."""
    try:
        return AutoProcessor.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise CheckpointError(f"the processor of {folder} cannot be loaded: {str(error)[:500]}.") from error


def read_model(
    folder: str | Path, *, dtype: torch.dtype | Literal["auto"] = "auto", attn: str = "sdpa"
) -> PreTrainedModel:
    """Loads any model of a local checkpoint folder, as it is.

    Raises:
        CheckpointError: It cannot be read, or needs a package that is not installed.
    """
    try:
        return AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, attn_implementation=attn, local_files_only=True
        )
    except ImportError as error:
        raise CheckpointError(
            f"{folder} needs a package that is not installed: {str(error).strip().splitlines()[0][:300]} "
            "Install samtok[perception-lm] for timm, samtok[gpu] for flash-attn."
        ) from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"the model of {folder} cannot be loaded: {str(error)[:500]}.") from error
