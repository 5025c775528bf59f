"""The loop of reinforcement learning, in the driver: sample, score, learn, hand weights on, validate, save.

A step takes finished tasks in order, learns from them, and publishes the new weights; version ``v`` is
that of the weights after ``v`` steps. Tasks are submitted at the beginning of a step only, at most ``slots``
of them being in flight, so a response is never older than ``--rollout.max-staleness`` steps. With 0 the
samplers wait while learners learn, and a run resumed from a checkpoint goes on bit for bit: every draw
follows from the seed and a number, and a checkpoint has those numbers. Above 0, what was in flight is sampled
anew.
"""

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pipelines import storage
from pipelines.chats.prompts import PromptSource
from pipelines.grpo.actors import ActorDied
from pipelines.grpo.config import GrpoConfig
from pipelines.grpo.groups import Outline, RolloutTask, outline
from pipelines.grpo.learn.learner_group import LearnerGroup
from pipelines.grpo.learn.update import Update, plan_update
from pipelines.grpo.observe.alarms import Alarm, Alarms
from pipelines.grpo.observe.best import BestK
from pipelines.grpo.observe.checks import Checks
from pipelines.grpo.observe.metrics import step_measures, validation_measures
from pipelines.grpo.observe.progress import GrpoProgress
from pipelines.grpo.replay import Replay
from pipelines.grpo.reward.components import Scored
from pipelines.grpo.team import Team
from pipelines.grpo.trajectories import trajectory_rows, write_trajectories
from pipelines.training import checkpoints
from pipelines.training.journal import Journal
from samtok.errors import ClusterError, DataError, SamtokError

log = logging.getLogger(__name__)

_ENOUGH_DRAWS = 50
"""Prompts that must have been drawn before a share of rejects is judged."""


class Stopped(SamtokError):
    """An alarm that ends the run."""


@dataclass
class State:
    """How far a run is; part of its checkpoints."""

    step: int = 0  # steps done, which is also the version of the weights
    next_task: int = 0  # the first task that was not used
    drawn: int = 0  # prompts
    rejected: int = 0  # prompts
    samples: int = 0  # responses that were sampled
    seconds: dict[str, float] = field(default_factory=dict)  # of all steps, by part
    validations: list[dict[str, Any]] = field(default_factory=list)  # numbers of the validations, in order
    alarms: list[dict[str, Any]] = field(default_factory=list)  # in order


@dataclass
class _Batch:
    """What a step learns from: groups in the order of the run."""

    outlines: list[Outline] = field(default_factory=list)
    refs: list[Any] = field(default_factory=list)
    scored: list[list[Scored]] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"s_rollout": 0.0, "s_reward": 0.0})

    @property
    def totals(self) -> np.ndarray:
        return np.array([[response.total for response in group] for group in self.scored])


