"""Wrong combinations of flags have a sentence each, and every preset can be run from the command line."""

import itertools
from typing import Any

import pytest

from pipelines import cli, provenance
from pipelines.chats.prompts import PromptsConfig
from pipelines.grpo.config import (
    GatesConfig,
    GrpoConfig,
    LearnerConfig,
    LooksConfig,
    RewardConfig,
    RolloutConfig,
    SyncConfig,
)
from pipelines.grpo.learn.algorithms import ALGORITHMS, AlgorithmConfig, KlConfig
from pipelines.grpo.presets import GCG, GRES
from samtok.errors import ConfigError

PROMPTS = PromptsConfig(corpora=("chats",))


def config(**told: Any) -> GrpoConfig:
    return GrpoConfig(**{"out": "o", "model": "m", "prompts": PROMPTS, **told})


WRONG: list[tuple[type | Any, dict[str, Any], str]] = [
    (RewardConfig, {"workers": 0}, "--reward.workers must be at least 1, got 0"),
    (RewardConfig, {"partial": 1.5}, r"--reward.partial must be in \[0, 1\], got 1.5"),
    (RewardConfig, {"gpus_per_worker": -1}, "--reward.gpus-per-worker must be at least 0"),
    (RolloutConfig, {"group_size": 1}, "--rollout.group-size must be at least 2, got 1"),
    (RolloutConfig, {"max_new_tokens": 0}, "--rollout.max-new-tokens must be at least 1"),
    (RolloutConfig, {"prompts_per_task": 0}, "--rollout.prompts-per-task must be at least 1"),
    (RolloutConfig, {"actors": 0}, "--rollout.actors must be at least 1"),
    (RolloutConfig, {"gpus": -1}, "--rollout.gpus must be at least 0"),
    (RolloutConfig, {"threads": 0}, "--rollout.threads must be at least 1"),
    (RolloutConfig, {"max_staleness": -1}, "--rollout.max-staleness must be at least 0"),
    (RolloutConfig, {"max_failures": -1}, "--rollout.max-failures must be at least 0"),
    (RolloutConfig, {"timeout_s": 0}, "--rollout.timeout-s must be at least 1"),
    (RolloutConfig, {"temperature": 0}, "--rollout.temperature must be above 0, got 0"),
    (RolloutConfig, {"engine": "vllm"}, "--rollout.engine vllm and --rollout.python go together"),
    (RolloutConfig, {"python": "/p"}, "--rollout.engine vllm and --rollout.python go together"),
    (LearnerConfig, {"count": 0}, "--learner.count must be at least 1"),
    (LearnerConfig, {"gpus": -0.5}, "--learner.gpus must be at least 0, got -0.5"),
    (LearnerConfig, {"replies_per_micro_batch": 0}, "--learner.replies-per-micro-batch must be at least 1"),
    (LearnerConfig, {"max_failures": -1}, "--learner.max-failures must be at least 0"),
    (SyncConfig, {"bucket_mb": 0}, "--sync.bucket-mb must be at least 1"),
    (GatesConfig, {"parity_every": -1}, "--gates.parity-every must be at least 0"),
    (GatesConfig, {"parity_limit": 0.0}, "--gates.parity-limit must be above 0, got 0"),
    (LooksConfig, {"every": 0}, "--looks.every must be at least 1"),
    (LooksConfig, {"prompts": 0}, "--looks.prompts must be at least 1"),
    (LooksConfig, {"samples": -1}, "--looks.samples must be at least 0"),
    (LooksConfig, {"keep": 0}, "--looks.keep must be at least 1"),
    (KlConfig, {"weight": -0.1}, "--algorithm.kl.weight must be at least 0, got -0.1"),
    (KlConfig, {"kind": "k3_straight", "place": "reward"}, "k3_straight is for the loss; in the reward take"),
    (AlgorithmConfig, {"max_tries": 0}, "--algorithm.max-tries must be at least 1"),
    (AlgorithmConfig, {"inner_steps": 0}, "--algorithm.inner-steps must be at least 1"),
    (AlgorithmConfig, {"clip_low": -0.1}, "--algorithm.clip-low must be at least 0"),
    (AlgorithmConfig, {"clip_high": -0.1}, "--algorithm.clip-high must be at least 0"),
    (AlgorithmConfig, {"dual_clip": 1.0}, "--algorithm.dual-clip must be above 1, got 1"),
    (AlgorithmConfig, {"importance_cap": 0.0}, "--algorithm.importance-cap must be above 0, got 0"),
    (AlgorithmConfig, {"name": "dapo", "mask_zero_variance": False}, "--algorithm.no-mask-zero-variance"),
    (config, {"prompts_per_step": 0}, "--prompts-per-step must be at least 1"),
    (config, {"steps": 0}, "--steps must be at least 1"),
    (config, {"seed": -1}, "--seed must be at least 0"),
    (config, {"trajectories_every": -1}, "--trajectories-every must be at least 0"),
    (config, {"max_bad_steps": 0}, "--max-bad-steps must be at least 1"),
    (config, {"max_reject_rate": 2}, r"--max-reject-rate must be in \[0, 1\]"),
    (config, {"tracking": "http://me:secret@host"}, "--tracking must not hold a user or password"),
    (config, {"debug": "replay"}, "--debug train-only and --debug replay need --replay"),
    (config, {"debug": "train-only"}, "--debug train-only and --debug replay need --replay"),
    (config, {"replay": "file"}, "--debug train-only and --debug replay need --replay"),
    (config, {"debug": "rollout-only", "replay": "file"}, "need --replay, and nothing else does"),
    (
        config,
        {"placement": "colocated", "rollout": RolloutConfig(max_staleness=1)},
        "--placement colocated .* so --rollout.max-staleness must be 0, got 1",
    ),
    (
        config,
        {"prompts_per_step": 20, "rollout": RolloutConfig(prompts_per_task=8)},
        "20 is not a multiple of --rollout.prompts-per-task 8; take 16 prompts, or tasks of 5",
    ),
    (
        config,
        {"prompts_per_step": 4, "rollout": RolloutConfig(prompts_per_task=8)},
        "take 8 prompts, or tasks of 4",
    ),
    (
        config,
        {
            "prompts_per_step": 8,
            "learner": LearnerConfig(count=3),
            "algorithm": AlgorithmConfig(inner_steps=3),
        },
        "--prompts-per-step 8 are too few for --learner.count 3 x --algorithm.inner-steps 3",
    ),
]


