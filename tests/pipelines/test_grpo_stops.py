"""The loop over made-up processes, without Ray: what a fatal alarm and a refusal leave, and what they say."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipelines import storage
from pipelines.grpo.config import (
    ChecksConfig,
    GrpoConfig,
    LearnerConfig,
    PromptValidationConfig,
    RolloutConfig,
)
from pipelines.grpo.groups import Outline
from pipelines.grpo.loop import Loop, Stopped
from pipelines.grpo.observe.alarms import AlarmsConfig
from pipelines.grpo.observe.progress import GrpoProgress
from pipelines.grpo.reward.components import Scored
from pipelines.grpo.reward.scoring import ValidationRow
from pipelines.tracking import Tracker
from pipelines.training import checkpoints
from pipelines.training.config import CheckpointsConfig
from samtok.errors import ConfigError

NAMES = ("mask", "says_none", "num_words", "num_duplicates", "num_malformed")
TARGETS, NONE = 30, 10
"""Prompts of a step."""


def said(mask: float, *, none: bool) -> Scored:
    return Scored(dict.fromkeys(NAMES, 0.0) | {"mask": mask, "says_none": float(none)}, mask)


@dataclass
class Pool:
    """Samplers of a policy that says nothing more often in every step; counts what it is asked."""

    silent: list[float]  # share of silent responses to prompts with targets, by step
    tasks: list[int] = field(default_factory=list)

    @property
    def in_flight(self) -> int:
        return len(self.tasks)

    def submit(self, task: Any) -> None:
        self.tasks.append(task.number)

    def take(self, number: int) -> tuple[Any, list[None], float]:
        self.tasks.remove(number)
        outlines = [
            Outline(
                draw=number * (TARGETS + NONE) + n,
                version=number,
                targets=int(n < TARGETS),
                lengths=(3,) * 4,
                complete=(True,) * 4,
                prompt_tokens=5,
            )
            for n in range(TARGETS + NONE)
        ]
        return (
            SimpleNamespace(outlines=outlines, rejects=[], version=number),
            [None] * len(outlines),
            self.silent[number],
        )

    def validate(self, indices: Any) -> Any:
        return []

    def sync(self, weights: Any, *, wait: bool) -> None:
        pass


@dataclass
class Scorers:
    """Pays for masks, and for silence where there is no target; validations get worse."""

    left: float = 1.0

    def finish(self, silent: float) -> list[list[Scored]]:
        count = round(4 * silent)
        asked = [said(0.0, none=True)] * count + [said(0.4, none=False)] * (4 - count)
        none = [said(1.0, none=True)] * 2 + [said(0.0, none=False)] * 2
        return [asked] * TARGETS + [none] * NONE

    def validate(self, parts: Any) -> list[list[ValidationRow]]:
        self.left *= 0.9
        answer = said(self.left, none=False)
        return [[ValidationRow(1, answer, (answer,), intersection_px=0, predicted_px=0, target_px=1)]]


@dataclass
class Learners:
    """Learn nothing; a checkpoint is there once it is finished, as if it were written meanwhile."""

    out: Path
    learnt: int = 0
    begun: int | None = None

    def learn(self, step: int, parts: Any, *, change: bool) -> dict[str, float]:
        self.learnt += 1
        return {"entropy": 0.5, "mismatch": 0.0, "mismatch_max": 0.0}

    def publish(self, version: int) -> None: ...

    def save(self, body: Any) -> None:
        self.finish_saving()
        self.begun = body["step"]

    def finish_saving(self) -> None:
        if self.begun is not None:
            folder = self.out / "checkpoints" / f"step-{self.begun:08d}"
            storage.write_bytes(str(folder / "state.json"), b"{}")
            self.begun = None

    def export(self, name: str, facts: Any) -> None:
        storage.write_bytes(str(self.out / name / "model.safetensors"), b"")


def loop_of(out: Path, silent: list[float], none: int = 25, **changes: Any) -> Loop:
    config = GrpoConfig(
        out=str(out),
        model="m",
        tokenizer="t",
        chats=("c",),
        prompts_per_step=TARGETS + NONE,
        steps=len(silent),
        rollout=RolloutConfig(group_size=4, prompts_per_task=TARGETS + NONE),
        learner=LearnerConfig(micro_batch=4),
        **{
            "checks": ChecksConfig(parity_every=0, image=False),
            "alarms": AlarmsConfig(first=2, window=2, prompts=40, stop_on=("mismatch", "collapse")),
            "validation": PromptValidationConfig(every=3),
            "checkpoints": CheckpointsConfig(every=2),
            "trajectories_every": 0,
            **changes,
        },
    )
    learners = Learners(out)
    team = SimpleNamespace(
        config=config,
        task=SimpleNamespace(digest="d", lineage={}),
        pool=Pool(silent),
        scorers=Scorers(),
        learners=learners,
        start_learners=lambda: learners,
        turn=lambda whose: None,
    )
    prompts = SimpleNamespace(
        counts={"none": none, "prompts": 100}, weights=(None,), draws=lambda start, count: range(count)
    )
    held_out = [0] if config.validation.every == 3 else None
    progress = GrpoProgress(config.steps, Tracker("off", experiment="e", home=str(out)))
    return Loop(cast(Any, team), cast(Any, prompts), cast(Any, held_out), progress)


COLLAPSE = [0.25] * 4 + [0.5, 0.75, 1.0, 1.0, 1.0, 1.0]


def test_a_collapse_ends_the_run_and_leaves_what_was_good(tmp_path):
    loop = loop_of(tmp_path, COLLAPSE)
    with pytest.raises(Stopped) as stopped:
        loop.run()
    said = str(stopped.value)
    assert stopped.value.exit_code == 1
    assert loop.state.step == 6 and [alarm["name"] for alarm in loop.state.alarms] == ["collapse"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-0", "checkpoints", "history"]
    assert checkpoints.steps(str(tmp_path)) == [2, 4]
    assert "by the alarm collapse (--alarms.stop-on)" in said
    assert f"Kept in {tmp_path}: best-0, the checkpoint of step 4. " in said
    assert f"Begin anew from --model {tmp_path}/best-0 in another --out" in said
    assert "the same command with --alarms.stop-on mismatch goes on all the same" in said


def test_a_collapse_before_anything_was_saved_says_so(tmp_path):
    changes = {
        "validation": PromptValidationConfig(every=100),
        "checkpoints": CheckpointsConfig(every=100),
        "alarms": AlarmsConfig(first=2, window=2, prompts=40, stop_on=("collapse",)),
    }
    with pytest.raises(Stopped, match=r"Nothing was saved yet. Begin anew in another --out") as stopped:
        loop_of(tmp_path, [1.0] * 4, **changes).run()
    assert "--alarms.stop-on (and no name) goes on all the same" in str(stopped.value)


def test_a_collapse_is_only_told_where_it_does_not_end_the_run(tmp_path):
    loop = loop_of(tmp_path, COLLAPSE, alarms=AlarmsConfig(first=2, window=2, prompts=40))
    assert loop.run().step == len(COLLAPSE)
    assert [alarm["name"] for alarm in loop.state.alarms] == ["collapse"]


@pytest.mark.parametrize("mode", ["refuse", "warn", "off"])
def test_prompts_for_which_silence_pays_are_refused_before_anything_is_learnt(tmp_path, caplog, mode):
    loop = loop_of(
        tmp_path, [0.25] * 2, none=60, checks=ChecksConfig(parity_every=0, image=False, none_edge=mode)
    )
    if mode == "refuse":
        with pytest.raises(ConfigError, match=r"^60% of the prompts have.*--prompts.none-share 0\.\d"):
            loop.run()
    else:
        loop.run()
    assert cast(Any, loop.team).learners.learnt == (0 if mode == "refuse" else 2)
    assert ("60% of the prompts have no target" in caplog.text) == (mode == "warn")
