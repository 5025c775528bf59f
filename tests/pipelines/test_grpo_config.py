"""Wrong combinations of flags have a sentence each, and every preset can be run from the command line."""

import itertools
from typing import Any

import pytest

from pipelines import cli, provenance
from pipelines.config import WorkerConfig
from pipelines.generation.config import EngineConfig
from pipelines.grpo.config import (
    ChecksConfig,
    GrpoConfig,
    LearnerConfig,
    PromptValidationConfig,
    RewardConfig,
    RolloutConfig,
    SyncConfig,
)
from pipelines.grpo.learn.algorithms import ALGORITHMS, AlgorithmConfig, KlConfig
from pipelines.grpo.observe.alarms import AlarmsConfig
from pipelines.grpo.presets import GCG, GRES
from samtok.errors import ConfigError


def config(**changes: Any) -> GrpoConfig:
    return GrpoConfig(**{"out": "o", "model": "m", "tokenizer": "t", "chats": ("chats",), **changes})


WRONG: list[tuple[type | Any, dict[str, Any], str]] = [
    (RewardConfig, {"workers": 0}, "--workers must be >= 1, got 0"),
    (RewardConfig, {"partial": 1.5}, r"--partial must be in \[0, 1\], got 1.5"),
    (RewardConfig, {"gpus_per_worker": -1}, "--gpus-per-worker must be >= 0"),
    (RolloutConfig, {"group_size": 1}, "--group-size must be >= 2, got 1"),
    (RolloutConfig, {"max_new_tokens": 0}, "--max-new-tokens must be >= 1"),
    (RolloutConfig, {"prompts_per_task": 0}, "--prompts-per-task must be >= 1"),
    (RolloutConfig, {"workers": 0}, "--workers must be >= 1"),
    (WorkerConfig, {"gpus": -1}, "--gpus must be >= 0"),
    (WorkerConfig, {"threads": 0}, "--threads must be >= 1"),
    (RolloutConfig, {"max_staleness": -1}, "--max-staleness must be >= 0"),
    (RolloutConfig, {"max_failures": -1}, "--max-failures must be >= 0"),
    (RolloutConfig, {"timeout_s": 0}, "--timeout-s must be >= 1"),
    (RolloutConfig, {"temperature": 0}, "--temperature must be > 0, got 0"),
    (RolloutConfig, {"engine": "http", "url": "http://x"}, "--engine http cannot take in trained weights"),
    (EngineConfig, {"engine": "http"}, "--engine http and --url go together"),
    (EngineConfig, {"url": "http://x"}, "--engine http and --url go together"),
    (EngineConfig, {"engine": "http", "url": "x:80"}, "--url must begin with http:// or https://"),
    (EngineConfig, {"engine": "http", "url": "http://u:p@x"}, "--url must not hold a user or password"),
    (EngineConfig, {"python": "/p"}, "--python is for --engine vllm"),
    (LearnerConfig, {"workers": 0}, "--workers must be >= 1"),
    (WorkerConfig, {"gpus": -0.5}, "--gpus must be >= 0, got -0.5"),
    (LearnerConfig, {"micro_batch": 0}, "--micro-batch must be >= 1"),
    (LearnerConfig, {"max_failures": -1}, "--max-failures must be >= 0"),
    (SyncConfig, {"bucket_mb": 0}, "--bucket-mb must be >= 1"),
    (ChecksConfig, {"parity_every": -1}, "--parity-every must be >= 0"),
    (ChecksConfig, {"parity_max": 0.0}, "--parity-max must be > 0, got 0"),
    (AlarmsConfig, {"prompts": 0}, "--prompts must be >= 1"),
    (AlarmsConfig, {"targets_left": 1.5}, r"--targets-left must be in \[0, 1\]"),
    (PromptValidationConfig, {"every": 0}, "--every must be >= 1"),
    (PromptValidationConfig, {"prompts": 0}, "--prompts must be >= 1"),
    (PromptValidationConfig, {"samples": -1}, "--samples must be >= 0"),
    (PromptValidationConfig, {"keep": 0}, "--keep must be >= 1"),
    (KlConfig, {"weight": -0.1}, "--weight must be >= 0, got -0.1"),
    (KlConfig, {"kind": "k3_straight", "place": "reward"}, "k3_straight is for the loss; in the reward take"),
    (AlgorithmConfig, {"max_tries": 0}, "--max-tries must be >= 1"),
    (AlgorithmConfig, {"inner_steps": 0}, "--inner-steps must be >= 1"),
    (AlgorithmConfig, {"clip_low": -0.1}, "--clip-low must be >= 0"),
    (AlgorithmConfig, {"clip_high": -0.1}, "--clip-high must be >= 0"),
    (AlgorithmConfig, {"dual_clip": 1.0}, "--dual-clip must be > 1, got 1"),
    (AlgorithmConfig, {"importance_cap": 0.0}, "--importance-cap must be > 0, got 0"),
    (AlgorithmConfig, {"name": "dapo", "mask_zero_variance": False}, "--no-mask-zero-variance"),
    (config, {"prompts_per_step": 0}, "--prompts-per-step must be >= 1"),
    (config, {"steps": 0}, "--steps must be >= 1"),
    (config, {"chats": ()}, "--chats must not be empty"),
    (config, {"limit": 0}, "--limit must be >= 1"),
    (config, {"seed": -1}, "--seed must be >= 0"),
    (config, {"trajectories_every": -1}, "--trajectories-every must be >= 0"),
    (config, {"max_bad_steps": 0}, "--max-bad-steps must be >= 1"),
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
        {"rollout": RolloutConfig(max_staleness=3)},
        "--rollout.max-staleness 3 learns from .* older weights .* Set --algorithm.importance-cap",
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
            "learner": LearnerConfig(workers=3),
            "algorithm": AlgorithmConfig(inner_steps=3),
        },
        "--prompts-per-step 8 are too few for --learner.workers 3 x --algorithm.inner-steps 3",
    ),
]


