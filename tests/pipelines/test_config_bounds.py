"""Bounds of every config class in every job: a value beyond one is refused under the job's own flag."""

import dataclasses
from typing import Any

import annotated_types
import pytest
import tyro

from pipelines.config import bounds_of, check_tree, checks_later, flag_name, parts_of
from samtok.errors import ConfigError
from tests.printed import JOBS, parsed_by

BEYOND = {
    annotated_types.Ge: lambda limit: limit.ge - 1,
    annotated_types.Gt: lambda limit: limit.gt - 1,
    annotated_types.Le: lambda limit: limit.le + 1,
    annotated_types.Lt: lambda limit: limit.lt + 1,
    annotated_types.MinLen: lambda limit: (),
}


def with_value(config: Any, path: tuple[str, ...], value: Any) -> Any:
    """Returns a config in which one field, of it or of a part of it, has another value."""
    name, *rest = path
    inner = value if not rest else with_value(getattr(config, name), tuple(rest), value)
    return dataclasses.replace(config, **{name: inner})


def filled_in(config: Any) -> Any:
    """Returns a preset with something in what it leaves to the user."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is tyro.MISSING:
            changes[field.name] = "given"
        elif dataclasses.is_dataclass(value):
            changes[field.name] = filled_in(value)
    return dataclasses.replace(config, **changes)


@pytest.mark.parametrize("job", JOBS)
def test_a_value_beyond_a_bound_is_refused_with_the_flag_of_the_job(job: str):
    _, presets = parsed_by(job)
    tried = 0
    with checks_later():
        config = filled_in(presets["smoke"])
        for prefix, part in parts_of(config):
            for name, limits in bounds_of(type(part)).items():
                path = (*prefix.replace("-", "_").split(".")[:-1], name)
                wrong = with_value(config, path, BEYOND[type(limits[0])](limits[0]))
                with pytest.raises(ConfigError) as refused:
                    check_tree(wrong)
                assert str(refused.value).startswith(f"--{prefix}{flag_name(name)} must "), refused.value
                tried += 1
    assert tried


SHARED = (
    ("train_tokenizer", ("optimizer", "betas"), (0.9, 1.0), "--optimizer.betas"),
    ("train_mllm", ("worker", "gpus"), 2.0, "--worker.gpus"),
    ("train_mllm", ("train", "llm"), False, None),
    ("sweep_codebook", ("train", "loss", "bce"), -1.0, "--train.loss.bce"),
    ("sweep_codebook", ("train", "optimizer", "betas"), (0.9, 1.0), "--train.optimizer.betas"),
    ("sweep_codebook", ("train", "micro_batch"), 3, "--train.micro-batch 3"),
)


@pytest.mark.parametrize(("job", "path", "value", "flag"), SHARED)
def test_checks_of_several_fields_name_the_flags_of_the_job(job: str, path, value, flag: str | None):
    _, presets = parsed_by(job)
    with checks_later():
        config = with_value(filled_in(presets["smoke"]), path, value)
        if flag is None:
            check_tree(config)
            return
        with pytest.raises(ConfigError) as refused:
            check_tree(config)
    assert flag in str(refused.value)
