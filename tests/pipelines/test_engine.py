"""The plain engine in one process: sums, clipping, skipped steps, a state to carry over. DeepSpeed files."""

import copy
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pipelines.training.config import EngineConfig, OptimizerConfig
from pipelines.training.deepspeed_file import check_deepspeed_config, deepspeed_of
from pipelines.training.engine import Engine, PlainEngine, buckets
from samtok.errors import ConfigError
from tests.engine_state import OptimizerState, optimizer_state, put

RATE = 1e-2
CONFIG = OptimizerConfig(clip_norm=1.0, weight_decay=0.1)


def net() -> nn.ModuleDict:
    """A trained part, a frozen one, and one that no loss uses."""
    torch.manual_seed(0)
    parts = {"used": nn.Linear(4, 3), "frozen": nn.Linear(3, 3), "unused": nn.Linear(2, 2)}
    module = nn.ModuleDict(parts)
    module["frozen"].requires_grad_(False)
    return module


def losses(module: nn.ModuleDict, step: int, parts: int) -> list[Tensor]:
    """The losses of a step's micro-batches, each divided by the masks of the whole step."""
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
    return [(module["frozen"](module["used"](part)) - 3).square().sum() / 8 for part in x.chunk(parts)]


def take(engine: Engine, module: nn.ModuleDict, steps: Sequence[int], parts: int = 1) -> list[float]:
    norms = []
    for step in steps:
        for loss in losses(module, step, parts):
            engine.backward(loss)
        norms.append(engine.step(RATE))
    return norms


def weights(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_step_is_adamw_on_the_clipped_sum():
    module, reference = net(), net()
    adam = torch.optim.AdamW(
        [p for p in reference.parameters() if p.requires_grad], lr=RATE, betas=CONFIG.betas, weight_decay=0.1
    )
    norms = take(PlainEngine(module, CONFIG), module, range(5), parts=4)
    for step, norm in zip(range(5), norms, strict=True):
        adam.zero_grad()
        losses(reference, step, 1)[0].backward()
        reference["unused"].weight.grad = torch.zeros(2, 2)
        reference["unused"].bias.grad = torch.zeros(2)
        before = nn.utils.clip_grad_norm_(reference.parameters(), CONFIG.clip_norm)
        assert norm == pytest.approx(before.item(), rel=1e-5) and norm > CONFIG.clip_norm
        adam.step()
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value)


def test_frozen_parts_stay_and_unused_ones_only_decay():
    module, before = net(), weights(net())
    engine = PlainEngine(module, CONFIG)
    take(engine, module, range(3))
    after = module.state_dict()
    assert torch.equal(after["frozen.weight"], before["frozen.weight"])
    torch.testing.assert_close(after["unused.weight"], before["unused.weight"] * (1 - RATE * 0.1) ** 3)
    assert not torch.equal(after["used.weight"], before["used.weight"])
    assert optimizer_state(engine).moments.keys() == {
        "used.weight",
        "used.bias",
        "unused.weight",
        "unused.bias",
    }


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_without_a_finite_norm_leaves_no_trace(bad: float):
    module, reference = net(), net()
    engine, undisturbed = PlainEngine(module, CONFIG), PlainEngine(reference, CONFIG)
    take(engine, module, [0])
    take(undisturbed, reference, [0])
    engine.backward(losses(module, 7, 1)[0] * bad)
    assert not math.isfinite(engine.step(RATE))
    assert same_bits(weights(module), weights(reference))
    assert optimizer_state(engine).steps == 1
    assert take(engine, module, [1, 2]) == take(undisturbed, reference, [1, 2])
    assert same_bits(weights(module), weights(reference))


def test_a_run_goes_on_bit_for_bit_from_a_saved_state():
    module = net()
    engine = PlainEngine(module, CONFIG)
    take(engine, module, range(3))
    saved_weights, saved = weights(module), optimizer_state(engine)
    take(engine, module, range(3, 6))
    assert saved.steps == 3

    again = net()
    resumed = PlainEngine(again, CONFIG)
    take(resumed, again, [9])  # what it was must not matter
    put(resumed, saved_weights, saved)
    take(resumed, again, range(3, 6))
    assert same_bits(weights(again), weights(module))


def test_an_empty_state_is_a_start_from_nothing():
    module, fresh = net(), net()
    engine = PlainEngine(module, CONFIG)
    assert optimizer_state(engine) == OptimizerState()
    take(engine, module, range(3))
    put(engine, fresh.state_dict())
    assert optimizer_state(engine) == OptimizerState()
    take(engine, module, range(2))
    take(PlainEngine(fresh, CONFIG), fresh, range(2))
    assert same_bits(weights(module), weights(fresh))


