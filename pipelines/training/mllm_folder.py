"""The folder of an MLLM that will be trained, as far as it is read without torch."""

import hashlib

from pipelines import storage
from pipelines.inputs import require_model
from samtok.errors import CheckpointError
from samtok.folders import resolve
from samtok.mllm.folder import MllmFolder, read_folder


def read_model_folder(uri: str, *, owner: object) -> MllmFolder:
    """Reads what a model's folder states: family, words, their tokenizer.

    Args:
        owner: The config object whose field ``model`` it is.

    Raises:
        ConfigError: If there is no such folder.
        CheckpointError: If it is no model with mask words.
    """
    require_model(uri, flag="--.model", owner=owner)
    return read_folder(resolve(uri), read=storage.read_bytes)


def weights_digest(uri: str) -> str:
    """Returns a hash of the weight files and the config of a model folder, wherever it lies."""
    found = {
        file.uri.rpartition("/")[2]: file.uri
        for file in storage.list_files(resolve(uri))
        if file.uri.endswith((".safetensors", ".safetensors.index.json", "/config.json"))
    }
    if not any(name.endswith(".safetensors") for name in found):
        raise CheckpointError(
            f"{uri} has no *.safetensors, so it is no model folder that can be trained. Make one with "
            "jobs/extend_mllm.py from a Hugging Face checkpoint."
        )
    digest = hashlib.sha256()
    for name in sorted(found):
        digest.update(name.encode())
        with storage.local_copy(found[name]) as path, path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
