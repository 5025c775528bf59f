"""Writes the model that came out of training as a Hugging Face folder, and reads it back."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from pipelines import storage
from samtok.errors import CheckpointError
from samtok.mllm.adapters import SAMTOK_FILE, load_adapter, save_pretrained
from samtok.mllm.family import Adapter

LINEAGE_FILE = "lineage.json"


def export(
    model: PreTrainedModel, state: Mapping[str, Tensor], adapter: Adapter, uri: str, lineage: Mapping[str, Any]
) -> str:
    """Writes model, processor, vocabulary and lineage; returns a hash of the weights.

    What was written is loaded back and compared bit for bit before it goes to its place.

    Args:
        model: Has the config and the names; its own weights may be spread over workers.
        state: Its whole state.
        adapter: Its adapter.
        uri: The folder.
        lineage: Where model and data come from.

    Raises:
        CheckpointError: If the files do not hold these weights, or the words were lost.
        StorageError: If the folder cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="samtok-") as name:
        folder = Path(name)
        save_pretrained(model, adapter, folder, state=state)
        _compare(folder, state, uri)
        load_adapter(folder)
        digest = weights_digest(str(folder))
        body = json.dumps({**lineage, "weights_sha256": digest}, indent=2) + "\n"
        (folder / LINEAGE_FILE).write_text(body)
        storage.put_folder(folder, uri, last=SAMTOK_FILE)
    return digest


def _compare(folder: Path, state: Mapping[str, Tensor], uri: str) -> None:
    """Compares the weights in a folder with those that were to be written."""
    reverse = {name: tensor for name, tensor in state.items()}
    seen = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 not a dict
                seen += 1
                if name not in reverse or not torch.equal(file.get_tensor(name), reverse[name].cpu()):
                    raise CheckpointError(
                        f"the export to {uri} went wrong: {name} in {path.name} is not the trained tensor. "
                        "Nothing was written there."
                    )
    if seen == 0:
        raise CheckpointError(f"the export to {uri} went wrong: it has no weights. Nothing was written there.")


def weights_digest(uri: str) -> str:
    """Returns a hash of the weight files and the config of a model folder, wherever it lies."""
    found = {
        file.uri.rpartition("/")[2]: file.uri
        for file in storage.list_files(uri)
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
