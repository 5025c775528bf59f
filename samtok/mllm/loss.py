"""The loss of answers: next-token cross-entropy over labels. Batches that would train wrongly are refused."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import modeling_utils

from samtok.mllm.chat import IGNORE
from samtok.mllm.packed_attention import BY_DIALOGUE, resets_state
from samtok.mllm.registry import known

IMAGE_INPUTS = {"pixel_values", "mm_encoder_outputs"}
"""Inputs of a batch with images: their pixels, or features that were computed before."""

PACKED_ATTENTION = ("sdpa", "eager", BY_DIALOGUE)
"""Attention kernels with which packed dialogues were found to stay apart."""

TAKES_MASKS = hasattr(modeling_utils, "slice_logits_to_keep")
"""Whether transformers makes logits of a mask of tokens (since 5.21), or of the same places in all rows."""


def answer_loss(model: nn.Module, batch: Mapping[str, Any]) -> Float[Tensor, ""]:
    """Returns the sum of next-token cross-entropies over all learnt tokens of a batch.

    The caller divides by the learnt tokens of the whole step, so that neither the number of workers nor the
    cut into micro-batches changes the loss. A batch, from ``Adapter.collate`` or ``Adapter.pack``, is on the
    model's device.

    Raises:
        ValueError: The batch would train on wrong positions, or on dialogues that see each other.
    """
    logits, targets = answer_logits(model, batch)
    return cross_entropy(logits, targets, reduction="sum")


def answer_logits(
    model: nn.Module, batch: Mapping[str, Any]
) -> tuple[Float[Tensor, "learnt vocab"], Int[Tensor, " learnt"]]:
    """Returns the logits from which each learnt token is predicted, in float32, and these tokens.

    Only they are computed: with 150,000 words the logits of all tokens would be the largest tensor there is.

    Raises:
        ValueError: As ``answer_loss``.
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    _check(mllm_of(model), inputs)
    labels = batch["labels"]
    learnt = torch.zeros_like(labels, dtype=torch.bool)
    learnt[:, :-1] = labels[:, 1:] != IGNORE
    places = learnt if TAKES_MASKS else learnt.any(dim=0).nonzero().flatten()
    logits = model(**inputs, use_cache=False, logits_to_keep=places).logits
    logits = logits if TAKES_MASKS else logits[learnt[:, places]]
    return logits.float(), labels[:, 1:][learnt[:, :-1]]


def mllm_of(model: nn.Module) -> Any:
    """Returns the MLLM inside of what DeepSpeed or DDP has made of it."""
    while not hasattr(model, "config") or not hasattr(model.config, "model_type"):
        model = model.get_submodule("module")
    return model


def _check(model: Any, inputs: Mapping[str, Tensor]) -> None:
    config = model.config
    family = known().get(config.model_type)
    if family is None or not family.mrope:
        return
    positions = inputs.get("position_ids")
    if positions is None:
        if not IMAGE_INPUTS.isdisjoint(inputs) and "mm_token_type_ids" not in inputs:
            raise ValueError(
                f"the batch has images and no mm_token_type_ids, so {config.model_type} would take positions "
                "of one axis; make batches with Adapter.collate."
            )
        return
    attention = config.get_text_config()._attn_implementation
    if "attention_mask" in inputs or positions.ndim != 3 or len(positions) != 4:
        raise ValueError(
            "a packed batch needs position_ids of 4 x batch x token and no attention_mask, or its dialogues "
            f"see each other; got position_ids {tuple(positions.shape)}, {sorted(inputs)}. Use Adapter.pack."
        )
    if not resets_state(model):
        raise ValueError(
            f"a {config.model_type} carries a state from one packed dialogue to the next; call "
            "packed_attention.attend_by_dialogue on the model first, or do not pack."
        )
    if attention not in PACKED_ATTENTION:
        raise ValueError(
            f"packed dialogues are known to stay apart with {', '.join(PACKED_ATTENTION)} attention only, "
            f"got {attention}; load the model with one of them, or do not pack."
        )
