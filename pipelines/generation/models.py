"""The checkpoint of an MLLM by URI: what it states, a hash of what it answers by, and the loaded model.

Loads torch only with a model.
"""

import hashlib
from typing import TYPE_CHECKING, Any

from pipelines import shards, storage
from pipelines.config import Precision
from pipelines.generation.config import Attention
from pipelines.inputs import require_model
from samtok import folders
from samtok.errors import CheckpointError
from samtok.mllm import folder as mllm_folder
from samtok.mllm.folder import MllmFolder

if TYPE_CHECKING:
    import torch

    from samtok.mllm.family import Adapter

_WEIGHTS = (".safetensors", ".bin")
_SUFFIXES = (*_WEIGHTS, ".json", ".jinja", ".txt", ".model")
_ASIDE = ("lineage.json", "record.json")
"""Files that say where a model comes from; they change nothing about what it answers."""

_STATES_TYPE = ("dtype", "torch_dtype")
"""Keys of ``config.json``; the second is that of transformers 4."""


def read_folder(uri: str, *, flag: str, owner: object = None) -> MllmFolder:
    """Returns what a checkpoint that a flag (of the config object ``owner``) names states.

    Raises:
        ConfigError: If there is no checkpoint; names the command that makes one.
        CheckpointError: If it has no mask words, or its family is not known.
    """
    require_model(uri, flag=flag, owner=owner)
    return mllm_folder.read_folder(folders.resolve(uri, read=storage.read_bytes), read=storage.read_bytes)


def files_of(uri: str) -> list[str]:
    """Returns the names of a checkpoint's files, those in folders below it left out.

    Raises:
        CheckpointError: If there is no ``config.json``.
    """
    names = [name for name in _names_in(uri) if name.endswith(_SUFFIXES) and name not in _ASIDE]
    if "config.json" not in names:
        raise CheckpointError(f"{uri} has no config.json, so it is no checkpoint of Hugging Face's.")
    return names


def _names_in(uri: str) -> list[str]:
    listed = (info.uri.removeprefix(uri.rstrip("/") + "/") for info in storage.list_files(uri))
    return [name for name in listed if "/" not in name]


def sha256_of(uri: str) -> str:
    """Returns one hash over names and contents of a checkpoint's files."""
    uri = folders.resolve(uri, read=storage.read_bytes)
    return shards.digest({name: storage.file_sha256(storage.join(uri, name)) for name in files_of(uri)})


def weights_digest(uri: str) -> str:
    """Returns a hash of the weight files and the config of a model that is trained, wherever it lies."""
    folder = folders.resolve(uri, read=storage.read_bytes)
    found = {
        name: storage.join(folder, name)
        for name in _names_in(folder)
        if name.endswith((".safetensors", ".safetensors.index.json")) or name == "config.json"
    }
    if not any(name.endswith(".safetensors") for name in found):
        raise CheckpointError(
            f"{uri} has no *.safetensors, so it is no model folder that can be trained. Make one with "
            "jobs/extend_mllm.py from a Hugging Face checkpoint."
        )
    digest = hashlib.sha256()
    for name in sorted(found):
        digest.update(name.encode() + bytes.fromhex(storage.file_sha256(found[name])))
    return digest.hexdigest()


def stated_precision(uri: str) -> str:
    """Returns the type that a checkpoint states for its weights, float32 if it states none."""
    body = storage.read_json(storage.join(folders.resolve(uri, read=storage.read_bytes), "config.json"))
    stated = [part.get(key) for part in (body, body.get("text_config", {})) for key in _STATES_TYPE]
    return next((name for name in stated if name), "float32")


def require_same(uri: str, planned: str | None, now: str | None) -> None:
    """Makes sure that weights are still those of the plan; None takes any.

    Raises:
        CheckpointError: If they are not, as after a replacement in mid-run.
    """
    if planned is not None and planned != now:
        raise CheckpointError(
            f"the weights of {uri} are no longer those that the run was planned with. Put them back, or "
            "choose another --out."
        )


def load(
    uri: str,
    *,
    device: "torch.device | str",
    precision: Precision,
    attention: Attention,
    sha256: str | None = None,
) -> "tuple[Adapter, Any]":
    """Loads a model; returns its adapter, and the model on its device, ready to be asked.

    ``sha256`` is what ``sha256_of`` returned when the run was planned; None takes any weights.

    Raises:
        CheckpointError: If it cannot be loaded, or has other weights.
    """
    import torch

    from samtok.mllm.adapters import load_adapter

    require_same(uri, sha256, sha256 and sha256_of(uri))
    uri = folders.resolve(uri, read=storage.read_bytes)
    files_of(uri)  # refuses what is no checkpoint
    folder = storage.node_folder(uri)
    adapter = load_adapter(folder)
    model: Any = adapter.load_model(folder, dtype=getattr(torch, precision), attn=attention)
    return adapter, model.to(device).eval()
