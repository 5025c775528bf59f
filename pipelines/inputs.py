"""Inputs of a job that are not there are refused before it begins, with the command that makes them."""

from typing import Literal

from pipelines import storage
from samtok import folders
from samtok.errors import CheckpointError, ConfigError


def require(place: str, *, flag: str, command: str, file: str | None = None, owner: object = None) -> None:
    """Refuses a place that is neither a file nor a folder with files (or with ``file`` in it).

    ConfigError names the place, its flag, and the command that makes one. ``owner`` is the config object that
    has the flag, if that begins with ``--.``.
    """
    where = place if file is None else storage.join(place, file)
    if not (storage.exists(where) or (file is None and storage.list_files(place, limit=1))):
        raise ConfigError(
            f"{flag}: there is no {where}. `{command}` makes one; or give another place.", owner=owner
        )


def require_tokenizer(uri: str, *, flag: str = "--tokenizer", owner: object = None) -> None:
    """Refuses a tokenizer that does not ship with the package, is not there and not on the Hugging Face hub;
    raises as ``require``, with what may be given."""
    command = "python jobs/train_tokenizer.py --preset micro"  # in OUT/final
    _require_folder(uri, "tokenizer", flag=flag, command=command, owner=owner)


def require_model(uri: str, *, flag: str = "--model", owner: object = None) -> None:
    """Refuses an MLLM as ``require_tokenizer`` does a tokenizer."""
    command = f"python jobs/extend_mllm.py --preset smoke --out {uri}"
    _require_folder(uri, "mllm", flag=flag, command=command, owner=owner)


def require_sam2(uri: str, *, owner: object, other: str = "or leave it out") -> str:
    """Refuses a SAM2.1 that is not there, by ``--.sam2`` of its owner, with what else may be done; returns
    the file with its weights."""
    try:
        weights = folders.sam2_weights(uri)
    except CheckpointError as error:
        raise ConfigError(f"--.sam2: {error}", owner=owner) from error
    if not storage.exists(weights):
        raise ConfigError(
            f"--.sam2: there is no {weights}. Download sam2.1_hiera_*.pt as facebookresearch/sam2 says; "
            "or give a folder with transformers' model.safetensors or its hub id, "
            f"facebook/sam2.1-hiera-large; {other}.",
            owner=owner,
        )
    return weights


def _require_folder(
    uri: str, kind: Literal["tokenizer", "mllm"], *, flag: str, command: str, owner: object
) -> None:
    if folders.is_shipped(uri):
        if uri not in folders.shipped_names(kind):
            what = "a mask tokenizer" if kind == "tokenizer" else "an MLLM"
            raise ConfigError(f"{flag}: {uri} is not {what}. {folders.what_fits(kind)}", owner=owner)
        return
    try:
        place = folders.resolve(uri, read=storage.read_bytes)
        require(place, flag=flag, command=command, file=folders.CONFIG_FILE, owner=owner)
    except (ConfigError, CheckpointError) as error:
        said = error.message if isinstance(error, ConfigError) else f"{flag}: {error}"
        raise ConfigError(f"{said} {folders.what_fits(kind)}", owner=owner) from error
    if kind == "tokenizer":
        beside = folders.beside_model(uri, read=storage.read_bytes)
        if beside is not None and not storage.exists(beside):
            raise ConfigError(
                f"{flag}: {uri} is a model without a mask tokenizer; there is no {beside}. "
                f"{folders.what_fits(kind)}",
                owner=owner,
            )
