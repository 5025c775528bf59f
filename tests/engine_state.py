"""The whole state of an engine in memory, in and out, whoever holds which part of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipelines.training import world
from pipelines.training.engine import Engine
from pipelines.training.parts import MOMENTS, WEIGHTS, Part, key_of


@dataclass
class OptimizerState:
    """AdamW's; per parameter name its first and second moment."""

    steps: int = 0
    moments: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


def optimizer_state(engine: Engine) -> OptimizerState:
    """Gathers it; collective."""
    parts = [(part.key, part.start, part.values.clone()) for part in engine.own_parts()]
    found: dict[str, Tensor] = {}
    for key, start, values in world.gathered(parts):
        shape = engine.shapes[key.partition("/")[2]]
        whole = found.setdefault(key, torch.full(shape, torch.nan))
        whole.view(-1)[start : start + len(values)] = values
    assert not any(torch.isnan(tensor).any() for key, tensor in found.items() if not key.startswith(WEIGHTS))
    first, second = MOMENTS
    moments = {
        name: (found[key_of(first, name)], found[key_of(second, name)])
        for name in (engine.parameters if engine.steps_taken else ())
    }
    return OptimizerState(engine.steps_taken, moments)


def put(engine: Engine, weights: Mapping[str, Tensor], state: OptimizerState | None = None) -> None:
    """Gives an engine weights, of which those that it does not train are ignored, and moments; collective."""
    state = state or OptimizerState()
    whole = {key_of(WEIGHTS, name): value for name, value in weights.items()}
    for name, pair in state.moments.items():
        whole |= {key_of(role, name): value for role, value in zip(MOMENTS, pair, strict=True)}

    def fill(parts: list[Part]) -> None:
        for part in parts:
            if part.key in whole:
                stop = part.start + len(part.values)
                part.values.copy_(whole[part.key].reshape(-1)[part.start : stop])

    engine.restore(state.steps, fill)