class Loop:
    """One run."""

    def __init__(
        self, team: Team, prompts: PromptSource, held_out: PromptSource | None, progress: GrpoProgress
    ) -> None:
        self.team, self.prompts, self.held_out, self.progress = team, prompts, held_out, progress
        self.config: GrpoConfig = team.config
        self.algorithm = self.config.algorithm.resolved
        self.learners: LearnerGroup
        self.restarts = 0
        self._submitted = 0
        self.replay = Replay(self.config, prompts) if self.config.replay is not None else None
        self.changes = self.config.debug in ("off", "train-only")
        self.steps = self.config.steps if self.replay is None else min(self.config.steps, len(self.replay))

    def _fresh(self) -> None:
        self.state = State()
        self.alarms = Alarms(self.config.alarms, self.config.parity)
        self.best = BestK(self.config.validation.metric, self.config.validation.keep)
        self.journal = Journal(self.config.out)

    def run(self) -> State:
        """Goes through all steps that are left; raises SamtokError for what a person can do something about:
        checks, alarms, deaths, bad data."""
        while True:
            try:
                return self._go()
            except ActorDied as error:
                self._forgive(error)
            except ClusterError:
                raise
            except SamtokError:
                if self.team.learners is not None:
                    with suppress(SamtokError):  # what ended the run is what is told
                        self.team.learners.finish_saving()
                raise

    def _go(self) -> State:
        self._begin()
        while self.state.step < self.steps:
            self._step()
        if self.changes:
            last = (self.state.validations or [None])[-1]
            self.team.turn("learners")
            self.learners.export("final", {"step": self.state.step, "validation": last})
            self.learners.finish_saving()
        else:
            self.journal.write(self.state.step)  # a checkpoint does it otherwise
        return self.state

    # ---------------------------------------------------------------- start and restart

    def _begin(self) -> None:
        """Starts learners at the last checkpoint, brings samplers to their weights, and checks both."""
        self.learners = self.team.start_learners()
        self._fresh()
        found = checkpoints.steps(self.config.out)
        if found:
            self._restore(self.learners.load(found[-1]))
            self.progress.resumed(self.state.step)
        self._submitted = self.state.next_task
        if self.replay is not None:
            return
        self._sync(wait=True)
        self.checks = Checks(self.config, self.prompts, self.team, self.learners)
        self.checks.start(self.state.step)
        if self.held_out is not None and not self.state.validations:
            self._validate()

    def _forgive(self, error: ActorDied) -> None:
        self.restarts += 1
        if self.restarts > self.config.learner.max_failures:
            raise ClusterError(
                f"learners died {self.restarts} times, the last time: {error}. Checkpoints are kept: the "
                "same command goes on from the last one. If memory is short, lower "
                "--learner.micro-batch; raise --learner.max-failures for unstable nodes."
            ) from error
        log.warning("%s; all learners start anew from the last checkpoint", error)
        self.team.pool.forget()

    def _restore(self, body: Mapping[str, Any]) -> None:
        self.state = State(**body["state"])
        self.alarms.restore(body["alarms"])
        self.best.restore(body["best"])
        self.journal.restore(body["journal"])

    def _save(self) -> None:
        self.team.turn("learners")
        self.journal.write(self.state.step)
        self.learners.save(
            {
                "step": self.state.step,
                "draws": self.state.next_task * self.config.rollout.prompts_per_task,
                "fingerprint": self.team.task.digest,
                "lineage": dict(self.team.task.lineage),
                "state": asdict(self.state),
                "alarms": self.alarms.state(),
                "best": self.best.state(),
                "journal": self.journal.state(),
            }
        )

    # ---------------------------------------------------------------- one step

    def _step(self) -> None:
        started = time.monotonic()
        step = self.state.step
        batch = self._gather() if self.replay is None else self._replayed(self.replay)
        self._judge_rejects()
        newest = step if self.replay is None else max(one.version for one in batch.outlines)
        measures = step_measures(batch.outlines, batch.scored, version=newest)
        if step == 0 and self.replay is None:
            self.checks.masks_pay(batch.outlines, batch.scored, learns=self.changes)
        update, learnt, seconds = self._learn(step, batch)
        self.state.step += 1
        syncing = time.monotonic()
        self._sync(wait=self.config.rollout.max_staleness == 0)
        seconds |= {"s_sync": time.monotonic() - syncing, "s_step": time.monotonic() - started}
        self.state.samples += len(batch.outlines) * self.config.rollout.group_size
        row = {"step": step, **measures, **learnt, **batch.seconds, **seconds}
        row["samples_per_s"] = len(batch.outlines) * self.config.rollout.group_size / seconds["s_step"]
        self._note(row, batch, update)
        if self.replay is None and self.held_out is not None and self._is_due(self.config.validation.every):
            self._validate()
        if self.replay is None and self._is_due(self.config.checks.parity_every, first=True):
            self.checks.parity(self.state.step)
        if self.changes and self._is_due(self.config.checkpoints.every):
            self._save()

    def _is_due(self, every: int, *, first: bool = False) -> bool:
        done = self.state.step
        return every > 0 and (done % every == 0 or done == self.steps or (first and done == 1))

    def _gather(self) -> _Batch:
        """Takes tasks until there are enough groups to learn from; submits new ones first."""
        config, batch = self.config, _Batch()
        self.team.turn("samplers")
        self._fill(config.slots)
        asked, most = 0, config.algorithm.max_tries * config.prompts_per_step
        while asked < config.prompts_per_step or (
            self.algorithm.dynamic_sampling and asked < most and self._missing(batch) > 0
        ):
            if not self.team.pool.in_flight:
                self._fill(-(-self._missing(batch) // config.rollout.prompts_per_task))
            self._take(batch)
            asked += config.rollout.prompts_per_task
        if not batch.outlines:
            raise DataError(
                f"none of the {asked} prompts of step {self.state.step} can be asked. The rejects by reason: "
                f"{self.journal.reasons()}.",
                reason="no_prompts",
            )
        return batch

    def _replayed(self, replay: Replay) -> _Batch:
        import ray

        kept = replay.step(self.state.step)
        batch = _Batch()
        batch.outlines = [outline(group) for group, _ in kept]
        batch.refs = [ray.put(group) for group, _ in kept]
        batch.scored = [scored for _, scored in kept]
        self.state.drawn += len(kept)
        return batch

    def _missing(self, batch: _Batch) -> int:
        """Returns how many groups with different rewards a step lacks."""
        useful = int((np.ptp(batch.totals, axis=1) > 0).sum()) if batch.scored else 0
        return self.config.prompts_per_step - useful

    def _fill(self, most: int) -> None:
        """Submits tasks, as many as may be in flight and the rest of the run can use."""
        size, pool = self.config.rollout.prompts_per_task, self.team.pool
        left = (self.config.steps - self.state.step) * self.config.tasks_per_step
        most = most if self.algorithm.dynamic_sampling else min(most, left)
        while pool.in_flight < most:
            number = self._submitted
            indices = self.prompts.draws(number * size, size)
            pool.submit(RolloutTask(number, tuple(enumerate(indices, start=number * size))))
            self._submitted += 1

    def _take(self, batch: _Batch) -> None:
        begun = time.monotonic()
        sampling, groups, scoring = self.team.pool.take(self.state.next_task)
        self.state.next_task += 1
        sampled = time.monotonic()
        scored = self.team.scorers.finish(scoring)
        batch.outlines += sampling.outlines
        batch.refs += groups
        batch.scored += scored
        batch.rejects += sampling.rejects
        batch.seconds["s_rollout"] += sampled - begun
        batch.seconds["s_reward"] += time.monotonic() - sampled
        self.state.drawn += self.config.rollout.prompts_per_task
        self.state.rejected += len(sampling.rejects)
        age, limit = self.state.step - sampling.version, self.config.rollout.max_staleness
        if not 0 <= age <= limit:
            raise RuntimeError(
                f"responses are {age} steps old, the limit is {limit}; this is a defect of samtok"
            )

    def _learn(self, step: int, batch: _Batch) -> tuple[Update, dict[str, float], dict[str, float]]:
        """Learns from a batch; returns what was planned, the learners' metrics, and seconds."""
        config, begun = self.config, time.monotonic()
        totals, drift = batch.totals, {}
        if config.algorithm.kl.weight and config.algorithm.kl.place == "reward":
            self.team.turn("learners")
            sums = np.array(self.learners.drift(*batch.refs))
            totals, drift = totals - config.algorithm.kl.weight * sums, {"kl_reward": float(sums.mean())}
        update = plan_update(
            batch.outlines,
            batch.refs,
            totals,
            config.algorithm,
            learners=config.learner.workers,
            max_tokens=config.rollout.max_new_tokens,
            most_groups=config.prompts_per_step if self.algorithm.dynamic_sampling else None,
        )
        learnt: dict[str, float] = {"learnt": float(update.used.mean())}
        if update.parts and config.debug != "rollout-only":
            self.team.turn("learners")
            by_learner = [[part[rank] for part in update.parts] for rank in range(config.learner.workers)]
            found = self.learners.learn(step, by_learner, change=self.changes)
            stale = any(one.version != step for one in batch.outlines)
            # with older weights the distance to the samplers is no mismatch
            learnt |= {n.replace("mismatch", "off_policy") if stale else n: v for n, v in found.items()}
        return update, {**learnt, **drift}, {"s_learn": time.monotonic() - begun}

    def _sync(self, *, wait: bool) -> None:
        self.team.turn("learners")
        weights = self.learners.publish(self.state.step)
        self.team.turn("samplers")
        self.team.pool.sync(weights, wait=wait)

    def _judge_rejects(self) -> None:
        state = self.state
        share = state.rejected / max(state.drawn, 1)
        if state.drawn >= _ENOUGH_DRAWS and share > self.config.max_reject_rate:
            raise DataError(
                f"{share:.1%} of {state.drawn} prompts that were drawn cannot be asked; --max-reject-rate "
                f"allows {self.config.max_reject_rate:.1%}. Are the images of the chat corpora in place? The "
                f"reasons so far: {self.journal.reasons()}."
            )

    # ---------------------------------------------------------------- what is kept and shown

    def _note(self, row: dict[str, Any], batch: _Batch, update: Update) -> None:
        for name in ("s_rollout", "s_reward", "s_learn", "s_sync", "s_step"):
            self.state.seconds[name] = self.state.seconds.get(name, 0.0) + row[name]
        self.journal.add({name: value for name, value in row.items() if value is not None}, batch.rejects)
        self.progress.step(row)
        every = self.config.trajectories_every
        if every and (row["step"] % every == 0 or row["step"] == self.config.steps - 1):
            known = zip(batch.scored, update.advantages, update.used, strict=True)
            groups = self.team.scorers.without_pixels(batch.refs)
            rows = [
                entry
                for group, of_group in zip(groups, known, strict=True)
                for entry in trajectory_rows(group, *of_group, row["step"])
            ]
            write_trajectories(self.config.out, row["step"], rows)
        self._check_alarms(row)

    def _check_alarms(self, row: Mapping[str, Any]) -> None:
        """Judges the metrics, and ends the run on a fatal alarm."""
        fatal = []
        for alarm in self.alarms.take(row):
            log.warning("alarm %s: %s", alarm.name, alarm.sentence)
            self.state.alarms.append({"step": row["step"], "name": alarm.name, "sentence": alarm.sentence})
            fatal += [alarm] if alarm.fatal else []
        if fatal:
            raise self._stopped(fatal[0], row["step"])

    def _stopped(self, alarm: Alarm, step: int) -> Stopped:
        """Returns what ends the run, with what is kept of it and the ways on."""
        out = self.config.out
        with suppress(SamtokError):  # the alarm is what is told
            self.learners.finish_saving()
        best = [f"best-{number}" for number, _ in self.best.best]
        saved = [f"the checkpoint of step {number}" for number in checkpoints.steps(out)[-1:]]
        kept = f"Kept in {out}: {', '.join([*best, *saved])}" if best or saved else "Nothing was saved yet"
        model = f" from --model {storage.join(out, best[0])}" if best else ""
        others = " ".join(name for name in self.config.alarms.stop_on if name != alarm.name)
        return Stopped(
            f"{alarm.sentence} The run ends at step {step} by the alarm {alarm.name} (--alarms.stop-on). "
            f"{kept}. Begin anew{model} in another --out with other settings; the same command with "
            f"--alarms.stop-on {others or '(and no name)'} goes on all the same."
        )

    def _validate(self) -> None:
        """Has held-out prompts answered, and keeps the model if it is one of the best."""
        assert self.held_out is not None
        step = self.state.step
        indices = list(range(min(self.config.validation.prompts, len(self.held_out))))
        self.team.turn("samplers")
        parts = self.team.scorers.validate(self.team.pool.validate(indices))
        row = {"step": step, **validation_measures([row for part in parts for row in part])}
        self.state.validations.append(row)
        verdict = self.best.take(row)
        if verdict.keep:
            self.team.turn("learners")
            self.learners.export(f"best-{step}", {"step": step, "validation": row})
        for old in verdict.drop:
            storage.delete_folder(storage.join(self.config.out, f"best-{old}"))
        self.progress.validation(row, best=verdict.keep)
        self._check_alarms(row)
