"""Adapters of low rank on a frozen language model (LoRA, arXiv 2106.09685), by the library PEFT.

They are added in place, so a model stays of its class and everything works with it as before. What leaves a
training is merged: ``merged`` makes the state of a plain model, to which adapters and the rows of mask words
(``new_rows``) have been added; ``save_adapter`` writes these alone, as PEFT reads them.

PEFT is imported late: it takes seconds.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from samtok.errors import ConfigError
from samtok.mllm import new_rows

_NAME = "default"
_DOWN, _UP = f".lora_A.{_NAME}.weight", f".lora_B.{_NAME}.weight"
_FROZEN = ".base_layer."


def add_adapters(
    model: Any, *, rank: int, alpha: float, dropout: float, targets: Sequence[str], seed: int
) -> list[nn.Parameter]:
    """Adds adapters to linear layers of the language model, in place; returns their weights.

    At first they change no output. Everything else of the model is frozen.

    Args:
        alpha: What they add is scaled by ``alpha / rank``.
        dropout: Share of an adapter's input that is dropped in training.
        targets: Last parts of the layers' names; none means all linear layers.
        seed: Of the drawing; equal seeds give equal adapters.

    Raises:
        ConfigError: The language model has no linear layer of such a name.
    """
    import peft

    decoder = model.get_decoder()
    place = next(name for name, module in model.named_modules() if module is decoder)
    linear = (name for name, module in decoder.named_modules() if isinstance(module, nn.Linear))
    known = sorted({name.rpartition(".")[2] for name in linear})
    if unknown := sorted(set(targets) - set(known)):
        raise ConfigError(
            f"--lora.targets {' '.join(unknown)}: the language model has no such linear layers; it has "
            f"{', '.join(known)}."
        )
    ends = "|".join(map(re.escape, targets or known))
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=dropout,
        target_modules=rf"{re.escape(place)}\.(.*\.)?({ends})",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, model, adapter_name=_NAME)
    return [parameter for name, parameter in model.named_parameters() if ".lora_" in name]


def turn_off(model: Any) -> None:
    """Makes a model answer as without adapters, if it has any."""
    if not hasattr(model, "peft_config"):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.enable_adapters(False)


def merged(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the state of a plain model that answers as this one does, but for rounding.

    What adapters or rows of their own have changed is new, on the CPU; all else is what was given.

    Args:
        model: Says where adapters and rows are; its own weights may be spread over workers.
        state: Its whole state.
    """
    beside = {name: tensor for name, tensor in state.items() if is_beside(name)}
    plain: dict[str, Tensor] = {}
    made: dict[int, Tensor] = {}  # by the rows in them, so that tied tables stay one
    for name, weight in state.items():
        if name in beside:
            continue
        rows = beside.get(_rows_of(name))
        if rows is None:
            plain[plain_name(name)] = merged_weight(model, name, weight, beside)
        elif rows.data_ptr() in made:
            plain[name] = made[rows.data_ptr()]
        else:
            plain[name] = made[rows.data_ptr()] = merged_weight(model, name, weight, beside)
    return plain


def merged_weight(model: nn.Module, name: str, weight: Tensor, beside: Mapping[str, Tensor]) -> Tensor:
    """Returns a weight as a plain model has it: the given one, or if anything is trained ``beside`` it a new
    one on the CPU."""
    if (rows := beside.get(_rows_of(name))) is not None:
        return new_rows.put_back(model, name.removesuffix(".weight"), weight, rows)
    layer = name.removesuffix(f"{_FROZEN}weight")
    if (down := beside.get(layer + _DOWN)) is None:
        return weight
    scale = model.get_submodule(layer).scaling[_NAME]  # pyright: ignore
    return (weight + (beside[layer + _UP] @ down) * scale).cpu()


def _rows_of(table: str) -> str:
    return f"{table.removesuffix('.weight')}.{new_rows.NAME}"


def is_beside(name: str) -> bool:
    """Tells whether a weight is an adapter's, or of rows that stand in for those of a table."""
    return ".lora_" in name or name.endswith(f".{new_rows.NAME}")


def plain_name(name: str) -> str:
    """Returns the name of the plain model's weight in which a weight of this name ends up."""
    table = name.replace(_FROZEN, ".").replace(f".{new_rows.NAME}", ".weight")
    return re.sub(r"\.lora_.*", ".weight", table)


def save_adapter(
    model: Any, state: Mapping[str, Tensor], trained: Collection[str], folder: Path, *, base: str
) -> None:
    """Writes all that was trained as PEFT's adapter, if the model has adapters: they, the rows of mask words,
    and what else was trained in full.

    Args:
        state: The model's whole state.
        trained: Names of what was trained.
        base: Of the model that it belongs to.
    """
    if not hasattr(model, "peft_config"):
        return
    config = model.peft_config[_NAME]
    whole = [name for name in trained if ".lora_" not in name and not name.endswith(f".{new_rows.NAME}")]
    rows = [name.removesuffix(f".{new_rows.NAME}") for name in trained if name.endswith(f".{new_rows.NAME}")]
    config.base_model_name_or_path = base
    config.modules_to_save = sorted({name.rpartition(".")[0] for name in whole}) or None
    config.trainable_token_indices = {name: list(model.get_submodule(name).new_row_ids) for name in rows}
    config.save_pretrained(folder)
    delta = f".{new_rows.NAME}", ".token_adapter.trainable_tokens_delta"
    names = {name: name.replace(f".{_NAME}.", ".").replace(*delta) for name in trained}
    tensors = {f"base_model.model.{names[n]}": state[n].detach().cpu().contiguous() for n in trained}
    save_file(tensors, folder / "adapter_model.safetensors")
