"""Short runs of reinforcement learning for tests: their settings, rewards, kills, and what they left."""

import dataclasses
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from pipelines import storage
from pipelines.config import WorkerConfig
from pipelines.grpo.config import (
    ChecksConfig,
    GrpoConfig,
    LearnerConfig,
    PromptValidationConfig,
    RewardConfig,
    RolloutConfig,
)
from pipelines.grpo.trajectories import read_trajectories, steps_of
from pipelines.training import checkpoints
from pipelines.training.config import CheckpointsConfig, OptimizerConfig
from samtok.rewards.response import Question, Response
from tests.mllm_evaluations import World
from tests.training import curve_of, record_of

STEPS, EVERY = 6, 2
PROMPTS, TASK, GROUP = 4, 2, 4
"""Prompts of a step and of a task, and responses to each prompt."""
CPU = WorkerConfig(gpus=0)
_PATIENCE_S = 240.0


# ---------------------------------------------------------------- rewards


def even(question: Question, response: Response) -> dict[str, float]:
    """Pays for even token ids: any model says some, so that groups differ and weights move."""
    return {"even": sum(token % 2 == 0 for token in response.token_ids) / max(len(response.token_ids), 1)}


def wordless(question: Question, response: Response) -> dict[str, float]:
    """Pays for every token that is no piece of a mask word, whatever was asked."""
    return {"wordless": 1 - response.text.count("<|mt_") / max(len(response.token_ids), 1)}


def never_ends(question: Question, response: Response) -> dict[str, float]:
    """Hangs on any response but the true answer, with which rewards are tried before a run begins."""
    if response.text != question.text:
        threading.Event().wait()
    return {"even": 1.0}


def paying(name: str, component: str) -> RewardConfig:
    """Returns a reward of which one plug-in of this module is all that counts."""
    return RewardConfig(weights={component: 1.0}, plug_ins=(f"tests.grpo_runs:{name}",))


# ---------------------------------------------------------------- settings


def short(world: World, out: Path | str, **changes: Any) -> GrpoConfig:
    """Six steps that go over the border of an epoch, with two samplers and a checkpoint every two steps."""
    base = GrpoConfig(
        out=str(out),
        model=world.model,
        tokenizer=world.tokenizer_uri,
        chats=(world.chat,),
        prompts_per_step=PROMPTS,
        steps=STEPS,
        reward=paying("even", "even"),
        rollout=rollout(),
        learner=LearnerConfig(worker=CPU),
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=2, weight_decay=0.0),
        checks=ChecksConfig(parity_every=4),
        validation=PromptValidationConfig(every=STEPS),
        checkpoints=CheckpointsConfig(every=EVERY, keep=10),
        trajectories_every=1,
        tracking="off",
    )
    return dataclasses.replace(base, **changes)


def rollout(**changes: Any) -> RolloutConfig:
    """Returns two samplers of short responses on CPUs."""
    base = RolloutConfig(group_size=GROUP, max_new_tokens=8, prompts_per_task=TASK, workers=2, worker=CPU)
    return dataclasses.replace(base, **changes)


def flags(world: World, out: Path | str, *more: str) -> list[str]:
    """Returns the flags of a run on one sampler and one learner, as a user would give them."""
    return [
        *("--model", world.model, "--tokenizer", world.tokenizer_uri, "--chats", world.chat),
        *("--out", str(out), "--prompts-per-step", str(PROMPTS), "--steps", str(STEPS)),
        *("--reward.weights", "even=1", "--reward.plug-ins", "tests.grpo_runs:even"),
        *("--rollout.group-size", str(GROUP), "--rollout.max-new-tokens", "8", "--rollout.worker.gpus", "0"),
        *("--rollout.prompts-per-task", str(TASK), "--learner.worker.gpus", "0"),
        *("--optimizer.lr", "1e-3", "--optimizer.warmup-steps", "2", "--checkpoints.every", str(EVERY)),
        *("--trajectories-every", "1", *more),
    ]


# ---------------------------------------------------------------- kills


def workers(name: str, among: Sequence[psutil.Process] | None = None) -> list[psutil.Process]:
    """Returns live Ray workers whose title has ``name`` in it, by default of this process's own Ray."""
    family = psutil.Process().children(recursive=True) if among is None else among
    return [process for process in family if name in _title(process)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextmanager
def assassin(name: str, when: Callable[[], bool]) -> Iterator[list[int]]:
    """Kills one worker of a name at a moment, while the block runs; yields the pids that it killed."""
    killed: list[int] = []
    over = threading.Event()

    def lurk() -> None:
        while not over.wait(0.01):
            if when() and (found := workers(name)):
                found[0].kill()
                killed.append(found[0].pid)
                return

    thread = threading.Thread(target=lurk, name="assassin")
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join(_PATIENCE_S)


def saved(out: Path | str) -> int:
    """Returns the step of the newest checkpoint, 0 if there is none."""
    return max(checkpoints.steps(str(out)), default=0)


def seen(out: Path | str) -> int:
    """Returns how many steps have written their trajectories."""
    return len(steps_of(str(out)))


# ---------------------------------------------------------------- what is left


def rows_of(out: Path | str) -> list[dict[str, Any]]:
    """Reads all trajectories."""
    return list(read_trajectories(str(out)))


def draws_of(out: Path | str) -> list[int]:
    """Returns the number of the prompt of every group that was learnt from or looked at, step by step."""
    return [row["draw"] for row in rows_of(out) if row["reply"] == 0]


def timeless(curve: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the metrics of all steps without those of time."""
    return [
        {name: value for name, value in row.items() if not name.startswith(("s_", "samples_per_s"))}
        for row in curve
    ]


def assert_same_run(out: Path | str, whole: Path | str) -> None:
    """Model, responses, and every number but times are the same, bit for bit."""
    assert weights_of(out) == weights_of(whole)
    assert rows_of(out) == rows_of(whole)
    assert timeless(curve_of(out)) == timeless(curve_of(whole))
    for name in ("steps", "prompts_drawn", "prompts_rejected", "samples", "alarms"):
        assert record_of(out)[name] == record_of(whole)[name], name


def assert_readable(output: str) -> None:
    """No line of what a job says is too long to read, and none has data in it."""
    assert max(map(len, output.splitlines())) <= 2000
    assert re.search(r"[A-Za-z0-9+/]{200,}", output) is None


def weights_of(out: Path | str, name: str = "final") -> bytes:
    """Reads the weights of an exported model."""
    return storage.read_bytes(storage.join(str(out), name, "model.safetensors"))
