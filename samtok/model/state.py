"""Weights of a mask tokenizer in its folder (``samtok.folders``): written whole, read, checked by name."""

import tempfile
from pathlib import Path

from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from samtok.config import MaskTokenizerConfig
from samtok.errors import CheckpointError
from samtok.folders import CONFIG_FILE, WEIGHTS_FILE, Read, read_weights, write_file
from samtok.model.published import authors_state, some


def save_folder(model: nn.Module, config: MaskTokenizerConfig, uri: str) -> None:
    """Writes a folder, local or any that fsspec opens; each local file appears whole, and the config last.

    Raises:
        CheckpointError: If fsspec cannot write there.
    """
    uri = uri.removeprefix("file://")
    for name, data in files_of(model, config).items():
        if "://" in uri:
            write_file(f"{uri.rstrip('/')}/{name}", data)
            continue
        folder = Path(uri)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}.") as aside:
            whole = Path(aside) / name
            whole.write_bytes(data)
            whole.chmod(0o644)
            whole.replace(folder / name)


def files_of(model: nn.Module, config: MaskTokenizerConfig) -> dict[str, bytes]:
    """Returns the files of a tokenizer's folder by name, in the order in which they should be written."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return {
        WEIGHTS_FILE: save_safetensors(state, metadata={"format": "pt"}),
        CONFIG_FILE: config.to_json().encode(),
    }


def read_state(uri: str, *, read: Read | None = None) -> tuple[dict[str, Tensor], str]:
    """Returns the tensors of a tokenizer's folder by name, and the SHA-256 that names it.

    Raises:
        CheckpointError: If the file is missing or broken.
    """
    where, data, sha256 = read_weights(uri, read=read)
    return (authors_state if where.endswith(".pth") else read_safetensors)(data, where), sha256


def read_safetensors(data: bytes, where: str) -> dict[str, Tensor]:
    """Reads a file of tensors; CheckpointError if it is broken."""
    try:
        return load_safetensors(data)
    except Exception as error:  # safetensors raises several kinds for broken files
        raise CheckpointError(f"{where} is not a whole safetensors file: {error}. Copy it again.") from error


def fill(model: nn.Module, state: dict[str, Tensor], *, where: str) -> None:
    """Loads a state that has exactly the model's names and shapes; CheckpointError names what differs."""
    expected = model.state_dict()
    missing, unknown = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    if missing or unknown:
        raise CheckpointError(
            f"{where} does not fit this architecture: missing {some(missing)}, unknown {some(unknown)}."
        )
    wrong = [
        f"{n} is {tuple(state[n].shape)} instead of {tuple(t.shape)}"
        for n, t in expected.items()
        if state[n].shape != t.shape
    ]
    if wrong:
        raise CheckpointError(f"{where} is of another size: {some(wrong)}. Choose another preset.")
    model.load_state_dict(state)
