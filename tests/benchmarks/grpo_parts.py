"""What all sides of ``grpo.py`` have in common, and our loop on Ray as one of them."""

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.chats.prompts import PromptSource
from pipelines.cluster import session
from pipelines.config import WorkerConfig
from pipelines.grpo.config import ChecksConfig, GrpoConfig, LearnerConfig, RewardConfig, RolloutConfig
from pipelines.grpo.learn.algorithms import AlgorithmConfig
from pipelines.grpo.loop import Loop
from pipelines.grpo.observe.progress import GrpoProgress
from pipelines.grpo.team import Team
from pipelines.tracking import Tracker
from pipelines.training.config import CheckpointsConfig, OptimizerConfig
from pipelines.training.prepare import Prepared
from samtok.mllm.adapters import load_adapter
from samtok.mllm.family import Adapter
from samtok.mllm.tiny.models import TinyConfig, build_tiny, default_texts
from samtok.mllm.vocab import MaskVocabulary
from samtok.rewards import Question, Response
from tests.benchmarks.sft_chats import chat_rows
from tests.mllm_evaluations import write_chats

VOCABULARY = MaskVocabulary(256, 2)
MODELS = {
    "tiny": TinyConfig(),
    "wide": TinyConfig(dim=256, num_layers=4, hidden_dim=640, init_std=0.06),
}
LEARNING_RATE = 1e-6
"""Small, so that the lengths of responses stay what they are for all sides."""


def even(question: Question, response: Response) -> dict[str, float]:
    """The reward of all sides: the share of tokens with an even id, which differs within every group."""
    return {"even": even_share(response.token_ids)}


def even_share(ids: Sequence[int]) -> float:
    """Returns the share of even ids among at least one."""
    return sum(id_ % 2 == 0 for id_ in ids) / len(ids)


class Took(NamedTuple):
    """Seconds on the clock, and of all cores of this process."""

    wall_s: float
    cpu_s: float

    @classmethod
    def now(cls) -> "Took":
        """Reads both clocks."""
        return cls(time.perf_counter(), time.process_time())

    def since(self, start: "Took") -> "Took":
        """Returns the seconds from then to now."""
        return Took(self.wall_s - start.wall_s, self.cpu_s - start.cpu_s)


@dataclass
class Split:
    """CPU seconds of the parts of a step, added up over steps."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time of what is done inside."""
        started = time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - started


@dataclass(frozen=True)
class Place:
    """What all sides of a comparison have in common."""

    folder: Path
    adapter: Adapter
    corpus: str
    options: argparse.Namespace

    def model(self) -> Any:
        """Returns the model as it is at the start, with the parts trained that our runs train by default."""
        model = self.adapter.load_model(self.folder)
        self.adapter.freeze(model, vision=False, projector=True, llm=True)
        return model

    @property
    def responses(self) -> int:
        """Responses of a step."""
        return self.options.prompts * self.options.group


def make_place(home: Path, numbers: TinyConfig, options: argparse.Namespace) -> Place:
    """Builds a tiny model and a corpus of one question per image."""
    build_tiny(
        "qwen2_5_vl", home / "model", vocabulary=VOCABULARY, texts=default_texts(), seed=0, config=numbers
    )
    adapter = load_adapter(home / "model")
    rows = list(chat_rows(home, adapter, (60, 60), options.prompts * options.steps))
    uri = write_chats(home / "chats", rows, weights_sha256=None, num_codes=VOCABULARY.num_codes, per_shard=64)
    return Place(home / "model", adapter, uri, options)


# ---------------------------------------------------------------- our loop


def our_config(place: Place, out: str, **changes: Any) -> GrpoConfig:
    """Returns the run that both sides do."""
    options = place.options
    worker = WorkerConfig(gpus=0, threads=options.threads)
    return GrpoConfig(
        out=out,
        model=str(place.folder),
        tokenizer="tour",
        chats=(place.corpus,),
        prompts_per_step=options.prompts,
        steps=10**6,
        reward=RewardConfig(weights={"even": 1.0}, plug_ins=("tests.benchmarks.grpo_parts:even",)),
        algorithm=AlgorithmConfig(name="grpo", mask_zero_variance=False),
        rollout=RolloutConfig(
            group_size=options.group,
            max_new_tokens=options.new_tokens,
            prompts_per_task=options.prompts,
            worker=worker,
        ),
        learner=LearnerConfig(micro_batch=place.responses, worker=worker),
        optimizer=OptimizerConfig(lr=LEARNING_RATE, warmup_steps=0, final_lr_share=1.0, weight_decay=0.01),
        **changes,
    )


WARM_STEPS = 2
"""First steps of a loop that are not counted: processes and their allocators warm up."""


def loop_steps(place: Place, prompts: PromptSource, staleness: int) -> list[dict[str, Any]]:
    """Goes through a run on a Ray of its own; returns the metrics of its steps, without the first ones.

    Args:
        place: Says how many steps are counted: those of all rounds.
        prompts: What is asked.
        staleness: ``--rollout.max-staleness``.
    """
    out = str(place.folder.parent / f"run-{staleness}")
    steps = place.options.steps * place.options.repeats + WARM_STEPS
    config = our_config(
        place,
        out,
        checks=ChecksConfig(parity_every=0, image=False),
        checkpoints=CheckpointsConfig(every=10**6),
        trajectories_every=0,
        tracking="off",
    )
    rollout = replace(config.rollout, max_staleness=staleness)
    algorithm = replace(config.algorithm, importance_cap=2.0 if staleness else None)
    config = replace(config, steps=steps, rollout=rollout, algorithm=algorithm)
    rows = _Rows(steps, Tracker("off", experiment="benchmark", home=out))
    with session(num_cpus=3, at_least_cpus=3) as cluster:
        team = Team(Prepared(config=config, fingerprint={}, lineage={}), prompts, None, cluster)
        try:
            Loop(team, prompts, None, rows).run()
        finally:
            team.end()
    return rows.found[WARM_STEPS:]


class _Rows(GrpoProgress):
    """Keeps the numbers of every step and prints none."""

    def __init__(self, steps: int, tracker: Tracker) -> None:
        super().__init__(steps, tracker)
        self.found: list[dict[str, Any]] = []

    def step(self, row: Any) -> None:
        """Keeps them."""
        self.found.append(dict(row))
