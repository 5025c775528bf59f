"""Where models are, by shipped name, path, URI or hub id; and mask tokenizers' files, read without torch.

``samtok.checkpoint`` builds models from them; ``samtok.mllm.folder`` reads the folders of MLLMs.
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from samtok.config import FORMAT, MaskTokenizerConfig
from samtok.errors import CheckpointError, SamtokError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
SHIPPED = Path(__file__).parent / "weights"

HUB = "hf://"
"""Before hub ids whose meaning is settled: an id alone could be a path."""

_HUB_ID = re.compile(r"(?!runs/)[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # runs/ is where jobs write
_OF_MODELS = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")

ASIDE = ".new"
"""End of the name of a folder that takes another's place. What is in it counts on S3, where a folder is not
exchanged at a stroke, while ``COMPLETE`` is there too."""
COMPLETE = "_COMPLETE"

Read = Callable[[str], bytes]
"""Reads a file by its URI, so that callers can bring their own credentials and retries."""


def is_shipped(uri: str) -> bool:
    """Returns whether a URI is a name such as ``tiny``, whose folder comes with the package."""
    return "/" not in uri and (SHIPPED / uri / CONFIG_FILE).exists()


def shipped_names(kind: Literal["tokenizer", "mllm"]) -> list[str]:
    """Returns the names of the mask tokenizers, or MLLMs, that come with the package."""
    names = sorted(path.name for path in SHIPPED.iterdir() if is_shipped(path.name))
    configs = {name: json.loads((SHIPPED / name / CONFIG_FILE).read_bytes()) for name in names}
    return [name for name, body in configs.items() if (body.get("format") == FORMAT) == (kind == "tokenizer")]


def what_fits(kind: Literal["tokenizer", "mllm"]) -> str:
    """Returns the end of a message: what may be given for a model of this kind."""
    return (
        f"It may be a shipped name ({', '.join(shipped_names(kind))}), a folder, a URI such as "
        "s3://bucket/model, or a Hugging Face hub id, owner/name."
    )


def is_hub_id(uri: str, *, path: str | None = None) -> bool:
    """Returns whether a URI is the id of a model on the Hugging Face hub, and not a path.

    An id without ``hf://`` is one only where neither the path nor the folder that it would be in exist;
    ``path`` is what it would be as a path, where that is not relative to the working directory.
    """
    if uri.startswith(HUB):
        return True
    local = Path(path or uri)
    return bool(_HUB_ID.fullmatch(uri)) and not local.exists() and not local.parent.exists()


def resolve(uri: str, *, read: Read | None = None) -> str:
    """Returns the folder of a shipped name, that of a hub id in the local cache, any other URI as it is.

    A folder on S3 that a training is just replacing, or was when it was killed, is read beside its place.

    Raises:
        CheckpointError: If the hub does not give a model and the cache does not have it.
    """
    if is_shipped(uri):
        return str(SHIPPED / uri)
    if is_hub_id(uri):
        return _from_hub(uri.removeprefix(HUB))
    uri = uri.rstrip("/")
    if not uri.startswith("s3://"):
        return uri
    try:
        read_file(f"{uri}{ASIDE}/{COMPLETE}", read)
    except (FileNotFoundError, SamtokError):  # a store can forbid to look
        return uri
    return uri + ASIDE


@functools.cache
def _from_hub(name: str) -> str:
    from huggingface_hub import snapshot_download  # slow to import

    try:
        return snapshot_download(name, allow_patterns=list(_OF_MODELS))
    except Exception as error:  # no network, no such model, no permission: the library has a kind for each
        said = str(error).strip().partition("\n")[0][:200]
        raise CheckpointError(
            f"there is no folder {name}, and the Hugging Face hub has not given a model of this name "
            f"({type(error).__name__}: {said}). Without a network only what `hf download {name}` has put "
            "into the cache (HF_HOME) can be used."
        ) from error


def read_config(uri: str, *, read: Read | None = None) -> MaskTokenizerConfig:
    """Reads the architecture of a tokenizer without its weights.

    Raises:
        CheckpointError: If it is missing, or not the config of a mask tokenizer.
    """
    where = f"{resolve(uri, read=read)}/{CONFIG_FILE}"
    return MaskTokenizerConfig.from_json(_read(where, read), where=where)


def read_weights(uri: str, *, read: Read | None = None) -> bytes:
    """Returns the bytes of a tokenizer's weight file; CheckpointError if it is missing."""
    return _read(f"{resolve(uri, read=read)}/{WEIGHTS_FILE}", read)


def sam2_weights(uri: str) -> str:
    """Returns the URI of the weight file of a SAM2.1: itself, or that of transformers' folder of it."""
    return uri if uri.endswith((".pt", ".pth")) else f"{resolve(uri)}/{WEIGHTS_FILE}"


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
        raise CheckpointError(
            f"there is no {uri}. A tokenizer has {CONFIG_FILE} and {WEIGHTS_FILE}. {what_fits('tokenizer')}"
        ) from error


def _read_with_fsspec(uri: str) -> bytes:
    import fsspec  # half of the start of a dry run, which brings its own reader

    with fsspec.open(uri, "rb") as file:
        return file.read()  # type: ignore[union-attr]