@given(st.lists(st.integers(0, 12)), st.integers(1, 40))
def test_buckets_keep_order_and_limit(sizes: list[int], limit: int):
    tensors = [torch.zeros(size, dtype=torch.uint8) for size in sizes]
    groups = list(buckets(tensors, limit))
    assert [id(t) for group in groups for t in group] == [id(t) for t in tensors]
    assert all(group and (len(group) == 1 or sum(t.nbytes for t in group) <= limit) for group in groups)
    assert all(sum(t.nbytes for t in (*a, b[0])) > limit for a, b in itertools.pairwise(groups))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_shipped_files_are_found_from_anywhere(stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    body = deepspeed_of(EngineConfig(deepspeed=f"infra/deepspeed/zero{stage}.json"), (1, 2, 3))
    assert body is not None and body["zero_optimization"]["stage"] == stage


def test_a_file_of_the_working_directory_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "infra" / "deepspeed").mkdir(parents=True)
    Path("infra/deepspeed/zero1.json").write_text('{"zero_optimization": {"stage": 2}}')
    engine = EngineConfig(deepspeed="infra/deepspeed/zero1.json")
    assert deepspeed_of(engine, (1, 2)) == {"zero_optimization": {"stage": 2}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"must be a JSON document"),
        ("[]", r'must hold {"zero_optimization"'),
        ("{}", r'must hold {"zero_optimization"'),
        ('{"zero_optimization": true}', r'must hold {"zero_optimization"'),
        ('{"zero_optimization": {}}', r"zero_optimization.stage must be 1 or 2, got None"),
        ('{"zero_optimization": {"stage": 3}}', r"stage must be 1 or 2, got 3.*leave --deepspeed out"),
        ('{"zero_optimization": {"stage": true}}', r"stage must be 1 or 2, got True"),
        (
            '{"zero_optimization": {"stage": 1}, "bf16": {}}',
            r"remove bf16: the job's flag for the precision sets it",
        ),
        (
            '{"zero_optimization": {"stage": 1}, "train_batch_size": 8}',
            r"remove train_batch_size: the job's flags set the batch",
        ),
        (
            '{"zero_optimization": {"stage": 1}, "gradient_clipping": 1}',
            r"remove gradient_clipping: the job's flags for the optimizer",
        ),
        ('{"zero_optimization": {"stage": 1}, "optimizer": {}}', r"remove optimizer: it is AdamW"),
        (
            '{"zero_optimization": {"stage": 1}, "scheduler": {}}',
            "remove scheduler: the job's flags",
        ),
        (
            '{"zero_optimization": {"stage": 1}, "prescale_gradients": true}',
            r"prescale_gradients: it was not",
        ),
        (
            '{"zero_optimization": {"stage": 1, "overlap_comm": true}}',
            r"overlap_comm must be false in stage 1",
        ),
        (
            '{"zero_optimization": {"stage": 2, "overlap_comm": 1}}',
            r"overlap_comm must be true or false, got 1",
        ),
        ('{"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}}', r"even number .*got 'auto'"),
        ('{"zero_optimization": {"stage": 2, "offload_optimizer": {}}}', r"offload_optimizer was not tried"),
    ],
)
def test_a_config_that_says_too_much_is_refused(text: str, message: str, tmp_path: Path):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        deepspeed_of(EngineConfig(deepspeed=str(path)), (1, 2))
    assert str(caught.value).startswith(f"--deepspeed {path}")


@pytest.mark.parametrize(
    ("zero", "message"),
    [
        ({"stage": 4}, r"stage must be 1 or 2 or 3, got 4. Without ZeRO leave --deepspeed out\.$"),
        ({"stage": 3, "stage3_prefetch_bucket_size": "auto"}, r"prefetch_bucket_size must be an even number"),
        ({"stage": 3, "offload_param": {"device": "cpu"}}, r"offload_param was not tried.*sub_group_size"),
        ({"stage": 2, "sub_group_size": 100}, r"sub_group_size was not tried"),
    ],
)
def test_stage_3_has_keys_of_its_own(zero: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        check_deepspeed_config({"zero_optimization": zero}, "mine.json", stages=(1, 2, 3))
    none = {"stage": 3, "stage3_param_persistence_threshold": 0, "sub_group_size": 1e8}
    check_deepspeed_config({"zero_optimization": none}, "mine.json", stages=(1, 2, 3))


def test_a_missing_config_says_where_it_was_looked_for():
    with pytest.raises(ConfigError, match=r"--deepspeed no/such.json: there is no such file.*zero1.json"):
        deepspeed_of(EngineConfig(deepspeed="no/such.json"), (1, 2))
