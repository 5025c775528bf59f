"""What is known before a thought is written: whether chats and teacher fit, fingerprints, plans."""

import dataclasses
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pipelines import job as runs
from pipelines import provenance, schema, shards, storage
from pipelines.chats.corpus import ChatCorpus, load_chat_corpus
from pipelines.chats.prompt_selection import read_columns
from pipelines.chats.source import ChatSource
from pipelines.cold_start import replies
from pipelines.cold_start.config import ColdStartConfig
from pipelines.cold_start.thoughts import Rules
from pipelines.ingestion.reader import Input
from pipelines.mllm_evaluation import models
from pipelines.shards import Plan
from samtok.errors import ConfigError, DataError
from samtok.mllm.adapters import load_adapter

log = logging.getLogger(__name__)

CODE_VERSION = 1
"""Raised by hand with every change of the code that changes samples."""

TEACHER = "teacher"
"""Folder in --out with what a teacher model wrote; a plan and shards of their own."""


@dataclass(frozen=True)
class Job:
    """A run that was checked.

    Attributes:
        config: With absolute local paths, and the device chosen.
        source: The chats.
        places: The samples that are taken: their places in the source, by their ids.
        model_sha256: Of the teacher model; None for a file of replies.
    """

    config: ColdStartConfig
    source: ChatSource
    places: Mapping[str, int]
    model_sha256: str | None

    @property
    def rules(self) -> Rules:
        """What is asked of a reply."""
        corpus = self.source.corpus
        return Rules(
            num_codes=corpus.num_codes,
            num_levels=corpus.num_levels,
            sees_answer=self.config.teacher.sees_answer,
            min_reward=self.config.min_reward,
        )

    @property
    def device(self) -> str:
        """Where a teacher model runs."""
        return "cuda" if self.config.pool.gpus_per_actor else "cpu"

    @property
    def teacher_out(self) -> str:
        """Folder of what a teacher model writes."""
        return storage.join(self.config.out, TEACHER)


def prepare(config: ColdStartConfig) -> Job:
    """Checks what can be known before anything runs.

    Raises:
        ConfigError: No teacher or two, chats that have thoughts already, or a teacher of other words.
        CheckpointError: The teacher is no model with mask words.
        DataError: The chats are not finished, or none is of the tasks.
    """
    runs.refuse_lost_folders(config.out, config.tracking)
    teacher = config.teacher
    if (teacher.model is None) == (teacher.replies is None):
        raise ConfigError("give either --teacher.model FOLDER or --teacher.replies FILE.jsonl")
    config = _resolved(config)
    if not config.dry_run:
        storage.check(config.out)
    corpus = load_chat_corpus(config.chats)
    if corpus.manifest["fingerprint"].get("thinking"):
        raise ConfigError(
            f"--chats {config.chats} has thoughts already; give the chats they were written for"
        )
    source = ChatSource(corpus, config.limit)
    model_sha256 = None
    if config.teacher.model is not None:
        _check_teacher(config.teacher.model, corpus)
        model_sha256 = models.sha256_of(config.teacher.model)
    return Job(config, source, _places(source, config), model_sha256)


def _resolved(config: ColdStartConfig) -> ColdStartConfig:
    pool, teacher = config.pool, config.teacher
    if pool.gpus_per_actor is None:
        pool = dataclasses.replace(pool, gpus_per_actor=1.0 if torch.cuda.is_available() else 0.0)
    model, told = (
        None if uri is None else storage.absolute(uri.rstrip("/")) for uri in (teacher.model, teacher.replies)
    )
    return dataclasses.replace(
        config,
        chats=storage.absolute(config.chats.rstrip("/")),
        out=storage.absolute(config.out),
        teacher=dataclasses.replace(teacher, model=model, replies=told),
        pool=pool,
    )


def _check_teacher(uri: str, corpus: ChatCorpus) -> None:
    with models.local_folder(uri, weights=False) as folder:
        adapter = load_adapter(folder)
    vocabulary = adapter.vocabulary
    own, theirs = (vocabulary.num_codes, vocabulary.num_levels), (corpus.num_codes, corpus.num_levels)
    remedy = "Give a teacher that was trained on these words, or another model's replies as a file."
    if own != theirs:
        raise ConfigError(
            f"--teacher.model {uri} has words of {own[1]} x {own[0]} codes, --chats {corpus.uri} of "
            f"{theirs[1]} x {theirs[0]}. {remedy}"
        )
    known = (adapter.tokenizer_sha256, corpus.weights_sha256)
    if None not in known and known[0] != known[1]:
        raise ConfigError(
            f"--teacher.model {uri} and --chats {corpus.uri} have the words of different mask tokenizers "
            f"({known[0]:.12} and {known[1]:.12}), so equal words mean different masks. {remedy}"
        )


