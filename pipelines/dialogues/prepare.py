"""What is known before anything is composed: the corpora of words, that they fit together, and the plan."""

import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines import job as runs
from pipelines import provenance, schema, shards, storage
from pipelines.dialogues import imports
from pipelines.dialogues.compose import Settings
from pipelines.dialogues.config import ComposeDialoguesConfig, JsonlConfig, shares_of
from pipelines.dialogues.stage import ComposeShard, Slice
from pipelines.ingestion.reader import Input
from pipelines.shards import ROW_GROUP_ROWS, Plan
from samtok.errors import ConfigError, DataError

log = logging.getLogger(__name__)

CODE_VERSION = 1
"""Raised by hand with every change of the code that changes chats."""

AGREED = ("weights_sha256", "num_codes", "num_levels")
"""Entries of the fingerprints of words that all corpora must have in common."""

PSG_LISTS = ("categories", "predicates")


@dataclass(frozen=True)
class Job:
    """A composition or an import that was checked: what it needs is there and fits together."""

    config: ComposeDialoguesConfig
    """With absolute local paths."""
    fingerprint: Mapping[str, Any]
    """All that decides the bytes of the shards."""
    inputs: Callable[[], Iterator[Input]]
    """Lists what each shard is made of, in order."""
    worker: Callable[[Plan], Callable[[int], dict[str, Any]]]
    """Makes what does one shard of a plan and returns its commit record."""


def prepare(config: ComposeDialoguesConfig) -> Job:
    """Checks the storage and the corpora of words.

    Raises:
        ConfigError: If corpora are of different tokenizers or say the same twice, or a setting cannot work.
        DataError: If one is not finished or not a corpus of words.
    """
    runs.refuse_lost_folders(config.out, config.tracking)
    config = _with_absolute_paths(config)
    job = _import(config) if config.jsonl.source is not None else _composition(config)
    if not config.dry_run:
        storage.check(config.out)
    return job


def _composition(config: ComposeDialoguesConfig) -> Job:
    manifests = tuple(_manifest(uri) for uri in config.words)
    prints = [manifest["fingerprint"] for manifest in manifests]
    _check_agree(config.words, prints)
    _check_distinct(config.words, prints)
    _check_ious(config, manifests)
    settings = _settings(config, prints[0])
    return Job(
        config,
        _fingerprint(config, manifests, settings),
        lambda: _inputs(manifests, config),
        lambda plan: ComposeShard(plan, config.words, settings),
    )


def _import(config: ComposeDialoguesConfig) -> Job:
    source = config.jsonl.source
    assert source is not None
    told = dataclasses.asdict(config.jsonl)
    fingerprint = {
        "kind": "chat",
        "weights_sha256": None,
        "tokenizer": None,
        **{name: told[name] for name in told if name != "source"},
        "source_sha256": imports.file_sha256(source),
        "shard_rows": config.shard_rows,
        "limit": config.limit,
        "schema_version": schema.SCHEMA_VERSION,
        "code_version": CODE_VERSION,
    }
    return Job(
        config,
        fingerprint,
        lambda: imports.inputs_of(source, lines_per_shard=config.shard_rows, limit=config.limit),
        lambda plan: imports.ImportShard(plan, config.jsonl),
    )


def _with_absolute_paths(config: ComposeDialoguesConfig) -> ComposeDialoguesConfig:
    vocabulary = config.psg_vocabulary
    return dataclasses.replace(
        config,
        out=storage.absolute(config.out),
        words=tuple(storage.absolute(uri.rstrip("/")) for uri in config.words),
        psg_vocabulary=None if vocabulary is None else storage.absolute(vocabulary),
        jsonl=_absolute_jsonl(config.jsonl),
    )


def _absolute_jsonl(jsonl: JsonlConfig) -> JsonlConfig:
    return dataclasses.replace(
        jsonl,
        source=None if jsonl.source is None else storage.absolute(jsonl.source),
        images=storage.absolute(jsonl.images) if jsonl.images else "",
    )


def _manifest(uri: str) -> dict[str, Any]:
    manifest = shards.load_manifest(uri)
    kind = shards.kind_of(manifest["fingerprint"])
    if kind != "words":
        raise DataError(
            f"--words {uri} is a corpus of {kind}, expected one of words: the --out of "
            "jobs/tokenize_corpus.py."
        )
    if manifest["schema_version"] != schema.SCHEMA_VERSION:
        raise DataError(
            f"--words {uri} has schema version {manifest['schema_version']}; this release reads "
            f"{schema.SCHEMA_VERSION}. Tokenize the corpus again."
        )
    missing = [name for name in AGREED if manifest["fingerprint"].get(name) is None]
    if missing:
        raise DataError(
            f"the manifest of --words {uri} does not say {', '.join(missing)} of its tokenizer, so nobody "
            "could check later that a model's words are these. Tokenize the corpus again."
        )
    return manifest


def _check_agree(uris: Sequence[str], prints: Sequence[Mapping[str, Any]]) -> None:
    first = prints[0]
    for uri, other in zip(uris[1:], prints[1:], strict=True):
        changed = [
            f"{name} {first[name]!r} and {other[name]!r}" for name in AGREED if first[name] != other[name]
        ]
        if changed:
            raise ConfigError(
                f"--words {uris[0]} and {uri} are of different tokenizers ({'; '.join(changed)}), so the "
                "same words mean different masks. Tokenize one of them again with the other's tokenizer."
            )


