"""What is read from a checkpoint folder: Hugging Face's files, and ``samtok.json``, which explains words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from samtok.errors import CheckpointError
from samtok.mllm.vocab import MaskVocabulary

SAMTOK_FILE = "samtok.json"
FORMAT, FORMAT_VERSION = "samtok.mllm", 1

_Read = Callable[[str], bytes]


def read_family(folder: str | Path, *, read: _Read | None = None) -> str:
    """Returns the family of a checkpoint folder, the ``model_type`` of its ``config.json``."""
    path = Path(folder) / "config.json"
    data = _bytes(path, read)
    if data is None:
        raise CheckpointError(f"{folder} is no checkpoint of Hugging Face's: it has no config.json.")
    return str(_json(data, path).get("model_type"))


def load_processor(folder: str | Path) -> ProcessorMixin:
    """Loads a checkpoint's processor; CheckpointError if transformers cannot."""
    try:
        return AutoProcessor.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise CheckpointError(f"The processor of {folder} cannot be loaded: {str(error)[:500]}") from error


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
        raise CheckpointError(f"The model of {folder} cannot be loaded: {str(error)[:500]}") from error


def read_vocabulary(
    folder: str | Path, *, read: _Read | None = None
) -> tuple[MaskVocabulary, str | None] | None:
    """Returns the words that a folder states and the SHA-256 of their mask tokenizer, or None."""
    path = Path(folder) / SAMTOK_FILE
    data = _bytes(path, read)
    if data is None:
        return None
    body = _json(data, path)
    if body.get("format") != FORMAT or body.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {body.get('format')!r}, version {body.get('format_version')!r}; this release "
            f"reads {FORMAT!r}, version {FORMAT_VERSION}. Update samtok, or extend the model again."
        )
    try:
        vocabulary = MaskVocabulary(int(body["num_codes"]), int(body["num_levels"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not state a vocabulary ({error!r}). Restore it.") from error
    return vocabulary, body.get("tokenizer_sha256")


def write_vocabulary(folder: str | Path, vocabulary: MaskVocabulary, tokenizer_sha256: str | None) -> None:
    """Writes what the words of a folder are."""
    body = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "num_codes": vocabulary.num_codes,
        "num_levels": vocabulary.num_levels,
        "tokenizer_sha256": tokenizer_sha256,
    }
    (Path(folder) / SAMTOK_FILE).write_text(json.dumps(body, indent=2) + "\n")


def _bytes(path: Path, read: _Read | None) -> bytes | None:
    try:
        return read(str(path)) if read else path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error}).") from error


def _json(data: bytes, path: Path) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}.") from error
    if not isinstance(body, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(body).__name__}.")
    return body
