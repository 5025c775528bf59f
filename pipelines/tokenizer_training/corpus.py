"""Corpora that training reads, listed once.

    OUT/index/00-<hash8>.arrow    inputs of the first corpus: an Arrow file, which is mapped and not loaded
    OUT/index/rejects.parquet     what the readers could not use when they listed
    OUT/index/index.json          written last: which corpora, how many images, what was left out

The driver makes the index when a run first starts and finds it again when the run is resumed. Draws are
numbers of its images, so a run is not resumed on other corpora; that they lie elsewhere is no difference.
"""

import dataclasses
import hashlib
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pydantic

from pipelines import schema, shards, storage
from pipelines.ingestion.corpora import CorpusSpec
from pipelines.ingestion.reader import Input, Reject
from pipelines.tokenizer_training.config import SamplingConfig
from pipelines.tokenizer_training.sources import CorpusSource, Source
from samtok.errors import ConfigError, DataError
from samtok.masks import MAX_PIXELS

log = logging.getLogger(__name__)

INDEX_VERSION = 1
REJECTS = "rejects.parquet"
BATCH_ROWS, BATCH_CHARS = 4096, 2**24
"""Most rows and payload of a record batch, which bounds the memory of writing."""

_ROW = pa.schema(
    [pa.field("key", pa.string(), nullable=False), pa.field("payload", pa.string(), nullable=False)]
)


@dataclass(frozen=True)
class IndexedCorpus:
    """One corpus as it was listed."""

    spec: CorpusSpec
    sources: str  # hash of what it is made of
    file: str  # name of its inputs in the index's folder
    images: int
    without_masks: int  # images left out because their records claim no mask
    rejects: int  # entries of the reject table that listing made
    reasons: dict[str, int] = field(default_factory=dict)  # those entries by reason
    images_rejected: int = 0  # those that are of whole images
    masks_rejected: int = 0  # masks that went with all of them


@dataclass(frozen=True)
class Index:
    """Corpora in the order in which they were given; small, and travels to workers."""

    uri: str
    corpora: tuple[IndexedCorpus, ...]

    @property
    def num_images(self) -> int:
        """Images that may be drawn, of all corpora together."""
        return sum(corpus.images for corpus in self.corpora)

    @property
    def digest(self) -> str:
        """Returns a hash of what the corpora hold and how they are read, wherever they lie."""
        return _digest([corpus.spec for corpus in self.corpora], [corpus.sources for corpus in self.corpora])


def listed(index: Index | None) -> dict[str, Any]:
    """Returns what a record says of the listing of what is trained on; see ``TrainWorker.listed``."""
    if index is None:
        return {}
    masks = sum(corpus.masks_rejected for corpus in index.corpora)
    reasons: Counter[str] = sum((Counter(corpus.reasons) for corpus in index.corpora), Counter())
    return {"masks_rejected": masks, "rejects": dict(reasons), "table": f"train/index/{REJECTS}"}


def build_index(specs: Sequence[CorpusSpec], out: str) -> Index:
    """Lists corpora into ``out/index``, or returns the index that an earlier run with the same ones made.

    The readers are run once, here. Memory is that of the readers, and of one index file when it is written.
    An index of other corpora is that of an attempt that trained nothing: what a run was trained on is in its
    fingerprint. Raises DataError if a corpus has no image with masks, or another layout than its reader's;
    StorageError if a corpus cannot be listed or the index not written.
    """
    specs = [spec.absolute() for spec in specs]
    sources = _sources(specs)
    earlier = load_index(out)
    if earlier is not None:
        if earlier.digest == _digest(specs, sources):
            moved = zip(earlier.corpora, specs, strict=True)
            return Index(earlier.uri, tuple(dataclasses.replace(corpus, spec=spec) for corpus, spec in moved))
        storage.delete_folder(earlier.uri)
    uri, listed, rejects = storage.join(out, "index"), [], []
    for number, (spec, digest) in enumerate(zip(specs, sources, strict=True)):
        corpus, lost = _list_corpus(spec, digest, uri, number)
        listed.append(corpus)
        rejects += lost
    table = schema.table(rejects, schema.REJECT_ROW)
    storage.write_bytes(storage.join(uri, REJECTS), shards.parquet_bytes(table))
    index = Index(uri, tuple(listed))
    body = {"version": INDEX_VERSION, "corpora": [dataclasses.asdict(corpus) for corpus in listed]}
    storage.write_bytes(storage.join(uri, "index.json"), json.dumps(body, indent=1).encode())
    return index


def digest_of(specs: Sequence[CorpusSpec]) -> str:
    """Returns the ``digest`` of the index that corpora will have, without listing them."""
    return _digest(specs, _sources(specs))


