"""Checkpoints of MLLMs that speak mask words: a folder of Hugging Face's, and ``samtok.json``.

``load_adapter`` finds the family by the folder's ``config.json``. ``samtok.json`` says what the words mean:
levels, codes, and the SHA-256 of the mask tokenizer that they belong to, where that is known.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoProcessor, PreTrainedModel, ProcessorMixin

from samtok.errors import CheckpointError
from samtok.mllm.family import Adapter, Picture
from samtok.mllm.loss import answer_logits, answer_loss
from samtok.mllm.perception_lm import PerceptionLMAdapter
from samtok.mllm.qwen import Qwen2_5VLAdapter, Qwen3VLAdapter
from samtok.mllm.vocab import MaskVocabulary, infer

__all__ = [
    "FAMILIES",
    "SAMTOK_FILE",
    "Adapter",
    "Picture",
    "adapter_for",
    "answer_logits",
    "answer_loss",
    "load_adapter",
    "load_processor",
    "read_family",
    "save_pretrained",
]

SAMTOK_FILE = "samtok.json"
FORMAT, FORMAT_VERSION = "samtok.mllm", 1

FAMILIES: dict[str, type[Adapter]] = {
    kind.family: kind for kind in (Qwen2_5VLAdapter, Qwen3VLAdapter, PerceptionLMAdapter)
}
"""Adapters by ``model_type``."""

_Read = Callable[[str], bytes]


def load_adapter(folder: str | Path, *, read: _Read | None = None) -> Adapter:
    """Loads the adapter of a checkpoint folder, without its model.

    Args:
        folder: A local folder as ``save_pretrained`` or Hugging Face writes it. Without ``samtok.json`` its
            words are taken for two levels, as in the authors' checkpoints.
        read: Reads a file by its path, so that callers can bring their own errors and retries; the processor
            is read by transformers.

    Raises:
        CheckpointError: A file is missing or wrong, the family is unknown, or the text tokenizer does not
            have the words.
    """
    family = read_family(folder, read=read)
    kind = _kind_of(family)
    processor = load_processor(folder)
    stated = _read_samtok(Path(folder) / SAMTOK_FILE, read)
    if stated is None:
        vocabulary, sha256 = infer(processor.tokenizer, where=str(folder)), None
    else:
        vocabulary, sha256 = stated
    return kind(processor, vocabulary, tokenizer_sha256=sha256)


def adapter_for(
    family: str,
    processor: ProcessorMixin,
    vocabulary: MaskVocabulary,
    *,
    tokenizer_sha256: str | None = None,
) -> Adapter:
    """Returns the adapter of a family; CheckpointError if there is none or the processor lacks the words."""
    return _kind_of(family)(processor, vocabulary, tokenizer_sha256=tokenizer_sha256)


def save_pretrained(
    model: PreTrainedModel,
    adapter: Adapter,
    folder: str | Path,
    *,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes model, processor and ``samtok.json`` to a folder; ``load_adapter`` and any HF code read it.

    Args:
        model: The model.
        adapter: Its adapter.
        folder: Where to write; ``samtok.json`` comes last.
        state: Its whole state, where the model's own weights are spread over workers.

    Raises:
        CheckpointError: Model and tokenizer do not speak the adapter's words; nothing is written then.
    """
    adapter.vocabulary.check(adapter.tokenizer, model)
    model.save_pretrained(folder, state_dict=None if state is None else dict(state))
    adapter.processor.save_pretrained(folder)
    body = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "num_codes": adapter.vocabulary.num_codes,
        "num_levels": adapter.vocabulary.num_levels,
        "tokenizer_sha256": adapter.tokenizer_sha256,
    }
    (Path(folder) / SAMTOK_FILE).write_text(json.dumps(body, indent=2) + "\n")


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


def _kind_of(family: str) -> type[Adapter]:
    if family not in FAMILIES:
        raise CheckpointError(
            f"There is no adapter for {family!r}; known families are {', '.join(FAMILIES)}. A new one is a "
            "subclass of samtok.mllm.family.Adapter."
        )
    return FAMILIES[family]


def _read_samtok(path: Path, read: _Read | None) -> tuple[MaskVocabulary, str | None] | None:
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