@pytest.mark.parametrize(
    ("kind", "given", "sentence"), WRONG, ids=lambda value: getattr(value, "__name__", str(value))[:60]
)
def test_a_wrong_combination_has_its_sentence(kind, given, sentence):
    with pytest.raises(ConfigError, match=sentence):
        kind(**given)


def test_unset_fields_are_those_of_the_named_algorithm():
    for name, algorithm in ALGORITHMS.items():
        assert AlgorithmConfig(name=name).resolved == algorithm
    given = AlgorithmConfig(name="dapo", clip_low=0.0, dynamic_sampling=False, scale="none").resolved
    assert (given.clip_low, given.clip_high, given.scale, given.dynamic_sampling) == (
        0.0,
        0.28,
        "none",
        False,
    )
    assert (given.limit, given.mean, given.baseline) == ("ppo", "token", "group")


def test_slots_bound_staleness():
    rollout = RolloutConfig(prompts_per_task=4, max_staleness=2)
    given = config(prompts_per_step=16, rollout=rollout, algorithm=AlgorithmConfig(importance_cap=2.0))
    assert (given.tasks_per_step, given.slots) == (4, 12)


@pytest.mark.parametrize(
    ("job", "name"), [*itertools.product(["gres"], GRES), *itertools.product(["gcg"], GCG)]
)
def test_every_preset_runs_from_the_command_line_and_from_its_own_config(job, name, tmp_path):
    presets = {"gres": GRES, "gcg": GCG}[job]
    flags = ["--preset", name]
    if name in ("paper", "modern"):  # what only the user knows
        flags += ["--out", "o", "--model", "m", "--tokenizer", "t", "--chats", "a", "b"]
    given = cli.parse(GrpoConfig, presets, [*flags, "--steps", "7", "--algorithm.clip-high", "0.5"], doc="")
    assert (given.steps, given.algorithm.resolved.clip_high) == (7, 0.5)
    assert given.chats == (("a", "b") if name in ("paper", "modern") else given.chats)
    path = tmp_path / "config.json"
    path.write_text(provenance.config_json(given))
    assert cli.parse(GrpoConfig, presets, ["--config", str(path)], doc="") == given


@pytest.mark.parametrize("missing", ["--out", "--model", "--tokenizer", "--chats"])
def test_what_only_the_user_knows_has_to_be_given(missing, capsys):
    given = {"--out": "o", "--model": "m", "--tokenizer": "t", "--chats": "a"}
    flags = [part for flag, value in given.items() if flag != missing for part in (flag, value)]
    with pytest.raises(SystemExit) as end:
        cli.parse(GrpoConfig, GRES, ["--preset", "modern", *flags], doc="")
    assert end.value.code == 2 and missing in capsys.readouterr().err


def test_a_wrong_value_is_named_by_the_flag_of_the_job(capsys):
    for flag, value in (
        ("--rollout.worker.threads", "0"),
        ("--algorithm.kl.weight", "-1"),
        ("--alarms.no-mask", "2"),
        ("--learner.micro-batch", "0"),
        ("--prompts.none-share", "1"),
        ("--validation.every", "0"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.parse(GrpoConfig, GRES, ["--preset", "smoke", flag, value], doc="")
        assert end.value.code == 2 and f"{flag} must be" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--prompts.corpora", "--chats"),
        ("--prompts.limit", "--limit"),
        ("--looks.corpora", "--validation.chats"),
        ("--looks.every", "--validation.every"),
        ("--gates.parity-every", "--checks.parity-every"),
        ("--watch.said-none", "--alarms.no-mask"),
        ("--watch.cut", "--alarms.cut"),
        ("--rollout.actors", "--rollout.workers"),
        ("--rollout.gpus", "--rollout.worker.gpus"),
        ("--learner.count", "--learner.workers"),
        ("--learner.threads", "--learner.worker.threads"),
        ("--learner.replies-per-micro-batch", "--learner.micro-batch"),
        ("--learner.precision", "--precision"),
    ],
)
def test_an_old_flag_names_the_new_one(old, new, capsys):
    with pytest.raises(SystemExit) as end:
        cli.parse(GrpoConfig, GRES, ["--preset", "smoke", old, "1"], doc="")
    assert end.value.code == 2 and f"{old} is now {new} " in capsys.readouterr().err


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
    for presets, more in ((GRES, ()), (GCG, ("captions",))):
        for name, preset in presets.items():
            assert preset.rollout.grammar is False  # broken words are sampled and punished
            is_long = name in ("paper", "modern")
            assert preset.alarms.stop_on == (("mismatch", "collapse", *more) if is_long else ("mismatch",))
            assert preset.checks.none_edge == ("refuse" if is_long else "warn")
