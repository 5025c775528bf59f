"""The learners of a run as one: Ray actors joined by torch.distributed.

They live and die together: what one of them has lost no other one knows, so after a death all are started
anew and go back to the last checkpoint.
"""

import datetime
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import distributed

from pipelines.grpo import actors
from pipelines.grpo.config import GrpoConfig
from pipelines.grpo.groups import Share
from pipelines.grpo.learn.learner import Learner
from pipelines.grpo.transport import Weights, object_store
from pipelines.training.prepare import Prepared


class LearnerActor(Learner, actors.Traced):
    """One learner; Ray resolves references to groups among its arguments, ``learn`` those in shares."""

    def __init__(self) -> None:
        """Leaves the rest to ``start``, since the learners have to meet first."""

    def address(self) -> str:
        """Returns host and a free port of this process, where the group can meet."""
        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def start(self, task: Prepared[GrpoConfig], rank: int, size: int, address: str) -> None:
        """Joins the group and loads the model."""
        config = task.config
        if size > 1 or task.deepspeed is not None:
            distributed.init_process_group(
                "nccl" if config.learner.worker.gpus else "gloo",
                init_method=f"tcp://{address}",
                rank=rank,
                world_size=size,
                timeout=datetime.timedelta(seconds=config.learner.timeout_s),
            )
        device = "cuda" if config.learner.worker.gpus else "cpu"
        super().__init__(task, object_store(config), torch.device(device))

    def learn(self, step: int, parts: Sequence[Sequence[Share]], *, change: bool = True) -> dict[str, float]:
        """Fetches the groups of its shares and learns from them."""
        import ray

        fetched = [[replace(share, group=ray.get(share.group)) for share in part] for part in parts]
        return super().learn(step, fetched, change=change)


class LearnerGroup:
    """All learners; every call goes to all of them and waits for all of them.

    Raises:
        ActorDied: One of them died while it started.
    """

    def __init__(self, task: Prepared[GrpoConfig], strategies: Sequence[Any]) -> None:
        self.task, self.config = task, task.config.learner
        share = 0.5 if task.config.placement == "colocated" else 1.0
        self.actors = [
            actors.start_actor(
                LearnerActor,
                cpus=self.config.worker.cpus,
                gpus=(self.config.worker.gpus or 0) * share,
                scheduling_strategy=strategy,
            )
            for strategy in strategies
        ]
        try:
            address = self._wait([self.actors[0].address.remote()], "starting")[0]
            size = len(self.actors)
            calls = [actor.start.remote(task, rank, size, address) for rank, actor in enumerate(self.actors)]
            self._wait(calls, "loading the model")
        except BaseException:  # those that live would keep the places of the next ones
            self.end()
            raise

    def _wait(self, refs: Sequence[Any], doing: str) -> list[Any]:
        asked, out = self.actors[: len(refs)], self.task.config.out
        return actors.wait_all(refs, asked, timeout_s=self.config.timeout_s, doing=doing, out=out)

    def _all(self, name: str, *arguments: Any, doing: str) -> Any:
        """Has all learners do the same; returns what the first one returns."""
        return self._wait([getattr(actor, name).remote(*arguments) for actor in self.actors], doing)[0]

    def learn(
        self, step: int, parts: Sequence[Sequence[Sequence[Share]]], *, change: bool = True
    ) -> dict[str, float]:
        """Learns; ``parts`` has the optimizer steps of each learner. Returns the metrics."""
        calls = [
            actor.learn.remote(step, own, change=change)
            for actor, own in zip(self.actors, parts, strict=True)
        ]
        return self._wait(calls, "learning")[0]

    def drift(self, *refs: Any) -> list[list[float]]:
        """Returns for each group the distance of its responses to the reference."""
        size = len(self.actors)
        calls = [actor.drift.remote(*(refs[n::size] or refs[:1])) for n, actor in enumerate(self.actors)]
        found = self._wait(calls, "measuring the distance to the reference")
        return [found[i % size][i // size] for i in range(len(refs))]

    def parity(self, *refs: Any) -> dict[str, float]:
        """Compares the learners' log-probabilities with the samplers'; all learners have equal weights."""
        return self._all("parity", *refs, doing="comparing")

    def image_effect(self, ref: Any) -> float:
        """Returns how much an image matters."""
        return self._all("image_effect", ref, doing="comparing")

    def publish(self, version: int) -> Weights:
        """Publishes the trained weights."""
        return self._all("publish", version, doing="publishing weights")

    def save(self, body: Mapping[str, Any]) -> None:
        """Begins a checkpoint."""
        self._all("save", body, doing="saving")

    def finish_saving(self) -> None:
        """Waits until the checkpoint that was begun is committed."""
        self._all("finish_saving", doing="writing a checkpoint")

    def turn(self, name: str) -> None:
        """Has all learners ``sleep``, to give the accelerator to the samplers, or ``wake``."""
        self._all(name, doing=name)

    def load(self, step: int) -> dict[str, Any]:
        """Goes back to a checkpoint."""
        return self._all("load", step, doing="loading a checkpoint")

    def export(self, name: str, facts: Mapping[str, Any]) -> None:
        """Writes the model as a Hugging Face folder of the run."""
        self._all("export", name, facts, doing="exporting")

    def end(self) -> None:
        """Ends all learners."""
        actors.kill(self.actors)
