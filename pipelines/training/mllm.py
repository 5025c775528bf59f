"""What training an MLLM needs besides an engine, whatever the loss: activations, trained weights."""

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from pipelines.training.engine import Engine


def keep_fewer_activations(model: Any) -> None:
    """Turns gradient checkpointing on, which transformers is renaming."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def names_of_trained(model: nn.Module) -> list[str]:
    """Returns the names of the parameters that are trained."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def trained_state(engine: Engine, names: Collection[str]) -> dict[str, Tensor]:
    """Gathers the trained weights, which are all that a checkpoint keeps of an MLLM; collective."""
    state = engine.model_state()
    return {name: state[name] for name in names}
