"""Rows with a learning rate of their own, against parameters that are split by hand."""

import copy

import pytest
import torch
from torch import Tensor, nn

from pipelines.training.config import OptimizerConfig
from pipelines.training.engine import PlainEngine
from pipelines.training.row_rates import RowRate
from tests.engine_state import optimizer_state, put

RATE = 1e-2
CONFIG = OptimizerConfig(clip_norm=1e9, weight_decay=0.2)
ROWS = RowRate(3, 6, 7.5)


def table() -> nn.ModuleDict:
    torch.manual_seed(0)
    module = nn.ModuleDict({"words": nn.Embedding(8, 4), "head": nn.Linear(4, 8, bias=False)})
    module["head"].weight = module["words"].weight  # pyright: ignore[reportArgumentType]
    return module


def loss_of(weight: Tensor, step: int) -> Tensor:
    ids = torch.randint(0, 8, (16,), generator=torch.Generator().manual_seed(step))
    return (weight[ids] @ weight.T).logsumexp(-1).sum() / 16


def split_by_hand(rate: RowRate, steps: int) -> Tensor:
    """AdamW over three parameters that together are the table; the middle one has the other rate."""
    whole = table()["words"].weight.detach()
    parts = [
        nn.Parameter(p.clone()) for p in whole.split([rate.first, rate.stop - rate.first, 8 - rate.stop])
    ]
    groups = [{"params": [p], "lr": RATE * f} for p, f in zip(parts, (1, rate.factor, 1), strict=True)]
    adam = torch.optim.AdamW(groups, betas=CONFIG.betas, weight_decay=CONFIG.weight_decay)
    for step in range(steps):
        adam.zero_grad()
        loss_of(torch.cat(parts), step).backward()
        adam.step()
    return torch.cat(parts).detach()


def train(module: nn.ModuleDict, engine: PlainEngine, steps: range) -> Tensor:
    for step in steps:
        engine.backward(loss_of(module["words"].weight, step))
        engine.step(RATE)
    return module["words"].weight.detach()


@pytest.mark.parametrize("factor", [7.5, 0.1, 1, 0])
def test_rows_move_as_adamw_with_their_own_rate_moves_them(factor: float):
    rate, module = RowRate(3, 6, factor), table()
    found = train(module, PlainEngine(module, CONFIG, row_rates={"words.weight": rate}), range(6))
    torch.testing.assert_close(found, split_by_hand(rate, 6), rtol=1e-5, atol=1e-7)
    start = table()["words"].weight
    assert torch.equal(found[3:6], start[3:6]) == (factor == 0)
    assert not torch.isclose(found[:3], start[:3]).any()


def test_rows_keep_their_pace_after_a_step_is_skipped_and_a_state_is_loaded():
    module, other = table(), table()
    engine = PlainEngine(module, CONFIG, row_rates={"words.weight": ROWS})
    train(module, engine, range(3))
    before = copy.deepcopy(module.state_dict())
    engine.backward(loss_of(module["words"].weight, 3) * torch.nan)
    engine.step(RATE)
    assert torch.equal(module["words"].weight, before["words.weight"])
    again = PlainEngine(other, CONFIG, row_rates={"words.weight": ROWS})
    put(again, engine.model_state(), optimizer_state(engine))
    found = train(other, again, range(3, 6))
    torch.testing.assert_close(found, split_by_hand(ROWS, 6), rtol=1e-5, atol=1e-7)
    assert other["head"].weight is other["words"].weight


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("words.weight", RowRate(3, 9, 2)),
        ("words.weight", RowRate(3, 3, 2)),
        ("words.weight", RowRate(-1, 3, 2)),
        ("words.weight", RowRate(0, 3, -1)),
        ("head.weight", RowRate(0, 3, 2)),  # tied: it is trained under its first name
    ],
)
def test_rows_that_are_not_there_are_refused(name: str, rate: RowRate):
    with pytest.raises(ValueError, match=rf"does not fit {name}: expected rows in \[0, \d\)"):
        PlainEngine(table(), CONFIG, row_rates={name: rate})
