"""All processes of a run: learners, samplers and scorers, where they are, and how they are replaced."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.chats.prompts import PromptSource
from pipelines.cluster import ClusterInfo, runs_in
from pipelines.generation.environment import python_of
from pipelines.grpo import actors
from pipelines.grpo.actors import ActorDied
from pipelines.grpo.config import GrpoConfig
from pipelines.grpo.groups import Group
from pipelines.grpo.learn.learner_group import LearnerGroup
from pipelines.grpo.reward.components import Scored
from pipelines.grpo.reward.scoring import Scorer, ValidationRow
from pipelines.grpo.rollout.pool import RolloutPool, SamplerActor
from pipelines.training.prepare import Prepared
from samtok.errors import ClusterError

log = logging.getLogger(__name__)

_PLACED_WITHIN_S = 300.0


class Team:
    """The processes of a run; starts them when it is made.

    Raises:
        ClusterError: The cluster has no room for all of them.
    """

    def __init__(
        self,
        task: Prepared[GrpoConfig],
        prompts: PromptSource,
        held_out: PromptSource | None,
        cluster: ClusterInfo,
    ) -> None:
        config = task.config
        self.task, self.config = task, config
        self._group = _place(config, cluster)
        learners, colocated = config.learner.workers, config.placement == "colocated"
        self._learner_spots = [self._spot(i) for i in range(learners)]
        device = "cuda" if config.rollout.worker.gpus else "cpu"

        python = python_of(config.rollout)

        def sampler(number: int, careful: bool) -> Any:
            return actors.start_actor(
                SamplerActor,
                *(task, prompts, held_out, device, careful),
                cpus=config.rollout.worker.cpus,
                gpus=(config.rollout.worker.gpus or 0) * (0.5 if colocated else 1.0),
                scheduling_strategy=self._spot(number if colocated else learners + number),
                **runs_in(python),
            )

        self.learners: LearnerGroup | None = None
        self.scorers = ScorerPool(config)
        self.pool = RolloutPool(sampler, self.scorers.begin, config)
        self._turn: Literal["learners", "samplers"] | None = None

    def _spot(self, bundle: int) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        return PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle)

    def start_learners(self) -> LearnerGroup:
        """Starts the learners, in the place of earlier ones if there were."""
        if self.learners is not None:
            self.learners.end()
            self.learners = None
        self._turn = None
        self.turn("learners")
        self.learners = LearnerGroup(self.task, self._learner_spots)
        return self.learners

    def turn(self, whose: Literal["learners", "samplers"]) -> None:
        """Gives learners or samplers the accelerators that they share, where they do; the others sleep."""
        if self.config.placement != "colocated" or not self.pool.actors or whose == self._turn:
            return
        if whose == "learners":
            self.pool.turn("sleep")
        if self.learners is not None:
            self.learners.turn("wake" if whose == "learners" else "sleep")
        if whose == "samplers":
            self.pool.turn("wake")
        self._turn = whose

    def end(self) -> None:
        """Ends all processes and gives their places back."""
        from ray.util import remove_placement_group

        if self.learners is not None:
            self.learners.end()
        self.pool.end()
        self.scorers.end()
        remove_placement_group(self._group)


def _bundles(config: GrpoConfig) -> list[dict[str, float]]:
    learner, rollout = config.learner, config.rollout
    if config.placement == "colocated":
        both = {
            "CPU": learner.worker.cpus + rollout.worker.cpus,
            "GPU": max(learner.worker.gpus or 0, rollout.worker.gpus or 0),
        }
        return [both] * max(learner.workers, rollout.workers)
    return [
        *[{"CPU": learner.worker.cpus, "GPU": learner.worker.gpus or 0}] * learner.workers,
        *[{"CPU": rollout.worker.cpus, "GPU": rollout.worker.gpus or 0}] * rollout.workers,
    ]


def _place(config: GrpoConfig, cluster: ClusterInfo) -> Any:
    """Reserves room for learners and samplers, as near to each other as can be."""
    import ray
    from ray.util import placement_group, remove_placement_group

    bundles = [{name: value for name, value in one.items() if value} for one in _bundles(config)]
    cluster.require(
        cpus=sum(one.get("CPU", 0) for one in bundles), gpus=sum(one.get("GPU", 0) for one in bundles)
    )
    group = placement_group(bundles, strategy="PACK")
    ready, _ = ray.wait([group.ready()], timeout=_PLACED_WITHIN_S)
    if not ready:
        remove_placement_group(group)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        have = "; ".join(f"{n.get('CPU', 0):g} CPUs and {n.get('GPU', 0):g} GPUs" for n in nodes)
        raise ClusterError(
            f"there was no room within {_PLACED_WITHIN_S:.0f} s for {bundles}, one process each; the nodes "
            f"have {have}. Other jobs may hold them; or lower --learner.workers, --rollout.workers or "
            "their CPUs."
        )
    return group


@dataclass(frozen=True)
class Scoring:
    """Groups that a scorer is at."""

    groups: Sequence[Any]
    at: int
    actor: Any
    ref: Any


class ScorerPool:
    """Scorers; one that dies is replaced, and what it was at is scored again."""

    def __init__(self, config: GrpoConfig) -> None:
        self.config = config
        self.actors = [self._start() for _ in range(config.reward.workers)]
        self.failures = self._begun = 0

    def _start(self) -> Any:
        gpus = self.config.reward.gpus_per_worker
        return actors.start_actor(Scorer, self.config, "cuda" if gpus else "cpu", cpus=0, gpus=gpus)

    def begin(self, groups: Sequence[Any]) -> Scoring:
        """Has the groups of a task scored, by each scorer in turn."""
        at = self._begun % len(self.actors)
        self._begun += 1
        actor = self.actors[at]
        return Scoring(groups, at, actor, actor.score.remote(*groups))

    def finish(self, begun: Scoring) -> list[list[Scored]]:
        """Waits for what was begun."""
        waiting = {"timeout_s": self.config.rollout.timeout_s, "doing": "scoring", "out": self.config.out}
        while True:
            try:
                return actors.wait_all([begun.ref], [begun.actor], **waiting)[0]
            except ActorDied as error:
                if self.actors[begun.at] is begun.actor:  # else it was replaced for another task
                    self._replace(begun.at, error)
            begun = self.begin(begun.groups)

    def without_pixels(self, groups: Sequence[Any]) -> list[Group]:
        """Fetches groups without what only learners read."""
        return self._each(lambda actor, some: actor.without_pixels.remote(*some), [groups], "reading groups")[
            0
        ]

    def validate(self, parts: Sequence[tuple[Any, Any]]) -> list[list[ValidationRow]]:
        """Scores what held-out prompts were answered."""
        return self._each(lambda actor, part: actor.validate.remote(*part), parts, "scoring held-out prompts")

    def _each(self, call: Callable[[Any, Any], Any], parts: Sequence[Any], doing: str) -> list[Any]:
        waiting = {"timeout_s": self.config.rollout.timeout_s, "doing": doing, "out": self.config.out}
        return actors.spread(call, parts, self.actors, replace=self._replace, **waiting)

    def _replace(self, at: int, error: ActorDied) -> None:
        self.failures += 1
        if self.failures > self.config.rollout.max_failures:
            raise ClusterError(
                f"processes that compute rewards died {self.failures} times, the last time: {error}. Does a "
                "plug-in (--reward.plug-ins) end its process? The same command goes on from the last "
                "checkpoint."
            ) from error
        log.warning("%s; another one takes its place", error)
        actors.kill([self.actors[at]])
        self.actors[at] = self._start()

    def end(self) -> None:
        """Ends all scorers."""
        actors.kill(self.actors)
