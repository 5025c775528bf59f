"""Processors and models of checkpoint folders, as transformers loads them, with our errors.

A folder is somebody else's: nothing in it is run, and whatever transformers says of it is a CheckpointError.
"""

import json
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from samtok.errors import CheckpointError

MAX_LAYERS = 1000
"""Of any part of a model. transformers builds what ``config.json`` says before it looks at the weights."""


def load_processor(folder: str | Path) -> ProcessorMixin:
    """Loads a checkpoint's processor; CheckpointError if transformers cannot, or it is none for images."""
    _check_folder(folder)
    try:
        processor = AutoProcessor.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        if lacks_memory(error):
            raise
        raise _cannot_load("processor", folder, error) from error
    if not isinstance(processor, ProcessorMixin):  # a text tokenizer, where the class has no meaning
        raise CheckpointError(
            f"the processor of {folder} is a {type(processor).__name__}, expected one for images and text. "
            "Take processor_config.json and preprocessor_config.json of the released checkpoint."
        )
    return processor


def lacks_memory(error: Exception) -> bool:
    """Whether an error says that memory does not suffice, which is no fault of a file or a sample."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error))


def _cannot_load(what: str, folder: str | Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"the {what} of {folder} cannot be loaded: {type(error).__name__}: {str(error)[:500]}."
    )


def _check_folder(folder: str | Path) -> None:
    """Refuses what transformers would take at its word.

    Raises:
        CheckpointError: An adapter of PEFT, which names other weights; attention code of the Hub; more layers
            than any model has.
    """
    if (Path(folder) / "adapter_config.json").exists():
        raise CheckpointError(
            f"{folder} has an adapter (adapter_config.json), which is not read. Merge it into the model with "
            "PEFT's merge_and_unload, and save that."
        )
    try:
        body = json.loads((Path(folder) / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _cannot_load("config", folder, error) from error
    found = [body] if isinstance(body, dict) else []
    while found:
        for name, value in found.pop().items():
            if isinstance(value, dict):
                found.append(value)
            elif (
                isinstance(value, int) and value > MAX_LAYERS and (name.endswith("layers") or name == "depth")
            ):
                raise CheckpointError(
                    f"config.json of {folder} has {name} {value}, expected at most {MAX_LAYERS}."
                )
            elif "attn_implementation" in name and "/" in str(value):
                raise CheckpointError(
                    f"config.json of {folder} asks for code of the Hub: {name} {value!r:.80}. Remove it."
                )


def read_model(
    folder: str | Path, *, dtype: torch.dtype | Literal["auto"] = "auto", attn: str = "sdpa"
) -> PreTrainedModel:
    """Loads any model of a local checkpoint folder, as it is.

    Raises:
        CheckpointError: It cannot be read, or needs a package that is not installed.
    """
    _check_folder(folder)
    try:
        return AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, attn_implementation=attn, local_files_only=True, trust_remote_code=False
        )
    except ImportError as error:
        raise CheckpointError(
            f"{folder} needs a package that is not installed: {str(error).strip().splitlines()[0][:300]} "
            "Install samtok[perception-lm] for timm, samtok[gpu] for flash-attn."
        ) from error
    except Exception as error:
        if lacks_memory(error):
            raise
        raise _cannot_load("model", folder, error) from error