@pytest.mark.parametrize(
    ("kind", "told", "sentence"), WRONG, ids=lambda value: getattr(value, "__name__", str(value))[:60]
)
def test_a_wrong_combination_has_its_sentence(kind, told, sentence):
    with pytest.raises(ConfigError, match=sentence):
        kind(**told)


def test_unset_fields_are_those_of_the_named_algorithm():
    for name, algorithm in ALGORITHMS.items():
        assert AlgorithmConfig(name=name).resolved == algorithm
    told = AlgorithmConfig(name="dapo", clip_low=0.0, dynamic_sampling=False, scale="none").resolved
    assert (told.clip_low, told.clip_high, told.scale, told.dynamic_sampling) == (0.0, 0.28, "none", False)
    assert (told.limit, told.mean, told.baseline) == ("ppo", "token", "group")


def test_slots_bound_staleness():
    rollout = RolloutConfig(prompts_per_task=4, max_staleness=2)
    told = config(prompts_per_step=16, rollout=rollout)
    assert (told.tasks_per_step, told.slots) == (4, 12)


@pytest.mark.parametrize(
    ("job", "name"), [*itertools.product(["gres"], GRES), *itertools.product(["gcg"], GCG)]
)
def test_every_preset_runs_from_the_command_line_and_from_its_own_config(job, name, tmp_path):
    presets = {"gres": GRES, "gcg": GCG}[job]
    flags = ["--preset", name]
    if name in ("paper", "modern"):  # what only the user knows
        flags += ["--out", "o", "--model", "m", "--tokenizer", "t", "--prompts.corpora", "a", "b"]
    told = cli.parse(GrpoConfig, presets, [*flags, "--steps", "7", "--algorithm.clip-high", "0.5"], doc="")
    assert (told.steps, told.algorithm.resolved.clip_high) == (7, 0.5)
    assert told.prompts.corpora == (("a", "b") if name in ("paper", "modern") else told.prompts.corpora)
    path = tmp_path / "config.json"
    path.write_text(provenance.config_json(told))
    assert cli.parse(GrpoConfig, presets, ["--config", str(path)], doc="") == told


@pytest.mark.parametrize("missing", ["--out", "--model", "--tokenizer", "--prompts.corpora"])
def test_what_only_the_user_knows_has_to_be_given(missing, capsys):
    given = {"--out": "o", "--model": "m", "--tokenizer": "t", "--prompts.corpora": "a"}
    flags = [part for flag, value in given.items() if flag != missing for part in (flag, value)]
    with pytest.raises(SystemExit) as end:
        cli.parse(GrpoConfig, GRES, ["--preset", "modern", *flags], doc="")
    assert end.value.code == 2 and missing in capsys.readouterr().err


def test_a_wrong_combination_of_flags_is_a_clean_message(capsys):
    flags = ["--preset", "smoke", "--prompts-per-step", "6", "--algorithm.dynamic-sampling", "False"]
    with pytest.raises(SystemExit) as end:
        cli.parse(GrpoConfig, GRES, flags, doc="")
    said = capsys.readouterr().err
    assert end.value.code == 2 and "is not a multiple of" in said and "Traceback" not in said


def test_presets_are_what_they_say():
    """The values that the paper states, and EasyR1's where it does not."""
    paper, modern = GRES["paper"], GRES["modern"]
    assert paper.optimizer.lr == 1e-6 and (paper.rollout.group_size, paper.prompts_per_step) == (5, 512)
    assert (paper.reward.true_positives, paper.reward.count_malformed) == ("distinct", False)
    assert (paper.algorithm.kl.weight, paper.algorithm.kl.kind) == (0.01, "k3")
    assert modern.algorithm.kl.weight == 0 and modern.algorithm.importance_cap == 2
    assert modern.reward.count_malformed and modern.algorithm.mask_zero_variance
    assert paper.prompts.thinking and not GCG["paper"].prompts.thinking
    for presets in (GRES, GCG):
        for preset in presets.values():
            assert preset.rollout.grammar is False  # broken words are sampled and punished
