"""Tiny worlds of reinforcement learning for tests: chats, a random model, samplers and learners."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn

from pipelines.chats.prompt_selection import load_prompts
from pipelines.chats.prompts import Prompt, encode_prompt
from pipelines.chats.source import load_images
from pipelines.config import WorkerConfig
from pipelines.grpo.config import GrpoConfig, LearnerConfig, RolloutConfig
from pipelines.grpo.groups import Group, RolloutTask, Share, outline
from pipelines.grpo.learn.algorithms import AlgorithmConfig
from pipelines.grpo.learn.learner import Learner
from pipelines.grpo.learn.update import plan_update
from pipelines.grpo.rollout.sampler import Sampler
from pipelines.grpo.transport import WeightTransport
from pipelines.training.config import OptimizerConfig
from pipelines.training.prepare import Prepared
from samtok.mllm.chat import Encoded
from samtok.mllm.family import Adapter
from samtok.mllm.sampling import Sampled
from samtok.mllm.tiny.models import TinyConfig, build_tiny
from samtok.mllm.vocab import MaskVocabulary
from tests.engine_state import optimizer_state
from tests.mllm_evaluations import NUM_CODES, NUM_LEVELS, chat_row, write_chats, write_image

CODES: dict[str, Sequence[int]] = {"red": (3, 9), "green": (60, 1)}
SIZE = TinyConfig(image_size=28, dim=32, hidden_dim=48, vision_dim=32, vision_layers=2, vocab_size=280)
MAX_TOKENS = 8
CPU = WorkerConfig(gpus=0)


class World:
    """Chats about drawn images, three of each, and a tiny model that knows nothing yet."""

    def __init__(
        self, home: Path, *, family: str = "qwen2_5_vl", images: int = 3, size: TinyConfig | None = None
    ) -> None:
        self.home = home
        self.rows: list[dict[str, Any]] = []
        for number in range(images):
            uri, found = write_image(home / "images", number)
            for asked in (["red"], ["both"], ["blue"]):
                self.rows.append(chat_row(uri, found, CODES, asked, image_id=str(number)))
        self.chat = write_chats(home / "chat", self.rows, weights_sha256="a" * 64)
        self.model = str(home / "model")
        texts = [message["content"][-1]["text"] for row in self.rows for message in row["messages"]]
        vocabulary = MaskVocabulary(NUM_CODES, NUM_LEVELS)
        named = {"vocabulary": vocabulary, "texts": texts, "config": size or SIZE}
        build_tiny(family, home / "model", seed=0, **named)  # pyright: ignore

    def config(self, **changes: Any) -> GrpoConfig:
        """A run of few short responses, whose gradients are never clipped."""
        base: dict[str, Any] = {
            "out": str(self.home / "run"),
            "model": self.model,
            "chats": (self.chat,),
            "tokenizer": "tour",
            "prompts_per_step": 4,
            "steps": 8,
            "rollout": RolloutConfig(group_size=4, max_new_tokens=MAX_TOKENS, prompts_per_task=4, worker=CPU),
            "learner": LearnerConfig(worker=CPU),
            "optimizer": OptimizerConfig(lr=1e-3, warmup_steps=0, weight_decay=0.0, clip_norm=1e6),
            "tracking": "off",
        }
        return GrpoConfig(**(base | changes))

    def sampler(self, config: GrpoConfig | None = None, store: "Store | None" = None) -> Sampler:
        """A sampler whose held-out prompts are its prompts."""
        config = config or self.config()
        prompts = load_prompts(config.chats, config.prompts, seed=config.seed)
        return Sampler(config, prompts, prompts, (store or Store()).transport())


class Store:
    """An object store in this process; what is got is read only, as Ray's is."""

    def __init__(self) -> None:
        self.objects: list[np.ndarray] = []

    def put(self, data: np.ndarray) -> int:
        kept = data.copy()
        kept.setflags(write=False)
        self.objects.append(kept)
        return len(self.objects) - 1

    def get(self, ref: int) -> np.ndarray:
        return self.objects[ref]

    def spoil(self, ref: int, place: int) -> None:
        """Turns one byte over."""
        data = self.objects[ref].copy()
        data[place] ^= 0xFF
        self.objects[ref] = data

    def transport(self, piece_bytes: int = 1 << 14, **settings: Any) -> WeightTransport:
        return WeightTransport(self.put, self.get, piece_bytes=piece_bytes, **settings)


def learner_of(config: GrpoConfig, store: Store | None = None, deepspeed: Any = None) -> Learner:
    """A learner in this process."""
    task = Prepared(config=config, fingerprint={}, lineage={}, deepspeed=deepspeed)
    return Learner(task, (store or Store()).transport())


