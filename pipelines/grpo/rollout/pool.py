"""The samplers of a run: hands out tasks, keeps order, replaces the dead.

Results are used in the order of the tasks, whichever sampler is first, so a run does not depend on which
process is fast. A task is sampled with all weights that were published before it was sent out, since the
calls of one actor are done in order.

A sampler that dies is replaced, gets the newest weights, and its task is done again, by it or another one:
the responses were never used, so each prompt is used exactly once.
"""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipelines.grpo import actors
from pipelines.grpo.actors import ActorDied, Lost
from pipelines.grpo.config import GrpoConfig
from pipelines.grpo.groups import RolloutTask
from pipelines.grpo.rollout.sampler import Sampler, Sampling
from pipelines.grpo.transport import Weights, object_store
from pipelines.ingestion import apart
from samtok.errors import CheckpointError, ClusterError

log = logging.getLogger(__name__)


@dataclass
class _Running:
    task: RolloutTask
    refs: list[Any]
    since: float


class RolloutPool:
    """Samplers on Ray. A run that learns from kept responses has none.

    Args:
        start: Starts number ``i``, also in the place of one that died; gets whether it should read images in
            a process apart, since so many died.
        begin: Is given the references to a task's groups as soon as they are sampled, whatever their turn.
    """

    def __init__(
        self, start: Callable[[int, bool], Any], begin: Callable[[Sequence[Any]], Any], config: GrpoConfig
    ) -> None:
        rollout = config.rollout
        self.begin = begin
        self.start, self.out, self.prompts_per_task = start, config.out, rollout.prompts_per_task
        self.timeout_s, self.max_failures = rollout.timeout_s, rollout.max_failures
        self.actors = [start(number, False) for number in range(0 if config.replay else rollout.workers)]
        self.failures = 0
        self.weights: Weights | None = None
        self._waiting: deque[RolloutTask] = deque()
        self._running: dict[int, _Running] = {}
        self._syncing: dict[int, Any] = {}
        self._done: dict[int, tuple[Sampling, tuple[Any, ...], Any]] = {}
        self._reads_ahead: dict[int, int | None] = {}  # number of the task that each sampler has read

    # ---------------------------------------------------------------- weights

    def sync(self, weights: Weights, *, wait: bool) -> None:
        """Has all samplers take in weights before their next task.

        Args:
            weights: The newest ones.
            wait: Return once all have them; otherwise they take them in after the task they are at.

        Raises:
            CheckpointError: A sampler has other weights afterwards.
            ClusterError: Samplers died too often, or hang.
            Lost: The weights are gone with the learners that published them.
        """
        if wait:
            self._collect_syncs()
        self.weights = weights  # a busy sampler takes in earlier ones first, in the order of the calls
        for number, actor in enumerate(self.actors):
            self._syncing[number] = actor.sync.remote(weights)
        if wait:
            self._collect_syncs()

    def _collect_syncs(self) -> None:
        for number in list(self._syncing):
            self._finish_sync(number)

    def _finish_sync(self, number: int) -> None:
        assert self.weights is not None
        while (ref := self._syncing.pop(number, None)) is not None:
            try:
                found = self._wait(ref, number, "taking in weights")
            except Lost:  # the learners' death, not the sampler's: another one would get no weights either
                raise
            except ActorDied as error:
                self._replace(number, error)
                continue
            if found != (self.weights.version, self.weights.digest):
                raise CheckpointError(
                    f"sampler {number} has weights {found[0]} ({found[1][:12]}), the learners published "
                    f"{self.weights.version} ({self.weights.digest[:12]}). Start the same command again."
                )

    def _wait(self, ref: Any, number: int, doing: str) -> Any:
        sampler = self.actors[number]
        return actors.wait_all([ref], [sampler], timeout_s=self.timeout_s, doing=doing, out=self.out)[0]

    def _replace(self, number: int, error: ActorDied) -> None:
        """Starts a sampler in the place of a dead one; its task waits again, first in the queue."""
        self.failures += 1
        if self.failures > self.max_failures:
            raise ClusterError(
                f"samplers died {self.failures} times, the last time: {error}. The same command goes on from "
                "the last checkpoint. If memory is short, lower --rollout.prompts-per-task or "
                "--rollout.max-new-tokens; raise --rollout.max-failures for unstable nodes."
            ) from error
        log.warning("%s; another one takes its place (%d of %d)", error, self.failures, self.max_failures)
        actors.kill([self.actors[number]])
        self._reads_ahead.pop(number, None)
        lost = self._running.pop(number, None)
        if lost is not None:
            self._waiting.appendleft(lost.task)
        self.actors[number] = self._start(number)
        if self.weights is not None:
            self._syncing[number] = self.actors[number].sync.remote(self.weights)

    def _start(self, number: int) -> Any:
        return self.start(number, self.failures >= apart.CAREFUL_AFTER)

    # ---------------------------------------------------------------- tasks

    @property
    def in_flight(self) -> int:
        """Tasks that were submitted and not taken out."""
        return len(self._waiting) + len(self._running) + len(self._done)

    def submit(self, task: RolloutTask) -> None:
        """Hands a task in."""
        self._waiting.append(task)
        self._hand_out()

    def _hand_out(self) -> None:
        for number, actor in enumerate(self.actors):
            if self._waiting and number not in self._running:
                task, upcoming = self._next_of(number)
                made = actor.roll.options(num_returns=1 + self.prompts_per_task).remote(task, upcoming)
                self._running[number] = _Running(task, made, time.monotonic())

    def _next_of(self, number: int) -> tuple[RolloutTask, RolloutTask | None]:
        """Takes a task out for a sampler, the one that it has read ahead if that still waits; returns with it
        the one that it is to read ahead meanwhile."""
        others = {ahead for at, ahead in self._reads_ahead.items() if at != number}
        own = [task for task in self._waiting if task.number == self._reads_ahead.get(number)]
        free = [task for task in self._waiting if task.number not in others]
        task = (own or free or self._waiting)[0]
        self._waiting.remove(task)
        idle = len(self.actors) - len(self._running) - 1  # the others of them take what comes first
        upcoming = next(iter([one for one in free if one is not task][idle:]), None)
        self._reads_ahead[number] = None if upcoming is None else upcoming.number
        return task, upcoming

    def take(self, number: int) -> tuple[Sampling, tuple[Any, ...], Any]:
        """Waits for a task; returns what it came to, references to its groups, and what ``begin`` made of
        them.

        Raises:
            ClusterError: Samplers died too often, or one hangs.
        """
        while number not in self._done:
            self._wait_for_any()
        return self._done.pop(number)

    def _wait_for_any(self) -> None:
        import ray

        for at in [at for at in self._syncing if at not in self._running]:
            self._finish_sync(at)
        self._hand_out()
        heads = {running.refs[0]: at for at, running in self._running.items()}
        oldest = min(self._running.values(), key=lambda running: running.since)
        left = self.timeout_s - (time.monotonic() - oldest.since)
        ready, _ = ray.wait(list(heads), num_returns=1, timeout=max(left, 0.0))
        if not ready:
            stuck = [self.actors[at] for at, running in self._running.items() if running is oldest]
            raise actors.hung(stuck, timeout_s=self.timeout_s, doing="sampling", out=self.out)
        self._finish(heads[ready[0]])

    def _finish(self, at: int) -> None:
        running = self._running[at]
        try:
            sampling: Sampling = actors.result(running.refs[0], self.actors[at], "sampling")
        except ActorDied as error:
            self._replace(at, error)
            return
        del self._running[at]
        if at in self._syncing:  # it came before the task, or comes right now
            self._finish_sync(at)
        groups = tuple(running.refs[1 : 1 + len(sampling.outlines)])
        self._done[running.task.number] = sampling, groups, self.begin(groups)
        self._hand_out()

    # ---------------------------------------------------------------- others

    def validate(self, indices: Sequence[int]) -> list[tuple[Any, Any]]:
        """Has held-out prompts answered by all samplers, which must have nothing else to do.

        Returns:
            What each part of the prompts came to (``Sampler.validate``).
        """
        size = self.prompts_per_task * 4
        parts = [list(indices[first : first + size]) for first in range(0, len(indices), size)]
        return self._each(
            lambda actor, part: actor.validate.remote(part), parts, "answering held-out prompts"
        )

    def probe(self, task: RolloutTask) -> list[Any]:
        """Has a task sampled beside all others, with the newest weights; returns references to its groups."""
        while True:
            self._collect_syncs()
            refs = self.actors[0].roll.options(num_returns=1 + self.prompts_per_task).remote(task)
            try:
                sampling: Sampling = self._wait(refs[0], 0, "sampling")
            except ActorDied as error:
                self._replace(0, error)
                continue
            return list(refs[1 : 1 + len(sampling.outlines)])

    def turn(self, name: str) -> None:
        """Sends all samplers to sleep, or wakes them."""
        self._each(lambda actor, _: actor.turn.remote(name), [None] * len(self.actors), name)

    def _each(self, call: Callable[[Any, Any], Any], parts: Sequence[Any], doing: str) -> list[Any]:
        """Spreads calls over the samplers, all with the newest weights."""

        def replace(number: int, error: ActorDied) -> None:
            self._replace(number, error)
            self._collect_syncs()

        self._collect_syncs()
        waiting = {"timeout_s": self.timeout_s, "doing": doing, "out": self.out}
        return actors.spread(call, parts, self.actors, replace=replace, **waiting)

    def forget(self) -> None:
        """Drops all tasks; what is being sampled is thrown away when it comes."""
        for number, running in list(self._running.items()):
            del self._running[number]
            actors.kill([self.actors[number]])
            self.actors[number] = self._start(number)
            log.info("task %d is dropped", running.task.number)
        self._waiting.clear()
        self._reads_ahead.clear()
        self._done.clear()
        self._syncing.clear()
        self.weights = None  # they may have died with the learners

    def end(self) -> None:
        """Ends all samplers."""
        actors.kill(self.actors)