def _places(source: ChatSource, config: ColdStartConfig) -> dict[str, int]:
    places: dict[str, int] = {}
    first = 0
    for table in read_columns(source, ("sample_id", "task")):
        pairs = zip(table["sample_id"].to_pylist(), table["task"].to_pylist(), strict=True)
        for index, (sample_id, task) in enumerate(pairs, start=first):
            if not config.tasks or task in config.tasks:
                places[sample_id] = index
        first += len(table)
    if not places:
        tasks = f" of the tasks {', '.join(config.tasks)}" if config.tasks else ""
        raise DataError(f"--chats {config.chats} has no samples{tasks}, so there is nothing to think about")
    return places


def teacher_plan(job: Job) -> Plan:
    """Returns the plan of what the teacher model is asked: an input per sample, by its place.

    Raises:
        ConfigError: If an earlier run had other settings.
    """
    config, teacher = job.config, job.config.teacher
    told = dataclasses.asdict(teacher)
    fingerprint = {
        "kind": "predictions",
        "chats": job.source.corpus.digest,
        "model_sha256": job.model_sha256,
        **{name: told[name] for name in told if name not in ("model", "replies")},
        "tasks": sorted(config.tasks),
        "limit": config.limit,
        "seed": config.seed,
        "device": job.device,
        "threads_per_actor": config.pool.threads_per_actor,
        "schema_version": schema.SCHEMA_VERSION,
        "code_version": CODE_VERSION,
    }
    rows = teacher.shard_rows
    inputs = (Input(f"{place:09d}", str(place), None) for place in job.places.values())
    return _plan(job.teacher_out, fingerprint, inputs, rows)


def thoughts_plan(job: Job, manifest: Mapping[str, Any] | None) -> Plan:
    """Returns the plan of the new corpus: an input per reply.

    Args:
        job: The run.
        manifest: Of what the teacher model wrote; None for a file of replies.

    Raises:
        ConfigError: If an earlier run had other settings or replies.
    """
    config = job.config
    known = job.source.corpus.manifest["fingerprint"]
    if manifest is None:
        assert config.teacher.replies is not None
        told, digest = replies.of_file(config.teacher.replies), storage.file_sha256(config.teacher.replies)
    else:
        told = replies.of_shards(job.teacher_out, manifest)
        digest = shards.digest([record["data"]["sha256"] for record in manifest["shards"]])
    fingerprint = {
        "kind": "chat",
        "thinking": True,
        **{name: known.get(name) for name in ("weights_sha256", "tokenizer", "num_codes", "num_levels")},
        "chats": job.source.corpus.digest,
        "replies": digest,
        "teacher_sha256": job.model_sha256,
        "sees_answer": config.teacher.sees_answer,
        "min_reward": config.min_reward,
        "tasks": sorted(config.tasks),
        "limit": config.limit,
        "shard_rows": config.shard_rows,
        "schema_version": schema.SCHEMA_VERSION,
        "code_version": CODE_VERSION,
    }
    inputs = replies.inputs_of(told, job.places, corpus=config.chats)
    return _plan(config.out, fingerprint, inputs, config.shard_rows)


def _plan(out: str, fingerprint: Mapping[str, Any], inputs: Iterator[Input], rows: int) -> Plan:
    plan = shards.load_plan(out)
    if plan is not None:
        shards.check_fingerprint(plan, fingerprint)
        return plan
    log.info("planning %s", out)
    return shards.make_plan(out, fingerprint, inputs, shard_rows=rows, chunk_rows=rows)


def dry_run(job: Job) -> int:
    """Prints what would be done."""
    config = job.config
    sys.stdout.write(provenance.config_json(config))
    sys.stdout.write(json.dumps({"chats": job.source.corpus.digest, "model": job.model_sha256}) + "\n")
    if config.teacher.replies is None:
        count = -(-len(job.places) // config.teacher.shard_rows)
        sys.stdout.write(f"plan: {len(job.places)} samples for the teacher in {count} shards\n")
    else:
        told = list(replies.of_file(config.teacher.replies))
        known = len({one.sample_id for one in told} & job.places.keys())
        sys.stdout.write(f"plan: {len(told)} replies to {known} of {len(job.places)} samples\n")
    return 0