def encoded(adapter: Adapter, prompt: Prompt, most: int = 2048) -> Encoded:
    """A prompt with its images, as samplers encode it."""
    return encode_prompt(adapter, prompt, most, load_images(prompt.row))


def rolled(sampler: Sampler, count: int = 4, *, number: int = 0) -> list[Group]:
    """Groups of the first prompts, all responses as long as they came."""
    return sampler.roll(RolloutTask(number, tuple((n, n) for n in range(count))))[1]


def uneven(groups: Sequence[Group], seed: int = 0) -> list[Group]:
    """The same groups with responses of different lengths, every other one of which ended by itself."""
    rng = np.random.default_rng(seed)

    def cut(number: int, one: Sampled) -> Sampled:
        length = int(rng.integers(1, len(one) + 1))
        return Sampled(one.ids[:length], one.log_probs[:length], complete=number % 2 == 0)

    return [
        dataclasses.replace(group, responses=tuple(cut(n, one) for n, one in enumerate(group.responses)))
        for group in groups
    ]


def some_rewards(groups: Sequence[Group], seed: int = 1) -> np.ndarray:
    """Rewards of which those of the last group are all the same."""
    rewards = np.random.default_rng(seed).random((len(groups), len(groups[0].responses)))
    rewards[-1] = 0.5
    return rewards


def parts_of(
    groups: Sequence[Group], config: AlgorithmConfig, *, learners: int = 1, rewards: np.ndarray | None = None
) -> list[list[list[Share]]]:
    """The shares of one step; the last group teaches nothing."""
    return plan_update(
        [outline(group) for group in groups],
        groups,
        some_rewards(groups) if rewards is None else rewards,
        config,
        learners=learners,
        max_tokens=MAX_TOKENS,
    ).parts


def learnt(
    learner: Learner, groups: Sequence[Group], *, steps: int = 1, rank: int = 0, learners: int = 1
) -> dict[str, Any]:
    """Learns from the same groups in every step; see ``learnt_in_turn``."""
    return learnt_in_turn(learner, [groups] * steps, rank=rank, learners=learners)


def learnt_in_turn(
    learner: Learner, batches: Sequence[Sequence[Group]], *, rank: int = 0, learners: int = 1
) -> dict[str, Any]:
    """Learns from batches of groups, one a step; returns metrics, moments (the gradient, but for a factor),
    weights, and with the distance in the reward what this learner has measured before each step."""
    metrics, drift, algorithm = [], [], learner.config.algorithm
    for step, groups in enumerate(batches):
        if algorithm.kl.weight and algorithm.kl.place == "reward":
            drift.append(learner.drift(*groups[rank::learners]))
        parts = parts_of(groups, algorithm, learners=learners)
        metrics.append(learner.learn(step, [part[rank] for part in parts]))
    state = optimizer_state(learner.engine)
    weights = {name: value.clone() for name, value in learner.engine.weights()}
    found = {"metrics": metrics, "moments": state.moments, "steps": state.steps, "weights": weights}
    return {**found, "drift": drift}


def assert_same_learning(first: Mapping[str, Any], second: Mapping[str, Any], *, noise: float = 1.0) -> None:
    """Metrics and gradients are equal within float32's rounding, times some noise."""
    assert first["steps"] == second["steps"] > 0
    for one, other in zip(first["metrics"], second["metrics"], strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-4 * noise, atol=2e-6 * noise)
    largest = max(float(pair[0].abs().max()) for pair in first["moments"].values())
    assert largest > 0
    for name, pair in first["moments"].items():
        other = second["moments"][name][0]
        torch.testing.assert_close(pair[0], other, rtol=1e-3, atol=2e-6 * noise * largest, msg=name)


def largest_difference(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Of all weights."""
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def in_processes(
    cases: Mapping[str, tuple[GrpoConfig, Any, list[list[Group]]]], folder: Path, count: int
) -> list[dict[str, Any]]:
    """Learns in gloo processes, case after case (config, DeepSpeed, batches); returns what each process
    saw."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(dict(cases), folder / "given.pt")
    spawn(_work, (str(folder), count), nprocs=count)
    return [torch.load(folder / f"seen-{rank}.pt", weights_only=False) for rank in range(count)]


def _work(rank: int, folder: str, count: int) -> None:
    os.environ["TORCH_EXTENSIONS_DIR"] = f"{folder}/compiled"
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=120),
    )
    try:
        cases = torch.load(Path(folder) / "given.pt", weights_only=False)
        seen = {
            name: learnt_in_turn(learner_of(config, deepspeed=deepspeed), batches, rank=rank, learners=count)
            for name, (config, deepspeed, batches) in cases.items()
        }
        torch.save(seen, Path(folder) / f"seen-{rank}.pt")
    finally:
        distributed.destroy_process_group()