def _check_distinct(uris: Sequence[str], prints: Sequence[Mapping[str, Any]]) -> None:
    """Two corpora of the same name would give samples of the same id."""
    seen: dict[tuple[Any, Any], str] = {}
    for uri, one in zip(uris, prints, strict=True):
        name = one["dataset"], one["split"]
        if name in seen:
            raise ConfigError(
                f"--words {seen[name]} and {uri} are both called {name[0]}/{name[1]}, so their samples "
                "would have the same ids. Tokenize one of them with another --corpus.dataset, or compose "
                "them apart."
            )
        seen[name] = uri


def _check_ious(config: ComposeDialoguesConfig, manifests: Sequence[Mapping[str, Any]]) -> None:
    if config.min_iou is None:
        return
    for uri, manifest in zip(config.words, manifests, strict=True):
        known, masks = manifest["iou"]["count"], manifest["totals"]["masks_out"]
        if known < masks:
            raise ConfigError(
                f"--min-iou needs the reconstruction IoU of every mask; {uri} has {known} of {masks}. "
                "Tokenize it with --reconstruct 1, or leave --min-iou out."
            )


def _settings(config: ComposeDialoguesConfig, words: Mapping[str, Any]) -> Settings:
    return Settings(
        num_codes=words["num_codes"],
        num_levels=words["num_levels"],
        tasks=shares_of(config.tasks),
        styles=config.styles,
        wordings=config.wordings,
        turns_per_sample=config.turns_per_sample,
        max_rounds=config.max_rounds,
        max_masks=config.max_masks,
        min_iou=config.min_iou,
        keep_rle=config.keep_rle,
        psg=_psg(config.psg_vocabulary),
        seed=config.seed,
    )


def _psg(uri: str | None) -> dict[str, list[str]]:
    if uri is None:
        return {}
    body = storage.read_json(uri)
    lists = {name: body.get(name) for name in PSG_LISTS} if isinstance(body, dict) else {"": None}
    if not all(
        isinstance(one, list) and one and all(isinstance(t, str) for t in one) for one in lists.values()
    ):
        raise ConfigError(
            f"--psg-vocabulary {uri} must be a JSON object with the lists of texts {' and '.join(PSG_LISTS)}"
        )
    return {name: list(one) for name, one in lists.items() if one}


def _fingerprint(
    config: ComposeDialoguesConfig, manifests: Sequence[Mapping[str, Any]], settings: Settings
) -> dict[str, Any]:
    """How many workers there are is not in it, nor where the words lie."""
    prints = [manifest["fingerprint"] for manifest in manifests]
    said = dataclasses.asdict(settings)
    return {
        "kind": "chat",
        **{name: prints[0][name] for name in AGREED},
        "tokenizer": prints[0].get("tokenizer"),
        "words": [
            {"dataset": one["dataset"], "split": one["split"], "manifest": shards.digest(manifest)}
            for one, manifest in zip(prints, manifests, strict=True)
        ],
        **{name: said[name] for name in said if name not in ("num_codes", "num_levels", "psg", "styles")},
        "styles": list(settings.styles),
        "psg_vocabulary": shards.digest(said["psg"]) if said["psg"] else None,
        "shard_rows": config.shard_rows,
        "limit": config.limit,
        "schema_version": schema.SCHEMA_VERSION,
        "code_version": CODE_VERSION,
    }


def plan_of(job: Job) -> Plan:
    """Returns the plan of an earlier run of the same job, or makes it.

    Raises:
        ConfigError: If the earlier run had other settings.
    """
    config, plan = job.config, shards.load_plan(job.config.out)
    if plan is not None:
        shards.check_fingerprint(plan, job.fingerprint)
        return plan
    log.info("planning %s", config.out)
    return shards.make_plan(config.out, job.fingerprint, job.inputs(), shard_rows=1, chunk_rows=1)


def _inputs(manifests: Sequence[Mapping[str, Any]], config: ComposeDialoguesConfig) -> Iterator[Input]:
    for part in slices(manifests, shard_rows=config.shard_rows, limit=config.limit):
        key = f"{part.corpus:03d}/{part.file}#{part.first_group:05d}"
        yield Input(key, json.dumps(dataclasses.asdict(part), sort_keys=True), None)


def slices(manifests: Sequence[Mapping[str, Any]], *, shard_rows: int, limit: int | None) -> Iterator[Slice]:
    """Cuts corpora of words into parts of at most ``shard_rows`` images; a part never spans two files.

    Args:
        manifests: Of the corpora.
        shard_rows: A multiple of ``ROW_GROUP_ROWS``.
        limit: Most images of each corpus.
    """
    for corpus, manifest in enumerate(manifests):
        left = limit
        for record in manifest["shards"]:
            rows = record["counts"]["rows_out"]
            rows = rows if left is None else min(rows, left)
            left = None if left is None else left - rows
            for start in range(0, rows, shard_rows):
                taken = min(shard_rows, rows - start)
                yield Slice(corpus, record["data"]["file"], start // ROW_GROUP_ROWS, taken)


def dry_run(job: Job) -> int:
    """Prints what would be done: the config, the fingerprint, and how much is left to do."""
    sys.stdout.write(provenance.config_json(job.config))
    sys.stdout.write(json.dumps(dict(job.fingerprint), indent=2) + "\n")
    plan = shards.load_plan(job.config.out)
    if plan is not None:
        shards.check_fingerprint(plan, job.fingerprint)
    count = sum(1 for _ in job.inputs())
    left = count - (0 if plan is None else len(shards.committed(plan)))
    sys.stdout.write(f"plan: {count} shards, {left} left\n")
    return 0
