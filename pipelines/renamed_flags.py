"""Flags that were renamed: an old one fails and names its successor. CHANGELOG.md lists them too.

A pair applies where the job has the new flag and no longer the old one; of several the first such one does.
``*`` stands for the rest of a name.
"""

from collections.abc import Collection

from pipelines.config import flag_name

RENAMED: tuple[tuple[str, str], ...] = (
    ("tokenizer.uri", "tokenizer"),
    ("tokenizer.dtype", "precision"),
    ("tokenizer.*", "tokenizer-options.*"),
    ("corpora", "chats"),
    ("prompts.corpora", "chats"),
    ("chat", "chats"),
    ("jsonl.*", "chats.*"),
    ("validation-corpora", "validation.chats"),
    ("validation-corpora", "validation.corpora"),
    ("training.looks", "training.evals"),
    ("looks.corpora", "validation.chats"),
    ("looks.*", "validation.*"),
    *((f"{old}.parity-limit", "checks.parity-mean") for old in ("gates", "checks")),
    *(
        (f"{old}.mismatch-{kind}", "checks.parity-mean")
        for old in ("watch", "alarms")
        for kind in ("warn", "stop")
    ),
    ("gates.*", "checks.*"),
    ("watch.said-none", "alarms.no-mask"),
    ("watch.said-none-rise", "alarms.no-mask-rise"),
    ("watch.*", "alarms.*"),
    ("prompts.limit", "limit"),
    ("scored-part", "thinking"),
    ("workers.count", "workers"),
    ("workers.num-cpus", "num-cpus"),
    ("workers.*", "worker.*"),
    ("pool.actors", "workers"),
    ("pool.gpus-per-actor", "worker.gpus"),
    ("pool.cpus-per-actor", "worker.cpus"),
    ("pool.threads-per-actor", "worker.threads"),
    ("pool.decoders", "decoders"),
    ("pool.num-cpus", "num-cpus"),
    ("pool.*", "worker.*"),
    ("learner.count", "learner.workers"),
    ("learner.replies-per-micro-batch", "learner.micro-batch"),
    ("learner.precision", "precision"),
    *((f"learner.{name}", f"learner.worker.{name}") for name in ("gpus", "cpus", "threads")),
    ("rollout.actors", "rollout.workers"),
    *((f"rollout.{name}", f"rollout.worker.{name}") for name in ("gpus", "cpus", "threads")),
    ("replies", "responses"),
    ("reward", "plug-ins"),
    ("generation.dtype", "precision"),
    ("teacher.dtype", "precision"),
    ("engine.precision", "precision"),
    ("engine.images-per-micro-batch", "micro-batch"),
    ("engine.samples-per-micro-batch", "micro-batch"),
)

IN_SWEEPS = "train."
"""Before the flags of a tokenizer training in a sweep."""


def successor(name: str, known: Collection[str]) -> str | None:
    """Returns the flag that took the place of an old one; None if the name is not known to be old.

    ``name`` is a flag or key of a config file, ``known`` are the job's flags, all without dashes before them.
    """
    name = flag_name(name)
    if name.startswith(IN_SWEEPS):
        inner = {flag.removeprefix(IN_SWEEPS) for flag in known if flag.startswith(IN_SWEEPS)}
        found = successor(name.removeprefix(IN_SWEEPS), inner)
        return found and IN_SWEEPS + found
    positive = ".".join(part.removeprefix("no-") for part in name.split("."))
    if name in known or positive in known:
        return None
    for candidate in (name, positive):
        for old, new in RENAMED:
            stem = old.removesuffix("*")
            if candidate == old or (old.endswith("*") and candidate.startswith(stem)):
                renamed = new.removesuffix("*") + (candidate.removeprefix(stem) if old.endswith("*") else "")
                if renamed in known:
                    return renamed
    return None
