"""What the folder of an MLLM states: its family, and in ``samtok.json`` what its mask words mean.

Loads neither torch nor transformers, so that a dry run can compare models, chats and tokenizers in a moment;
``adapters`` loads processors and models.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samtok.errors import CheckpointError
from samtok.folders import Read, read_file
from samtok.mllm.registry import family_of
from samtok.mllm.vocab import MaskVocabulary, infer

SAMTOK_FILE = "samtok.json"
FORMAT, FORMAT_VERSION = "samtok.mllm", 1


@dataclass(frozen=True)
class MllmFolder:
    """What a folder states; the SHA-256 is of the mask tokenizer's weights, None where it is not known.
    ``thinking``: the model was trained to think before it answers (``samtok.mllm.thinking``)."""

    family: str
    vocabulary: MaskVocabulary
    tokenizer_sha256: str | None
    thinking: bool = False


def read_folder(folder: str | Path, *, read: Read | None = None) -> MllmFolder:
    """Reads what a checkpoint folder states, from its JSON files alone.

    Without ``samtok.json``, as in the authors' checkpoints, added mask words are taken for two levels.

    Args:
        folder: A folder or URI as ``adapters.save_pretrained`` or Hugging Face writes it.
        read: Reads a file by its URI, in the place of fsspec.

    Raises:
        CheckpointError: A file is missing or wrong, the family is unknown, or there are no mask words.
    """
    family = family_of(read_family(folder, read=read)).name
    body = _read_json(folder, SAMTOK_FILE, read)
    if body is None:
        return MllmFolder(family, infer(_added_tokens(folder, read), where=str(folder)), None)
    where = f"{folder}/{SAMTOK_FILE}"
    if body.get("format") != FORMAT or body.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{where} has format {body.get('format')!r}, version {body.get('format_version')!r}; this "
            f"release reads {FORMAT!r}, version {FORMAT_VERSION}. Update samtok, or extend the model again."
        )
    try:
        vocabulary = MaskVocabulary(int(body["num_codes"]), int(body["num_levels"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where} does not state a vocabulary ({error!r}). Restore it.") from error
    return MllmFolder(family, vocabulary, body.get("tokenizer_sha256"), bool(body.get("thinking")))


def read_family(folder: str | Path, *, read: Read | None = None) -> str:
    """Returns the family of a checkpoint folder, the ``model_type`` of its ``config.json``."""
    body = _read_json(folder, "config.json", read)
    if body is None:
        raise CheckpointError(f"{folder} is no checkpoint of Hugging Face's: it has no config.json.")
    return str(body.get("model_type"))


def write_vocabulary(
    folder: str | Path, vocabulary: MaskVocabulary, tokenizer_sha256: str | None, *, thinking: bool = False
) -> None:
    """Writes what the words of a local folder are, and that its model thinks if it does."""
    body = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "num_codes": vocabulary.num_codes,
        "num_levels": vocabulary.num_levels,
        "tokenizer_sha256": tokenizer_sha256,
        **({"thinking": True} if thinking else {}),
    }
    (Path(folder) / SAMTOK_FILE).write_text(json.dumps(body, indent=2) + "\n")


def _added_tokens(folder: str | Path, read: Read | None) -> list[str]:
    """Returns the added tokens of a text tokenizer, which is saved as one file or, before, as several."""
    body = _read_json(folder, "tokenizer.json", read)
    if body is None:
        return list(_read_json(folder, "added_tokens.json", read) or {})
    return [str(token.get("content")) for token in body.get("added_tokens", [])]


def _read_json(folder: str | Path, name: str, read: Read | None) -> dict[str, Any] | None:
    where = f"{str(folder).rstrip('/')}/{name}"
    try:
        body = json.loads(read_file(where, read))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not JSON: {error}.") from error
    if not isinstance(body, dict):
        raise CheckpointError(f"{where} must hold a JSON object, got {type(body).__name__}.")
    return body
