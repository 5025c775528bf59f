"""Folders of mask tokenizers: ``config.json`` and ``model.safetensors``, read without torch.

``samtok.checkpoint`` builds models from them; ``samtok.mllm.folder`` reads the folders of MLLMs.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

from samtok.config import MaskTokenizerConfig
from samtok.errors import CheckpointError, SamtokError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
SHIPPED = Path(__file__).parent / "weights"

Read = Callable[[str], bytes]
"""Reads a file by its URI, so that callers can bring their own credentials and retries."""


def is_shipped(uri: str) -> bool:
    """Returns whether a URI is a name such as ``tiny``, whose folder comes with the package."""
    return "/" not in uri and (SHIPPED / uri / CONFIG_FILE).exists()


def resolve(uri: str) -> str:
    """Returns the folder of a shipped name, and any other URI as it is."""
    return str(SHIPPED / uri) if is_shipped(uri) else uri.rstrip("/")


def read_config(uri: str, *, read: Read | None = None) -> MaskTokenizerConfig:
    """Reads the architecture of a tokenizer without its weights.

    Raises:
        CheckpointError: If it is missing, or not the config of a mask tokenizer.
    """
    where = f"{resolve(uri)}/{CONFIG_FILE}"
    return MaskTokenizerConfig.from_json(_read(where, read), where=where)


def read_weights(uri: str, *, read: Read | None = None) -> bytes:
    """Returns the bytes of a tokenizer's weight file; CheckpointError if it is missing."""
    return _read(f"{resolve(uri)}/{WEIGHTS_FILE}", read)


def weights_sha256(uri: str, *, read: Read | None = None) -> str:
    """Returns the SHA-256 of a tokenizer's weight file, by which fingerprints and lineage name it."""
    return hashlib.sha256(read_weights(uri, read=read)).hexdigest()


def read_file(uri: str, read: Read | None) -> bytes:
    """Reads a file, by default with fsspec.

    Raises:
        FileNotFoundError: If there is none.
        CheckpointError: If it cannot be read.
    """
    try:
        return (read or _read_with_fsspec)(uri)
    except (FileNotFoundError, SamtokError):
        raise
    except Exception as error:  # every store has its own errors; all mean that there is no checkpoint
        raise CheckpointError(f"{uri} cannot be read ({type(error).__name__}: {error}).") from error


def write_file(uri: str, data: bytes) -> None:
    """Writes a file with fsspec; CheckpointError if it cannot."""
    import fsspec  # as in ``_read_with_fsspec``

    try:
        with fsspec.open(uri, "wb") as file:
            file.write(data)  # type: ignore[union-attr]
    except Exception as error:  # as in ``read_file``
        raise CheckpointError(f"{uri} cannot be written ({type(error).__name__}: {error}).") from error


def _read(uri: str, read: Read | None) -> bytes:
    try:
        return read_file(uri, read)
    except FileNotFoundError as error:
        shipped = sorted(p.name for p in SHIPPED.glob("*") if is_shipped(p.name))
        raise CheckpointError(
            f"there is no {uri}. A tokenizer is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, "
            f"or one of the shipped names {shipped}."
        ) from error


def _read_with_fsspec(uri: str) -> bytes:
    import fsspec  # half of the start of a dry run, which brings its own reader

    with fsspec.open(uri, "rb") as file:
        return file.read()  # type: ignore[union-attr]
