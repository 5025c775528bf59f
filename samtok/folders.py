"""Where models are, by shipped name, path, URI or hub id; and mask tokenizers' files, read without torch.

``samtok.checkpoint`` builds models from them; ``samtok.mllm.folder`` reads the folders of MLLMs.
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from samtok.config import FORMAT, PRESETS, MaskTokenizerConfig
from samtok.errors import CheckpointError, SamtokError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
BESIDE_FILE = "mask_tokenizer.json"
"""Says which mask tokenizer lies beside an MLLM; the authors' checkpoints, which hold the published one, have
none."""
_PUBLISHED = PRESETS["sam2.1-large"]
SHIPPED = Path(__file__).parent / "weights"

HUB = "hf://"
"""Before hub ids whose meaning is settled: an id alone could be a path."""

_HUB_ID = re.compile(r"(?!runs/)[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # runs/ is where jobs write
_OF_MODELS = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "mask_tokenizer_*.pth")

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
    return _described(uri, read).config


def read_weights(uri: str, *, read: Read | None = None) -> tuple[str, bytes, str]:
    """Returns the place and the bytes of a tokenizer's weight file, and the SHA-256 that names the tokenizer.

    That is the file's, or of that which a file in the authors' layout was made of.

    Raises:
        CheckpointError: If it is missing, or not the file that ``mask_tokenizer.json`` states.
    """
    found = _described(uri, read)
    where, data = found.weights, _read(found.weights, read)
    own = hashlib.sha256(data).hexdigest()
    if found.file_sha256 not in (None, own):
        raise CheckpointError(
            f"{where} is not the file that {BESIDE_FILE} beside it states. Copy both again, or remove "
            f"{BESIDE_FILE} if the weights are the published ones."
        )
    return where, data, found.sha256 or own


def beside_model(uri: str, *, read: Read | None = None) -> str | None:
    """Returns where a tokenizer's weights lie beside the model of the same folder, whether they are there or
    not; None for the folder of a tokenizer."""
    weights = _described(uri, read).weights
    return weights if weights.endswith(".pth") else None


def authors_name(config: MaskTokenizerConfig) -> str:
    """Returns the name of a tokenizer's weight file in the authors' layout."""
    return f"mask_tokenizer_{config.quantizer.num_codes}x{config.quantizer.num_levels}.pth"


def beside_json(config: MaskTokenizerConfig, data: bytes, sha256: str | None) -> bytes:
    """Returns ``mask_tokenizer.json`` of a file in the authors' layout that was made of weights of a hash."""
    body = {
        "config": json.loads(config.to_json()),
        "file_sha256": hashlib.sha256(data).hexdigest(),
        "weights_sha256": sha256,
    }
    return (json.dumps(body, indent=2) + "\n").encode()


@dataclass(frozen=True)
class _Described:
    """A tokenizer's architecture, the place of its weight file, and hashes where they are stated."""

    config: MaskTokenizerConfig
    weights: str
    file_sha256: str | None = None
    sha256: str | None = None


def _described(uri: str, read: Read | None) -> _Described:
    folder = resolve(uri, read=read)
    where = f"{folder}/{CONFIG_FILE}"
    text = _read(where, read)
    if not _is_of_a_model(text):
        return _Described(MaskTokenizerConfig.from_json(text, where=where), f"{folder}/{WEIGHTS_FILE}")
    where = f"{folder}/{BESIDE_FILE}"
    try:
        text = read_file(where, read)
    except FileNotFoundError:
        return _Described(_PUBLISHED, f"{folder}/{authors_name(_PUBLISHED)}")
    try:
        body = json.loads(text)
        stated = json.dumps(body["config"]), str(body["file_sha256"]), body["weights_sha256"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{where} describes no mask tokenizer ({error!r}). Copy it again.") from error
    config = MaskTokenizerConfig.from_json(stated[0], where=where)
    return _Described(config, f"{folder}/{authors_name(config)}", *stated[1:])


def _is_of_a_model(text: bytes) -> bool:
    """Returns whether a ``config.json`` is a Hugging Face model's, beside which a tokenizer may lie."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(body, dict) and "model_type" in body and "format" not in body


def sam2_weights(uri: str) -> str:
    """Returns the URI of the weight file of a SAM2.1: itself, or that of transformers' folder of it."""
    return uri if uri.endswith((".pt", ".pth")) else f"{resolve(uri)}/{WEIGHTS_FILE}"


def weights_sha256(uri: str, *, read: Read | None = None) -> str:
    """Returns the SHA-256 of a tokenizer's weights, by which fingerprints and lineage name it."""
    return read_weights(uri, read=read)[2]


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
            f"there is no {uri}. A tokenizer has {CONFIG_FILE} and {WEIGHTS_FILE}, or is "
            f"{authors_name(_PUBLISHED)} beside a model. {what_fits('tokenizer')}"
        ) from error


def _read_with_fsspec(uri: str) -> bytes:
    import fsspec  # half of the start of a dry run, which brings its own reader

    with fsspec.open(uri, "rb") as file:
        return file.read()  # type: ignore[union-attr]
