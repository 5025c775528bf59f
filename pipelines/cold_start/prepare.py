"""What is known before a thought is written: whether chats and teacher fit, fingerprints, plans."""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pipelines import schema, shards, storage
from pipelines.chats.corpus import Words, load_chat_corpus, require_same_words
from pipelines.chats.prompt_selection import read_columns
from pipelines.chats.source import ChatSource, require_images
from pipelines.cluster import with_device
from pipelines.cold_start import replies
from pipelines.cold_start.config import ColdStartConfig
from pipelines.cold_start.thoughts import Rules
from pipelines.generation import models
from pipelines.generation.config import WHERE
from pipelines.generation.environment import check_engine
from pipelines.ingestion.reader import Input
from pipelines.planning.plans import left_of, open_plan
from pipelines.shards import Plan
from samtok.errors import ConfigError, DataError

CODE_VERSION = 3
"""Raised with every change of the code that changes samples (tests/pipelines/test_fingerprints.py)."""

TEACHER = "teacher"
"""Folder in --out with what a teacher model wrote; a plan and shards of their own."""

MAX_PEEKED = 1000
"""Replies that a dry run counts."""


@dataclass(frozen=True)
class ColdStart:
    """A cold start that was checked."""

    config: ColdStartConfig  # with absolute places, and the device chosen
    source: ChatSource  # the chats
    model_sha256: str | None  # of the teacher model; None for a file of replies

    @property
    def rules(self) -> Rules:
        """What is asked of a reply."""
        corpus = self.source.corpus
        return Rules(
            num_codes=corpus.num_codes,
            num_levels=corpus.num_levels,
            sees_answer=self.config.teacher.sees_answer,
            min_reward=self.config.min_reward,
            thinks=self.config.teacher.thinks,
        )

    @property
    def teacher_out(self) -> str:
        """Folder of what a teacher model writes."""
        return storage.join(self.config.out, TEACHER)

    @functools.cached_property
    def places(self) -> Mapping[str, int]:
        """The samples that are taken: their places in the source, by their ids; raises DataError if none is
        of the tasks."""
        places: dict[str, int] = {}
        first, tasks = 0, self.config.tasks
        for table in read_columns(self.source, ("sample_id", "task")):
            pairs = zip(table["sample_id"].to_pylist(), table["task"].to_pylist(), strict=True)
            for index, (sample_id, task) in enumerate(pairs, start=first):
                if not tasks or task in tasks:
                    places[sample_id] = index
            first += len(table)
        if not places:
            of_tasks = f" of the tasks {', '.join(tasks)}" if tasks else ""
            raise DataError(f"--chats {self.config.chats} has no samples{of_tasks}.")
        return places

    def teacher_plan(self) -> Plan:
        """Returns the plan of what the teacher model is asked: an input per sample, by its place; raises
        ConfigError if an earlier run had other settings."""
        return open_plan(
            self.teacher_out,
            self._teacher_fingerprint(),
            lambda: (Input(f"{place:09d}", str(place), None) for place in self.places.values()),
            shard_rows=self.config.teacher.shard_rows,
        )

    def _teacher_fingerprint(self) -> dict[str, Any]:
        config = self.config
        options = dataclasses.asdict(config.teacher)
        return {
            "kind": "predictions",
            "chats": self.source.corpus.digest,
            "model_sha256": self.model_sha256,
            **{name: options[name] for name in options if name not in ("model", "replies", "thinks", *WHERE)},
            **({"thinks": True} if config.teacher.thinks else {}),
            "dtype": config.precision,
            "tasks": sorted(config.tasks),
            "limit": config.limit,
            "seed": config.seed,
            "device": config.worker.device,
            "threads_per_actor": config.worker.threads,
            "schema_version": schema.SCHEMA_VERSION,
            "code_version": CODE_VERSION,
        }

    def thoughts_plan(self, teacher: Mapping[str, Any] | None) -> Plan:
        """Returns the plan of the new corpus: an input per reply.

        Args:
            teacher: Manifest of what the teacher model wrote; None for a file of replies.

        Raises:
            ConfigError: If an earlier run had other settings or replies.
        """
        config, known = self.config, self.source.corpus.manifest["fingerprint"]
        if teacher is None:
            assert config.teacher.replies is not None
            written = replies.of_file(config.teacher.replies)
            digest = storage.file_sha256(config.teacher.replies)
        else:
            written = replies.of_shards(self.teacher_out, teacher)
            digest = shards.digest([record["data"]["sha256"] for record in teacher["shards"]])
        fingerprint = {
            "kind": "chat",
            "thinking": True,
            **{name: known.get(name) for name in ("weights_sha256", "tokenizer", "num_codes", "num_levels")},
            "chats": self.source.corpus.digest,
            "replies": digest,
            "teacher_sha256": self.model_sha256,
            "sees_answer": config.teacher.sees_answer,
            **({"thinks": True} if config.teacher.thinks else {}),
            "min_reward": config.min_reward,
            "tasks": sorted(config.tasks),
            "limit": config.limit,
            "shard_rows": config.shard_rows,
            "schema_version": schema.SCHEMA_VERSION,
            "code_version": CODE_VERSION,
        }
        return open_plan(
            config.out,
            fingerprint,
            lambda: replies.inputs_of(written, self.places, corpus=config.chats),
            shard_rows=config.shard_rows,
        )

    def size(self) -> str:
        """Returns how much there is to do, in one line; reads at most ``MAX_PEEKED`` replies."""
        config, samples = self.config, len(self.source)
        if config.teacher.replies is not None:
            count = sum(1 for _ in islice(replies.of_file(config.teacher.replies), MAX_PEEKED + 1))
            more = f"at least {MAX_PEEKED}" if count > MAX_PEEKED else count
            return f"{more} replies to {samples} samples"
        left = left_of(self.teacher_out, self._teacher_fingerprint())
        if left is not None:
            return f"teacher: {left}"
        count = -(-samples // config.teacher.shard_rows)
        return f"{'at most ' if config.tasks else ''}{samples} samples for the teacher in {count} shards"


def prepare(config: ColdStartConfig) -> ColdStart:
    """Checks what can be known before anything runs of a config with absolute places.

    Raises:
        ConfigError: No teacher or two, a missing input, chats that have thoughts already, or a teacher of
            other words.
        CheckpointError: The teacher is no model with mask words.
        DataError: The corpus is none of chats, or the images that the teacher needs are not there.
    """
    teacher = config.teacher
    if (teacher.model is None) == (teacher.replies is None):
        raise ConfigError("give either --teacher.model FOLDER or --teacher.replies FILE.jsonl.")
    corpus = load_chat_corpus(config.chats, flag="--chats")
    if teacher.replies is not None and not storage.exists(teacher.replies):
        raise ConfigError(
            f"--teacher.replies {teacher.replies} does not exist. For synthetic chats of single questions "
            f"`python -m pipelines.embedded.replies --chats {config.chats} --out {teacher.replies}` makes it."
        )
    if corpus.manifest["fingerprint"].get("thinking"):
        raise ConfigError(
            f"--chats {config.chats} has thoughts already; give the chats they were written for."
        )
    model_sha256 = None
    if teacher.model is not None:
        require_same_words(
            Words.of_chats(f"--chats {config.chats}", corpus),
            Words.of_model(
                f"--teacher.model {teacher.model}", models.read_folder(teacher.model, flag="--teacher.model")
            ),
            remedy="Give a teacher that was trained on these words, or another model's replies as a file.",
        )
        model_sha256 = models.sha256_of(teacher.model)
    source = ChatSource(corpus, config.limit)
    if teacher.model is not None:
        require_images(source)
        check_engine(teacher, workers=config.workers)
    config = dataclasses.replace(config, worker=with_device(config.worker, on_ray=config.workers > 0))
    return ColdStart(config, source, model_sha256)
