"""Logits in float32 whatever the type of the model.

Samplers and learners run other kernels, and bfloat16 logits differ between them by more than a step of
reinforcement learning moves them; a head in float32 on both sides is the cheapest cure (ScaleRL, arXiv
2510.13786).
"""

import types

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel


def use_float32_head(model: PreTrainedModel) -> None:
    """Makes a model's output embeddings compute in float32, also under autocast; in float32 nothing changes.

    The weights keep their type, and gradients flow into them as before.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise TypeError(f"the output embeddings of {type(model).__name__} are a {type(head).__name__}.")
    head.forward = types.MethodType(_forward, head)


def _forward(head: nn.Linear, hidden: Tensor) -> Tensor:
    with torch.autocast(hidden.device.type, enabled=False):
        bias = None if head.bias is None else head.bias.float()
        return functional.linear(hidden.float(), head.weight.float(), bias)
