"""The checkpoint of an MLLM by URI: a local folder to load it from, and a hash of what it answers by."""

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipelines import shards, storage
from samtok.errors import CheckpointError

_WEIGHTS = (".safetensors", ".bin")
_SUFFIXES = (*_WEIGHTS, ".json", ".jinja", ".txt", ".model")
_PIECE_BYTES = 2**24
_ASIDE = ("lineage.json", "record.json")
"""Files that say where a model comes from; they change nothing about what it answers."""


def files_of(uri: str) -> list[str]:
    """Returns the names of a checkpoint's files, those in folders below it left out.

    Raises:
        CheckpointError: If there is no ``config.json``.
    """
    prefix = uri.rstrip("/") + "/"
    names = [info.uri.rpartition("/")[2] for info in storage.list_files(uri) if _own(info.uri, prefix)]
    if "config.json" not in names:
        raise CheckpointError(
            f"{uri} has no config.json, so it is no checkpoint of Hugging Face's. Is --model right? "
            "jobs/extend_mllm.py makes one with mask words."
        )
    return names


def _own(uri: str, prefix: str) -> bool:
    name = uri.removeprefix(prefix)
    return "/" not in name and name.endswith(_SUFFIXES) and name not in _ASIDE


def sha256_of(uri: str) -> str:
    """Returns one hash over names and contents of a checkpoint's files."""
    found = {}
    for name in files_of(uri):
        with storage.open_input(storage.join(uri, name)) as file:
            found[name] = _sha256(file)
    return shards.digest(found)


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while data := file.read(_PIECE_BYTES):
        digest.update(data)
    return digest.hexdigest()


@contextlib.contextmanager
def local_folder(uri: str, *, weights: bool = True) -> Iterator[Path]:
    """Gives a local folder with a checkpoint: the folder itself, or a copy that is deleted at the end.

    Args:
        uri: The checkpoint.
        weights: Copy the weights too; without them there is enough for an adapter.
    """
    if not storage.is_remote(uri):
        files_of(uri)
        yield Path(uri.removeprefix("file://"))
        return
    with tempfile.TemporaryDirectory(prefix="samtok-mllm-") as folder:
        names = [name for name in files_of(uri) if weights or not name.endswith(_WEIGHTS)]
        for name in names:
            with storage.local_copy(storage.join(uri, name)) as copy:
                copy.rename(Path(folder) / name)
        yield Path(folder)
