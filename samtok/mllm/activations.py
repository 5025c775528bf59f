"""Gradient checkpointing: activations are made again on the way back, not kept."""

from typing import Any


def keep_fewer_activations(model: Any) -> None:
    """Turns gradient checkpointing on, which transformers is renaming."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