def _sources(specs: Sequence[CorpusSpec]) -> list[str]:
    return [shards.digest(spec.reader().witness()) for spec in specs]


def load_index(out: str) -> Index | None:
    """Reads the index of a run; None if there is none yet. Raises ConfigError if another release of this code
    made it."""
    uri = storage.join(out, "index")
    where = storage.join(uri, "index.json")
    if not storage.exists(where):
        return None
    body = storage.read_json(where)
    if body["version"] != INDEX_VERSION:
        raise ConfigError(
            f"{where} has version {body['version']}, expected {INDEX_VERSION}. Choose another --out."
        )
    return Index(uri, pydantic.TypeAdapter(tuple[IndexedCorpus, ...]).validate_python(body["corpora"]))


def _digest(specs: Sequence[CorpusSpec], sources: Sequence[str]) -> str:
    """Returns a hash of what makes these corpora: their content and how they are read, not where they lie."""
    bodies = []
    for spec, content in zip(specs, sources, strict=True):
        own = {"dataset": spec.name, "weight": spec.weight, "limit": spec.limit, "content": content[:16]}
        bodies.append({"name": spec.name, **spec.corpus.identity(), **own})
    return shards.digest(bodies)


def _list_corpus(spec: CorpusSpec, sources: str, uri: str, number: int) -> tuple[IndexedCorpus, list[Reject]]:
    """Writes the inputs of one corpus and returns what there is, and the rejects of the listing."""
    counts, rejects = Counter(), []
    with tempfile.TemporaryDirectory(prefix="samtok-") as folder:
        path = Path(folder) / "inputs.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _ROW) as writer:
            for batch in _batches(_usable(spec, counts, rejects)):
                writer.write_batch(batch)
        _check_any(spec, counts, rejects)
        data = path.read_bytes()
    file = f"{number:02d}-{hashlib.sha256(data).hexdigest()[:8]}.arrow"
    storage.write_bytes(storage.join(uri, file), data)
    reasons = dict(Counter(entry["reason"] for entry in rejects))
    lost = sum(entry["mask_id"] is None for entry in rejects), sum(entry["num_masks"] for entry in rejects)
    sizes = counts["images"], counts["without_masks"], len(rejects)
    corpus = IndexedCorpus(spec, sources, file, *sizes, reasons, *lost)
    log.info(
        "corpus %s (%s): %d images, %d without masks left out, %d rejects when listing",
        *(spec.name, spec.corpus.source, corpus.images, corpus.without_masks, corpus.rejects),
    )
    return corpus, rejects


def _usable(spec: CorpusSpec, counts: Counter[str], rejects: list[Reject]) -> Iterator[Input]:
    """Yields the images that may have masks, ``limit`` at most, and keeps account of the others."""
    for item in spec.reader().inputs():
        if not isinstance(item, Input):
            rejects.append(item)
        elif item.num_masks == 0:
            counts["without_masks"] += 1
        else:
            counts["images"] += 1
            yield item
            if counts["images"] == spec.limit:
                return


def _batches(items: Iterable[Input]) -> Iterator[pa.RecordBatch]:
    keys: list[str] = []
    payloads: list[str] = []
    chars = 0
    for item in items:
        keys.append(item.key)
        payloads.append(item.payload)
        chars += len(item.payload)
        if len(keys) == BATCH_ROWS or chars >= BATCH_CHARS:
            yield pa.record_batch([keys, payloads], schema=_ROW)
            keys, payloads, chars = [], [], 0
    if keys:
        yield pa.record_batch([keys, payloads], schema=_ROW)


def _check_any(spec: CorpusSpec, counts: Counter[str], rejects: list[Reject]) -> None:
    if counts["images"]:
        return
    reasons = Counter(entry["reason"] for entry in rejects).most_common(3)
    because = ", ".join(f"{count} x {reason}" for reason, count in reasons) or "none"
    raise DataError(
        f"--{spec.flag} reader={spec.corpus.reader},source={spec.corpus.source} has no image with masks: "
        f"{counts['without_masks']} images without masks, rejects: {because}. Check that source names the "
        "annotations, and mask_key the key of their masks.",
        reason="no_masks",
    )


def open_sources(index: Index, sampling: SamplingConfig, max_pixels: int = MAX_PIXELS) -> tuple[Source, ...]:
    """Returns the corpora of an index, in its order, without touching the storage."""
    return tuple(
        CorpusSource(
            corpus.spec.reader(), storage.join(index.uri, corpus.file), corpus.images, sampling, max_pixels
        )
        for corpus in index.corpora
    )
