"""Embedding rows of mask words that are trained while the rest of their table is frozen.

The rows become parameters of their own and stand in for those of the table, in lookups and in logits. So
gradients, optimizer and checkpoints know of them alone, and no bit of the table moves. PEFT's trainable
tokens do the same with a copy of the whole table in every forward pass, and past ``float_head``.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from samtok.errors import CheckpointError
from samtok.mllm.family import Adapter

NAME = "new_rows"
"""Name of the parameter, in the module of the table."""


def rows_of_words(adapter: Adapter) -> range:
    """Returns the token ids of mask words, start and end included; CheckpointError if there are gaps."""
    ids = sorted(adapter.word_ids.all)
    if ids != list(range(ids[0], ids[-1] + 1)):
        raise CheckpointError(
            "the token ids of this checkpoint's mask words do not follow each other, so their rows cannot be "
            "trained apart from others. Leave out --new-rows-lr, --train.new-rows-only and --lora.rank."
        )
    return range(ids[0], ids[-1] + 1)


def set_apart(model: Any, rows: range) -> list[nn.Parameter]:
    """Makes rows of input and output embeddings parameters of their own, one if they are tied; in place.

    Call it before ZeRO gets the model.
    """
    made: dict[int, nn.Parameter] = {}
    for table, stand_in in (
        (model.get_input_embeddings(), _look_up),
        (model.get_output_embeddings(), _compare),
    ):
        weight = table.weight
        own = made.setdefault(id(weight), nn.Parameter(weight.detach()[rows.start : rows.stop].clone()))
        table.register_parameter(NAME, own)
        table.new_row_ids = rows
        table.register_forward_hook(stand_in)
    return list(made.values())


def put_back(model: nn.Module, module: str, table: Tensor, rows: Tensor) -> Tensor:
    """Returns a copy of a module's table, on the CPU, with its rows in it."""
    ids: Any = model.get_submodule(module).new_row_ids
    whole = table.detach().to("cpu", copy=True)
    whole[ids.start : ids.stop] = rows.detach().cpu()
    return whole


def _look_up(table: Any, args: tuple[Tensor, ...], found: Tensor) -> Tensor:
    ids, rows = args[0], table.new_row_ids
    new = (ids >= rows.start) & (ids < rows.stop)
    own = functional.embedding(torch.where(new, ids - rows.start, 0), table.new_rows)
    return torch.where(new[..., None], own.to(found.dtype), found)


def _compare(table: Any, args: tuple[Tensor, ...], logits: Tensor) -> Tensor:
    """Computes as the table did, whether in autocast or in float32 in spite of it."""
    first, stop = table.new_row_ids.start, table.new_row_ids.stop
    bias = None if table.bias is None else table.bias[first:stop].to(logits.dtype)
    with torch.autocast(logits.device.type, enabled=False):
        own = functional.linear(args[0].to(logits.dtype), table.new_rows.to(logits.dtype), bias)
    logits[..., first:stop] = own
    return logits
