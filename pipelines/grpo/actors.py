"""What every process of a run has in common on Ray: where it runs, how long one waits for it, how it dies.

The classes that do the work know no Ray; here they become actors. Each has a second thread that only reports
where the first one stands, so that a run that hangs can show why.
"""

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from pipelines import storage
from samtok.errors import ClusterError, SamtokError

log = logging.getLogger(__name__)

STACKS = "stacks"
"""Name of the second thread of every actor."""

_STACKS_TIMEOUT_S = 15.0
_DEATH_IS_KNOWN_S = 15.0
"""A process that waits for a dead one fails too, often before Ray knows of the death."""


class ActorDied(ClusterError):
    """A process of the run is gone."""

    def __init__(self, message: str, actor: Any = None) -> None:
        super().__init__(message)
        self.actor = actor


class Lost(ActorDied):
    """What another process had made is gone, since that process is; the one that asked for it lives."""


class Hung(ClusterError):
    """A process of the run did not answer in time."""


class Traced:
    """Can tell where it stands, for a run that hangs."""

    def stacks(self) -> str:
        """Returns where every thread of this process stands."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        frames = sys._current_frames().items()
        return "\n".join(
            f"thread {names.get(ident, ident)}\n{''.join(traceback.format_stack(frame))}"
            for ident, frame in frames
        )


def start_actor(kind: type[Traced], *arguments: Any, cpus: float, gpus: float = 0, **options: Any) -> Any:
    """Starts an actor of a plain class, whose constructor runs in the actor with the arguments; options are
    Ray's, such as ``scheduling_strategy``."""
    import ray

    actor: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, concurrency_groups={STACKS: 1}, **options)(kind)  # pyright: ignore
    return actor.remote(*arguments)


def wait_all(
    refs: Sequence[Any], actors: Sequence[Any], *, timeout_s: float, doing: str, out: str
) -> list[Any]:
    """Returns the results of calls to actors, in order.

    Args:
        doing: What they do, for messages.
        out: Folder of the run, where stacks go if it takes longer.

    Raises:
        ActorDied: One of them is gone.
        Hung: They took too long.
        SamtokError: What one of them raised.
    """
    import ray

    actor_of = dict(zip(refs, actors, strict=True))
    found: dict[Any, Any] = {}
    errors: list[Exception] = []
    pending, deadline = list(refs), time.monotonic() + timeout_s
    while pending:
        ready, pending = ray.wait(pending, num_returns=1, timeout=max(deadline - time.monotonic(), 0.0))
        if not ready and errors:
            break
        if not ready:
            late = [actor_of[ref] for ref in pending]
            raise hung(late, timeout_s=timeout_s, doing=doing, out=out)
        try:
            found[ready[0]] = result(ready[0], actor_of[ready[0]], doing)
        except ActorDied:
            raise
        except Exception as error:  # noqa: BLE001 raised below; maybe since another one died, which Ray reports later
            errors.append(error)
            deadline = min(deadline, time.monotonic() + _DEATH_IS_KNOWN_S)
    if errors:
        raise errors[0]
    return [found[ref] for ref in refs]


def spread(
    call: Callable[[Any, Any], Any],
    parts: Sequence[Any],
    actors: Sequence[Any],
    *,
    replace: Callable[[int, ActorDied], None],
    **waiting: Any,
) -> list[Any]:
    """Spreads calls over actors, and makes those again whose actor died; returns the results in order."""
    found: dict[int, Any] = {}
    while len(found) < len(parts):
        calls = [(n, n % len(actors)) for n in range(len(parts)) if n not in found]
        refs = [call(actors[at], parts[n]) for n, at in calls]
        dead: set[int] = set()
        for (n, at), ref in zip(calls, refs, strict=True):
            if at in dead:
                continue
            try:
                found[n] = wait_all([ref], [actors[at]], **waiting)[0]
            except ActorDied as error:
                dead.add(at)
                replace(at, error)
    return [found[n] for n in range(len(parts))]


def result(ref: Any, actor: Any, doing: str) -> Any:
    """Returns the result of a call that is done.

    Raises:
        ActorDied: The actor is gone.
        SamtokError: What it raised.
    """
    import ray
    from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

    try:
        return ray.get(ref)
    except RayTaskError as error:  # first, since Ray makes it an instance of its cause's class as well
        cause = error.cause
        if isinstance(cause, RayActorError | ObjectLostError):  # of one that it waited for itself
            raise Lost(
                f"a process was {doing} and got nothing from one that died: {_first_line(cause)}", actor
            ) from error
        if isinstance(cause, SamtokError):
            raise cause from error
        raise
    except RayActorError as error:
        raise ActorDied(f"a process died while it was {doing}: {_first_line(error)}", actor) from error
    except ObjectLostError as error:
        raise ActorDied(
            f"what a process made while it was {doing} is lost: {_first_line(error)}", actor
        ) from error


def hung(actors: Sequence[Any], *, timeout_s: float, doing: str, out: str) -> Hung:
    """Asks processes where they stand, keeps their answers, and returns the error that ends the run."""
    texts = [_stacks_of(actor) for actor in actors]
    uri = storage.join(out, "stacks.txt")
    storage.write_bytes(uri, "\n\n".join(texts).encode())
    return Hung(
        f"{len(actors)} processes are still {doing} after {timeout_s:.0f} s. Where each of their threads "
        f"stands is in {uri}. If they are only slow, raise --rollout.timeout-s or --learner.timeout-s; the "
        "same command goes on from the last checkpoint."
    )


def _stacks_of(actor: Any) -> str:
    import ray

    try:
        ref = actor.stacks.options(concurrency_group=STACKS).remote()
        return str(ray.get(ref, timeout=_STACKS_TIMEOUT_S))
    except Exception as error:  # noqa: BLE001 dead, or stuck in a call that holds the interpreter's lock
        return f"no answer: {type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def kill(actors: Sequence[Any]) -> None:
    """Ends actors at once, dead ones included."""
    import ray

    for actor in actors:
        ray.kill(actor, no_restart=True)
