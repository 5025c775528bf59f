"""What is known before anything is composed: the corpora of words, that they fit together, and the plan."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from pipelines import schema, shards, storage
from pipelines.chats.commit import Composed
from pipelines.chats.lost import UNREAD
from pipelines.chats.psg import LISTS, PsgVocabulary
from pipelines.dialogues import imports
from pipelines.dialogues.compose import Settings, Slice, take_slice
from pipelines.dialogues.config import ComposeDialoguesConfig, ImportConfig, shares_of
from pipelines.dialogues.style import STYLES
from pipelines.ingestion import parquet_cells
from pipelines.ingestion.corpora import of_datasets
from pipelines.ingestion.reader import Input
from pipelines.inputs import require_tokenizer
from pipelines.planning.plans import left_of, open_plan
from pipelines.shards import ROW_GROUP_ROWS, Plan
from samtok import folders
from samtok.errors import ConfigError, DataError

CODE_VERSION = 4
"""Raised with every change of the code that changes chats (tests/pipelines/test_fingerprints.py)."""

AGREED = ("weights_sha256", "num_codes", "num_levels")
"""Entries of the fingerprints of words that all corpora must have in common."""

_OPTIONS = (
    *("styles", "wordings", "turns_per_sample", "max_rounds"),
    *("max_masks", "min_iou", "keep_rle", "seed"),
)
"""Options of the job that are settings as they are."""

_OF_WORDS_AND_LISTS = ("num_codes", "num_levels", "psg", "styles", "tasks_of", "styles_of")
"""Settings that fingerprints hold in another form."""

MAX_PEEKED = 1000
"""Shards that a dry run counts."""


@dataclass(frozen=True)
class Composition:
    """A composition or an import that was checked: what it needs is there and fits together."""

    config: ComposeDialoguesConfig  # with absolute places
    fingerprint: Mapping[str, Any]  # all that decides the bytes of the shards
    inputs: Callable[[], Iterator[Input]]  # lists what each shard is made of, in order
    take: Callable[[dict[str, Any], Composed], None]  # as ``compose_shard`` takes it; picklable

    def plan(self) -> Plan:
        """Returns the plan of an earlier run of the same job, or makes it; raises as ``open_plan``."""
        return open_plan(self.config.out, self.fingerprint, self.inputs, shard_rows=1)

    def size(self) -> str:
        """Returns how much there is to do, in one line."""
        left = left_of(self.config.out, self.fingerprint)
        if left is not None:
            return left
        count = sum(1 for _ in islice(self.inputs(), MAX_PEEKED + 1))
        return f"at least {MAX_PEEKED} shards" if count > MAX_PEEKED else f"{count} shards"


def prepare(config: ComposeDialoguesConfig) -> Composition:
    """Checks the corpora of words of a config with absolute places.

    Raises:
        ConfigError: If a corpus is missing, corpora are of different tokenizers or have the same name, or a
            setting cannot work.
        DataError: If one is not a corpus of words.
    """
    return _import(config) if config.chats.source is not None else _composition(config)


def _composition(config: ComposeDialoguesConfig) -> Composition:
    manifests = tuple(_manifest(uri) for uri in config.words)
    prints = [manifest["fingerprint"] for manifest in manifests]
    _check_agree(config.words, prints)
    _check_distinct(config.words, prints)
    _check_ious(config, manifests)
    options = {name: getattr(config, name) for name in _OPTIONS}
    settings = Settings(
        **options,
        num_codes=prints[0]["num_codes"],
        num_levels=prints[0]["num_levels"],
        tasks=shares_of(config.tasks),
        tasks_of=_tasks_of(config),
        styles_of=_styles_of(config),
        psg=_psg_lists(config),
    )
    return Composition(
        config,
        _fingerprint(config, manifests, settings),
        lambda: _inputs(manifests, config),
        partial(take_slice, config.words, settings),
    )


def _import(config: ComposeDialoguesConfig) -> Composition:
    chats, source = config.chats, config.chats.source
    assert source is not None
    files = _source_files(source)
    if config.min_iou is not None and chats.tokenizer is None:
        raise ConfigError("--min-iou needs --chats.tokenizer, which the words of the chats are decoded with.")
    options = dataclasses.asdict(chats)
    added: dict[str, Any] = {} if config.min_iou is None else {"min_iou": config.min_iou}
    if imports.is_parquet(source):  # JSON has no outlines to keep
        added["keep_rle"] = config.keep_rle
    fingerprint = {
        "kind": "chat",
        "weights_sha256": None,
        **{name: value for name, value in options.items() if name != "source"},
        **_words_of(chats),
        "source_sha256": files[""] if "" in files else shards.digest(files),
        **added,
        "shard_rows": config.shard_rows,
        "limit": config.limit,
        "schema_version": schema.SCHEMA_VERSION,
        "code_version": CODE_VERSION,
    }
    return Composition(
        config,
        fingerprint,
        lambda: imports.inputs_of(source, rows_per_shard=config.shard_rows, limit=config.limit),
        partial(imports.take_part, imports.Settings(chats, config.min_iou, config.keep_rle)),
    )


def _source_files(source: str) -> dict[str, str]:
    """Returns the SHA-256 of each file of an import by its name, of a single one by none."""
    if storage.exists(source):
        return {"": storage.file_sha256(source)}
    try:
        names = [] if source.endswith(parquet_cells.SUFFIX) else parquet_cells.files_of(source)
    except DataError:
        names = []
    if not names:
        raise ConfigError(f"--chats.source {source} does not exist, or has no Parquet file below it.")
    return {name: storage.file_sha256(storage.join(source, name)) for name in names}


def _words_of(chats: ImportConfig) -> dict[str, Any]:
    """Returns what is known of the tokenizer of imported words; refuses one of other words."""
    if chats.tokenizer is None:
        return {}
    require_tokenizer(chats.tokenizer, flag="--chats.tokenizer")
    spoken = folders.read_config(chats.tokenizer, read=storage.read_bytes).quantizer
    if (spoken.num_codes, spoken.num_levels) != (chats.num_codes, chats.num_levels):
        raise ConfigError(
            f"--chats.tokenizer {chats.tokenizer} has {spoken.num_levels} levels of {spoken.num_codes} "
            f"codes. If the texts have, too, give --chats.num-levels {spoken.num_levels} --chats.num-codes "
            f"{spoken.num_codes}."
        )
    sha256 = folders.weights_sha256(chats.tokenizer, read=storage.read_bytes)
    return {"weights_sha256": sha256, "tokenizer": chats.tokenizer}


def _manifest(uri: str) -> dict[str, Any]:
    manifest = shards.require_manifest(uri, flag="--words", job="tokenize_corpus")
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
            f"the manifest of --words {uri} lacks {', '.join(missing)} of its tokenizer, so later jobs "
            "could not check that a model's words are these. Tokenize the corpus again."
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
    """Refuses two corpora of one name, which would give two samples one id."""
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


def _tasks_of(config: ComposeDialoguesConfig) -> dict[str, dict[str, float]]:
    """Returns the tasks of each dataset that has its own in the mixture file, with their shares."""
    if config.mixture is None:
        return {}
    texts = of_datasets(config.mixture, "tasks", flag="--mixture")
    if not texts:
        raise ConfigError(f"--mixture {config.mixture} has no dataset with tasks; leave it out.")
    try:
        return {name: shares_of(text) for name, text in texts.items()}
    except ConfigError as error:
        raise ConfigError(f"--mixture {config.mixture}: {error.message}") from error


def _styles_of(config: ComposeDialoguesConfig) -> dict[str, tuple[str, ...]]:
    """Returns the styles of each dataset that has its own in the mixture file."""
    if config.mixture is None:
        return {}
    texts = of_datasets(config.mixture, "styles", flag="--mixture")
    found = {name: tuple(text.split(",")) for name, text in texts.items()}
    for name, styles in found.items():
        if unknown := sorted(set(styles) - set(STYLES)):
            raise ConfigError(
                f"--mixture {config.mixture}: {name} has the style {unknown[0]!r}, expected some of "
                f"{', '.join(STYLES)}."
            )
    return found


def _psg_lists(config: ComposeDialoguesConfig) -> dict[str, list[str]]:
    """Returns the lists that questions name, by their names in the file; none if there is no file."""
    known = PsgVocabulary.read(config.psg_vocabulary)
    return {name: list(getattr(known, name)) for name in LISTS if getattr(known, name)}


def _fingerprint(
    config: ComposeDialoguesConfig, manifests: Sequence[Mapping[str, Any]], settings: Settings
) -> dict[str, Any]:
    """How many workers there are is not in it, nor where the words lie."""
    prints = [manifest["fingerprint"] for manifest in manifests]
    options = dataclasses.asdict(settings)
    return {
        "kind": "chat",
        **{name: prints[0][name] for name in AGREED},
        "tokenizer": prints[0].get("tokenizer"),
        "words": [_corpus(manifest) for manifest in manifests],
        **{name: value for name, value in options.items() if name not in _OF_WORDS_AND_LISTS},
        "styles": list(settings.styles),
        **({"tasks_of": options["tasks_of"]} if settings.tasks_of else {}),
        **({"styles_of": {k: list(v) for k, v in settings.styles_of.items()}} if settings.styles_of else {}),
        "psg_vocabulary": shards.digest(options["psg"]) if options["psg"] else None,
        "shard_rows": config.shard_rows,
        "limit": config.limit,
        "schema_version": schema.SCHEMA_VERSION,
        "code_version": CODE_VERSION,
    }


def _corpus(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what tells a corpus of words from others, and how many of its images were lost."""
    named = {name: manifest["fingerprint"][name] for name in ("dataset", "split")}
    unread = manifest["totals"]["rows_rejected"]
    return {**named, "manifest": shards.digest(manifest), **({UNREAD: unread} if unread else {})}


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