class SamplerActor(actors.Traced):
    """A sampler; its groups are returned one by one, so that they belong to the driver and outlive it."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    @cached_property
    def sampler(self) -> Sampler:
        """Made by the first call, whose error reaches the driver as it is."""
        task, prompts, held_out, device, careful = self.arguments
        if careful:
            self.apart = contextlib.ExitStack()  # for as long as this process lives
            self.apart.enter_context(apart.in_own_process())
        return Sampler(task.config, prompts, held_out, object_store(task.config), device)

    def sync(self, weights: Weights) -> tuple[int, str]:
        """As ``Sampler.sync``."""
        return self.sampler.sync(weights)

    def roll(self, task: RolloutTask, upcoming: RolloutTask | None = None) -> list[Any]:
        """As ``Sampler.roll``, filled up with None to the returns that the call was made with."""
        sampling, groups = self.sampler.roll(task, upcoming)
        missing = self.sampler.config.rollout.prompts_per_task - len(groups)
        return [sampling, *groups, *[None] * missing]

    def validate(self, indices: Sequence[int]) -> Any:
        """As ``Sampler.validate``."""
        return self.sampler.validate(indices)

    def turn(self, name: str) -> None:
        """Has the engine ``sleep``, to give the accelerator to the learners, or ``wake``."""
        getattr(self.sampler.engine, name)()
