"""What training an MLLM needs besides an engine, whatever the loss: what is trained, and export."""

import dataclasses
import json
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipelines import storage
from pipelines.generation import models
from pipelines.training import world
from pipelines.training.config import ExportPrecision, TrainsMllm
from pipelines.training.engine import Engine
from pipelines.training.steps import mixed_seed
from samtok.errors import CheckpointError
from samtok.mllm import lora, new_rows
from samtok.mllm.adapters import load_adapter, save_pretrained
from samtok.mllm.family import Adapter

LINEAGE_FILE = "lineage.json"
ADAPTER_FOLDER = "adapter"
"""Of an export, with the adapters alone."""

_ADAPTERS = 0x6C6F7261
"""First word of the seed of adapters, so that no other use of the run's seed draws the same numbers."""


def set_trained(model: Any, adapter: Adapter, config: TrainsMllm) -> None:
    """Sets which weights are trained, and adds those that are trained beside frozen ones; equal on all
    workers. Raises ConfigError if there are no such targets of adapters."""
    beside: list[nn.Parameter] = []
    if config.train.llm and not config.trains_whole_llm:
        beside += new_rows.set_apart(model, new_rows.rows_of_words(adapter))
    if config.lora.rank:
        seed = mixed_seed(config.seed, _ADAPTERS)
        beside += lora.add_adapters(model, **dataclasses.asdict(config.lora), seed=seed)
    train = config.train
    adapter.freeze(model, vision=train.vision, projector=train.projector, llm=config.trains_whole_llm)
    for parameter in beside:
        parameter.requires_grad_()


def names_of_trained(model: nn.Module) -> list[str]:
    """Returns the names of the parameters that are trained."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def published(model: nn.Module, engine: Engine, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """Yields the trained weights as a plain model has them, rows in their tables and adapters merged, on the
    first worker, one at a time and only until the next is asked for; all workers must go through it.

    Args:
        model: What is trained.
        names: Of what is trained in it.
    """
    beside = {name: tensor.clone() for name, tensor in engine.weights(set(filter(lora.is_beside, names)))}
    plain = set(map(lora.plain_name, names))
    held = [
        name for name in model.state_dict() if not lora.is_beside(name) and lora.plain_name(name) in plain
    ]
    for name, weight in engine.weights(held):
        if world.rank() == 0:
            yield lora.plain_name(name), lora.merged_weight(model, name, weight, beside)


def export(
    model: PreTrainedModel,
    state: Mapping[str, Tensor],
    adapter: Adapter,
    uri: str,
    lineage: Mapping[str, Any],
    *,
    precision: str,
) -> str:
    """Writes model, processor, vocabulary and lineage; returns a hash of the weights. Adapters are merged,
    and written beside the model as well.

    What was written is loaded back and compared bit for bit before it takes the place of an earlier export.
    Raises CheckpointError if the files do not hold these weights, or the words were lost; StorageError if the
    folder cannot be written.

    Args:
        model: Has the config and the names; its own weights may be spread over workers.
        state: Its whole state.
        lineage: Where model and data come from.
        precision: Type of the weights that are written.
    """
    plain = _cast(lora.merged(model, state), getattr(torch, precision))
    with tempfile.TemporaryDirectory(prefix="samtok-") as name:
        folder = Path(name)
        save_pretrained(model, adapter, folder, state=plain)
        _compare(folder, plain, uri)
        base = lineage.get("model", {}).get("uri", "")
        lora.save_adapter(model, state, names_of_trained(model), folder / ADAPTER_FOLDER, base=base)
        digest = models.weights_digest(str(folder))
        body = json.dumps({**lineage, "weights_sha256": digest}, indent=2) + "\n"
        (folder / LINEAGE_FILE).write_text(body)
        storage.replace_folder(folder, uri)
    return digest


def precision_of(export: ExportPrecision, model: str) -> str:
    """Returns the type of exported weights of a run that starts from a model."""
    return models.stated_precision(model) if export == "model" else export


def _cast(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Rounds weights to a type, on the CPU; what is tied stays so."""
    seen: dict[tuple[int, torch.Size], Tensor] = {}
    found = {}
    for name, tensor in state.items():
        if tensor.is_floating_point() and tensor.dtype != dtype:
            tensor = seen.setdefault((tensor.data_ptr(), tensor.shape), tensor.to("cpu", dtype))
        found[name] = tensor
    return found


def _compare(folder: Path, state: Mapping[str, Tensor], uri: str) -> None:
    """Loads what was written the way a user does, and compares it with what was to be written."""
    loaded = load_adapter(folder).load_model(folder).state_dict()
    odd = sorted(set(loaded) ^ set(state))
    odd += [
        name
        for name, tensor in loaded.items()
        if name in state and not torch.equal(tensor, state[name].to("cpu", tensor.dtype))
    ]
    if odd:
        raise CheckpointError(
            f"the export to {uri} went wrong: {', '.join(odd[:3])} of {len(odd)} tensors are not what was "
            "trained when the files are loaded back. Nothing was written there."
        )
