"""Attention within each dialogue of a packed row, so that a row costs no more than its dialogues do.

transformers keeps packed dialogues apart by a mask of all tokens against all: eight dialogues of 500 tokens
cost as one of 4,000. Here each is attended to by itself, causally and without any mask. Whether a row is
packed, and where its dialogues begin, is what transformers itself finds in the positions, and every other
batch goes its usual way through ``sdpa``.

Linear attention (Qwen3.5) carries a state from token to token. transformers resets it only in the kernels of
other packages, for GPUs; here such a layer takes the dialogues as a batch, with whatever kernel it has.
"""

import itertools
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

BY_DIALOGUE = "sdpa_by_dialogue"
"""Name of this attention among those of transformers."""


def attend_by_dialogue(model: PreTrainedModel) -> None:
    """Makes the language model of an MLLM attend within each dialogue of a packed row.

    Only attention that was loaded as ``sdpa`` is changed, and layers that carry a state.
    """
    config = model.config.get_text_config()
    if not resets_state(model):
        for layer in model.modules():
            if hasattr(layer, "linear_attn"):
                _begin_anew(layer)
        model.resets_state = True  # type: ignore[assignment] a module takes attributes
    if config._attn_implementation == "sdpa":
        ALL_MASK_ATTENTION_FUNCTIONS.register(BY_DIALOGUE, _mask)
        ALL_ATTENTION_FUNCTIONS.register(BY_DIALOGUE, _attend)
        config._attn_implementation = BY_DIALOGUE


def resets_state(model: PreTrainedModel) -> bool:
    """Whether no state goes from one dialogue of a packed row to the next."""
    layers = getattr(model.config.get_text_config(), "layer_types", None) or ()
    return "linear_attention" not in layers or getattr(model, "resets_state", False)


def dialogue_lengths(positions: Int[Tensor, " token"]) -> list[int]:
    """Returns the lengths of the dialogues in a row; one begins wherever a position does not follow on.

    ``[0, 1, 2, 0, 1]`` are two dialogues of 3 and 2 tokens.
    """
    begins = torch.nonzero(positions.diff() != 1).flatten() + 1
    borders = [0, *begins.tolist(), len(positions)]
    return [end - start for start, end in itertools.pairwise(borders)]


def _begin_anew(layer: Any) -> None:
    """Makes a layer's linear attention take the dialogues of a packed row as rows of a batch.

    In one call, since ZeRO-3 wants as many on all workers, whatever they have packed. What pads a row comes
    behind its end, where causality keeps it from all others. Only the layer is given positions; a hook hands
    them on, also where activations are made again.
    """
    inner = layer.linear_attn
    whole = inner.forward

    def hand_on(_: Any, __: Any, named: dict[str, Any]) -> None:
        inner.positions = named.get("position_ids")

    def forward(
        hidden_states: Tensor, cache_params: Any = None, attention_mask: Any = None, **options: Any
    ) -> Tensor:
        one_row = len(hidden_states) == 1 and cache_params is None and attention_mask is None
        if not one_row or inner.positions is None:
            return whole(hidden_states, cache_params=cache_params, attention_mask=attention_mask, **options)
        lengths = _remembered_lengths(inner.positions)
        rows = whole(pad_sequence(list(hidden_states[0].split(lengths)), batch_first=True), **options)
        return torch.cat([row[:length] for row, length in zip(rows, lengths, strict=True)])[None]

    layer.register_forward_pre_hook(hand_on, with_kwargs=True)
    inner.forward = forward


def _mask(*, attention_mask: Tensor | None = None, **options: Any) -> Tensor | None:
    """Makes the mask of ``sdpa``; of a packed row instead an empty tensor, by which ``_attend`` knows it."""
    packed = attention_mask is None and not options["allow_is_causal_skip"] and not options["use_vmap"]
    if packed and options["batch_size"] == 1 and options["q_length"] == options["kv_length"] > 1:
        return torch.empty(0)
    return sdpa_mask(attention_mask=attention_mask, **options)


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attends as ``sdpa``; in a packed row once per dialogue. All are batch x head x token x width."""
    if attention_mask is None or attention_mask.numel():
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if position_ids is None:
        raise ValueError(
            "attention to a packed row needs the positions of its text, and this version of transformers did "
            f"not hand them to {type(module).__name__}. Do not pack, or load the model with eager attention."
        )
    lengths = _remembered_lengths(position_ids)
    pieces = [tensor.split(lengths, dim=2) for tensor in (query, key, value)]
    found = [
        sdpa_attention_forward(module, q, k, v, None, **options)[0] for q, k, v in zip(*pieces, strict=True)
    ]
    return torch.cat(found, dim=1), None


def _remembered_lengths(position_ids: Tensor) -> list[int]:
    """Reads the lengths off once for all layers, which share the tensor: on a GPU reading makes it wait."""
    found = getattr(position_ids, "dialogue_lengths", None)
    if found is None:
        found = dialogue_lengths(position_ids[0])
        position_ids.dialogue_lengths = found  # type: ignore[attr-defined] tensors take attributes
    return found
