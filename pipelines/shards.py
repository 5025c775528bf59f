"""Shard plan, commit records and manifest: what decides that a corpus is written exactly once.

    OUT/plan/<hash8>/inputs-00012.parquet   what shards 192 to 207 are made of, frozen when the plan was made
    OUT/plan.json                     ordered shards and the fingerprint; written after all plan files
    OUT/index/<hash8>/   parts of the listing, while a plan is made (``pipelines.planning.listing``)
    OUT/data/shard-00012-<hash8>.parquet
    OUT/rejects/shard-00012-<hash8>.parquet
    OUT/commits/shard-00012.json      proof that the shard is done; created only if absent
    OUT/commit-groups/group-00000.json   copies of many proofs, so that they are read in one request
    OUT/_MANIFEST.json                written last; readers follow it and never list folders

The entry ``kind`` of the fingerprint says what the rows are: words of masks (where it is absent) or chats.

A killed run loses at most the shards in flight. A second writer of the same shard finds the commit record and
leaves its files as orphans, which ``finish`` removes.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from annotated_types import Ge, MultipleOf

from pipelines import schema, storage
from pipelines.ingestion.reader import Input
from pipelines.provenance import differences
from pipelines.storage.threads import THREADS, map_ahead, without_collector
from samtok.errors import ConfigError, DataError, StorageError

log = logging.getLogger(__name__)

PLAN, MANIFEST = "plan.json", "_MANIFEST.json"
INPUT_ROW = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("payload", pa.string(), nullable=False),
        pa.field("num_masks", pa.int32()),
    ]
)
SUMMED = ("code_histogram", "iou_histogram", "iou_sum", "iou_count", "datasets", "flags")
"""Entries of a commit record that the manifest holds as sums over all shards."""

OF_DATASET = ("rows", "masks", "masks_rejected", "masks_filtered", "iou_sum", "iou_count")
"""What a mixture's commit records and manifest have of each dataset, in ``datasets``."""

COUNTS = {
    "words": (
        *("rows_in", "rows_out", "rows_rejected"),
        *("masks_in", "masks_out", "masks_rejected", "masks_filtered"),
    ),
    "chat": (
        *("inputs_in", "rows_in", "rows_out", "samples_out", "annotations_in", "annotations_unused"),
        *("items_in", "items_out", "items_rejected", "items_filtered", "items_thinned", "items_unused"),
    ),
    "predictions": ("rows_in", "rows_out", "rows_rejected", "samples_in", "samples_out", "samples_rejected"),
}
"""Counts that the totals of each kind of corpus have even where nothing was counted."""

GROUPS, GROUP_SHARDS, GROUPS_AT_ONCE = "commit-groups", 256, 4
FILE_SHARDS = 16
"""Shards of a plan file; one in plans of earlier versions, which can be resumed."""
SOURCES = "sources"
"""Entry of the fingerprint: digest of what was listed, known once the plan is made."""

ROW_GROUP_ROWS = 64
"""Rows per row group of a code shard: small, since training reads rows at random and rows are small."""

ShardRows = Annotated[int, Ge(1), MultipleOf(ROW_GROUP_ROWS)]
"""Type of a setting: most rows of a shard, in whole row groups, which are read at a time."""


class Chunk(NamedTuple):
    """A part of a shard that is worked on as one unit: a row group of the plan file."""

    shard: int
    index: int
    num_chunks: int
    num_inputs: int


@dataclass(frozen=True)
class Plan:
    """What is to be written: the shards in order, and the fingerprint of all that decides their content.

    ``shard_rows`` are inputs per shard; an input is an image, or whatever else a job works on as one.
    ``witness`` is what ``Reader.witness`` said of the dataset; the fingerprint of such a plan has the digest
    of its inputs as ``sources``.
    """

    out: str
    fingerprint: Mapping[str, Any]
    chunk_rows: int
    shard_rows: tuple[int, ...]
    rejects: Mapping[str, Any] | None
    witness: Mapping[str, str] | None = None
    file_shards: int = FILE_SHARDS

    @property
    def num_inputs(self) -> int:
        """Inputs of the corpus."""
        return sum(self.shard_rows)

    def chunks(self, shard: int) -> Iterator[Chunk]:
        """Yields the chunks of one shard."""
        rows = self.shard_rows[shard]
        count = -(-rows // self.chunk_rows)
        for index in range(count):
            yield Chunk(shard, index, count, min(self.chunk_rows, rows - index * self.chunk_rows))


def digest(value: Any) -> str:
    """Returns the SHA-256 of a JSON value with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def kind_of(fingerprint: Mapping[str, Any]) -> str:
    """Returns what the rows of a corpus are: ``words`` or ``chat``."""
    return fingerprint.get("kind", "words")


def load_plan(out: str) -> Plan | None:
    """Reads the plan of a corpus; None if there is none yet."""
    where = storage.join(out, PLAN)
    if not storage.exists(where):
        return None
    body = storage.read_json(where)
    if body.get("schema_version") != schema.SCHEMA_VERSION:
        raise DataError(
            f"{where} has schema version {body.get('schema_version')!r}; this release writes "
            f"{schema.SCHEMA_VERSION}. Use another --out."
        )
    rows = tuple(body["shard_rows"])
    return Plan(
        out,
        body["fingerprint"],
        body["chunk_rows"],
        rows,
        body["rejects"],
        body.get("witness"),
        body.get("file_shards", 1),
    )


def check_fingerprint(plan: Plan, wanted: Mapping[str, Any]) -> None:
    """Refuses to resume a corpus that was planned differently; raises ConfigError, which names every entry
    that differs, with both values."""
    if changed := differences(plan.fingerprint, wanted, before="planned"):
        raise ConfigError(
            f"{plan.out} was planned with other settings, so its shards would not fit together. Different: "
            f"{changed}. Repeat the first settings to resume, or choose another --out."
        )


def read_inputs(plan: Plan, chunk: Chunk) -> list[Input]:
    """Reads the inputs of one chunk from the plan; raises DataError if the plan file has another number of
    them."""
    where = storage.join(plan.out, inputs_file(plan.fingerprint, chunk.shard // plan.file_shards))
    before = chunk.shard % plan.file_shards * -(-plan.shard_rows[0] // plan.chunk_rows)
    with storage.open_input(where) as file:
        table = pq.ParquetFile(file).read_row_group(before + chunk.index)
    if len(table) != chunk.num_inputs:
        raise DataError(
            f"{where} has {len(table)} images in chunk {chunk.index} of shard {chunk.shard}, expected "
            f"{chunk.num_inputs}."
        )
    return [Input(row["key"], row["payload"], row["num_masks"]) for row in table.to_pylist()]


def parquet_bytes(table: pa.Table, *, row_group_rows: int = ROW_GROUP_ROWS) -> bytes:
    """Writes a table as Parquet (zstd); the same table gives the same bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=row_group_rows)
    return sink.getvalue().to_pybytes()


def commit(
    plan: Plan, shard: int, *, rows: pa.Table, rejects: pa.Table, summary: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes one shard and its commit record; returns the record that holds, ours or an earlier one.

    The data are in place before the record, so a record never points to something missing. ``rows`` are in
    the order of the plan; ``summary`` is what the record says besides: ``counts``, histograms.
    """
    record: dict[str, Any] = {"shard": shard, "fingerprint": digest(plan.fingerprint), **summary}
    for kind, table in (("data", rows), ("rejects", rejects)):
        data = parquet_bytes(table)
        sha256 = hashlib.sha256(data).hexdigest()
        name = f"{kind}/shard-{shard:05d}-{sha256[:8]}.parquet"
        record[kind] = {"file": name, "bytes": len(data), "sha256": sha256}
        storage.write_bytes(storage.join(plan.out, name), data)
    where = storage.join(plan.out, f"commits/{_record_file(shard)}")
    if storage.put_if_absent(where, json.dumps(record, sort_keys=True).encode()):
        return record
    earlier = storage.read_json(where)
    if earlier["data"]["sha256"] != record["data"]["sha256"]:
        log.warning("shard %d was committed by another run with other bytes; the earlier one holds", shard)
    return earlier


def committed(plan: Plan) -> dict[int, dict[str, Any]]:
    """Returns the commit records that exist, by shard, without their histograms; raises DataError if a record
    belongs to another fingerprint."""
    return {record["shard"]: slim(record) for record in records_of(plan)}


def slim(record: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out of a commit record what is only ever wanted as a sum, and would fill the driver's memory."""
    return {name: value for name, value in record.items() if name not in SUMMED}


def records_of(plan: Plan) -> Iterator[dict[str, Any]]:
    """Yields whole commit records as they are read, a bounded number at a time: those of whole groups from
    the file of the group, if all are still there."""
    expected = digest(plan.fingerprint)
    singles = {info.uri.rpartition("/")[2]: info.uri for info in _listed(plan, "commits")}
    groups = []
    for info in _listed(plan, GROUPS):
        names = [_record_file(shard) for shard in _shards_of(plan, int(info.uri[:-5].rpartition("-")[2]))]
        if all(name in singles for name in names):
            groups.append(info.uri)
            for name in names:
                del singles[name]
    with without_collector():
        for uri, records in _read_all(groups, threads=GROUPS_AT_ONCE):
            yield from (_checked(record, expected, uri) for record in records)
        for uri, record in _read_all(singles.values(), threads=THREADS):
            yield _checked(record, expected, uri)


def _listed(plan: Plan, folder: str) -> list[storage.FileInfo]:
    return storage.list_files(storage.join(plan.out, folder), suffix=".json")


def _read_all(uris: Iterable[str], *, threads: int) -> Iterator[tuple[str, Any]]:
    return map_ahead(lambda uri: (uri, storage.read_json(uri)), uris, threads=threads)


def _checked(record: dict[str, Any], fingerprint: str, uri: str) -> dict[str, Any]:
    if record["fingerprint"] != fingerprint:
        raise DataError(f"{uri} belongs to another plan. Remove it, or choose another --out.")
    return record


class Groups:
    """Writes the commit records of ``GROUP_SHARDS`` shards that are all done into one file, from which a
    resumed run reads them in one request. The records themselves stay, and alone prove that a shard is
    done."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._left: dict[int, set[int]] = {}
        self._written = {info.uri.rpartition("/")[2] for info in _listed(plan, GROUPS)}

    def add(self, shard: int) -> None:
        """Takes a shard that is done."""
        group = shard // GROUP_SHARDS
        left = self._left.setdefault(group, set(_shards_of(self._plan, group)))
        left.discard(shard)
        if left or len(_shards_of(self._plan, group)) < GROUP_SHARDS or _group_file(group) in self._written:
            return
        places = (
            storage.join(self._plan.out, f"commits/{_record_file(one)}")
            for one in _shards_of(self._plan, group)
        )
        data = b"[" + b",".join(map_ahead(storage.read_bytes, places)) + b"]"
        storage.write_bytes(storage.join(self._plan.out, f"{GROUPS}/{_group_file(group)}"), data)


def _shards_of(plan: Plan, group: int) -> range:
    return range(group * GROUP_SHARDS, min((group + 1) * GROUP_SHARDS, len(plan.shard_rows)))


def _record_file(shard: int) -> str:
    return f"shard-{shard:05d}.json"


def _group_file(group: int) -> str:
    return f"group-{group:05d}.json"


def finish(plan: Plan) -> dict[str, Any]:
    """Removes orphans, writes the manifest and returns it; raises StorageError if a shard has no commit
    record, DataError if a shard has another number of images than planned."""
    manifest = manifest_of(plan)
    found = [record["shard"] for record in manifest["shards"]]
    missing = sorted(set(range(len(plan.shard_rows))) - set(found))
    if missing:
        raise StorageError(
            f"{len(missing)} shards of {plan.out} are not committed, first {missing[0]}. Run again."
        )
    for shard, planned in zip(manifest["shards"], plan.shard_rows, strict=True):
        rows = shard["counts"].get("inputs_in", shard["counts"]["rows_in"])
        if rows != planned:
            raise DataError(
                f"shard {shard['shard']} of {plan.out} has {rows} inputs, the plan {planned}. "
                "Remove its commit record and run again."
            )
    _remove_orphans(plan.out, manifest["shards"])
    storage.write_bytes(storage.join(plan.out, MANIFEST), json.dumps(manifest, sort_keys=True).encode())
    return manifest


def manifest_of(plan: Plan) -> dict[str, Any]:
    """Adds up the commit records that exist; of an unfinished corpus, what its manifest would be now."""
    iou: dict[str, Any] = {"histogram": [], "sum": 0.0, "count": 0}
    codes = None
    if kind_of(plan.fingerprint) == "words":
        codes = np.zeros((plan.fingerprint["num_levels"], plan.fingerprint["num_codes"]), np.int64)
    shards: dict[int, dict[str, Any]] = {}
    datasets: dict[str, dict[str, float]] = {}
    flags: Counter[str] = Counter()
    for record in records_of(plan):
        shards[record["shard"]] = slim(record)
        for name, counts in record.get("datasets", {}).items():
            summed = datasets.setdefault(name, dict.fromkeys(OF_DATASET, 0))
            for key, count in counts.items():
                summed[key] += count
        flags.update(record.get("flags", {}))
        if codes is not None:
            add_sums(codes, iou, record)
    ordered = [shards[shard] for shard in sorted(shards)]
    return {
        "schema_version": schema.SCHEMA_VERSION,
        "fingerprint": dict(plan.fingerprint),
        "plan_rejects": plan.rejects,
        "totals": totals(plan, ordered),
        **({} if codes is None else {"code_histogram": codes.tolist(), "iou": iou}),
        **({"datasets": dict(sorted(datasets.items()))} if datasets else {}),
        **({"flags": dict(sorted(flags.items()))} if flags else {}),
        "shards": ordered,
    }


def add_sums(codes: np.ndarray, iou: dict[str, Any], record: Mapping[str, Any]) -> None:
    """Adds the histograms of a commit record of words to those of a manifest, in place.

    ``codes`` are counts of level x code; ``iou`` has ``histogram`` (masks per bin), ``sum`` and ``count``.
    """
    for level, pairs in enumerate(record["code_histogram"]):
        for code, count in pairs:
            codes[level, code] += count
    bins = record["iou_histogram"]
    iou["histogram"] = [a + b for a, b in zip(iou["histogram"] or [0] * len(bins), bins, strict=True)]
    iou["sum"] += record["iou_sum"]
    iou["count"] += record["iou_count"]


def totals(plan: Plan, shards: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Adds up what went in and what came out, the plan's own rejects included."""
    added = Counter(dict.fromkeys(COUNTS[kind_of(plan.fingerprint)], 0))
    for shard in shards:
        added.update(shard["counts"])
    if plan.rejects:
        for what in ("rows", "masks"):
            added.update({f"{what}_in": plan.rejects[what], f"{what}_rejected": plan.rejects[what]})
    return dict(added)


def load_manifest(out: str) -> dict[str, Any]:
    """Reads the manifest of a finished corpus; raises DataError if the corpus is not finished."""
    where = storage.join(out, MANIFEST)
    if not storage.exists(where):
        raise DataError(f"there is no {where}: the corpus is not finished. Run the job that writes it again.")
    return storage.read_json(where)


def require_manifest(uri: str, *, flag: str, job: str) -> dict[str, Any]:
    """Reads the manifest of a corpus that a flag (as it is written) names, before a job runs. Raises
    ConfigError if the corpus is not there or not finished; names the job that makes such corpora."""
    if not storage.exists(storage.join(uri, MANIFEST)):
        raise ConfigError(
            f"{flag} {uri} is no finished corpus: it has no {MANIFEST}. The command that began it goes on "
            f"with it; `python jobs/{job}.py --preset smoke --out {uri}` makes one of synthetic scenes."
        )
    return storage.read_json(storage.join(uri, MANIFEST))


def _remove_orphans(out: str, shards: list[dict[str, Any]]) -> None:
    for kind in ("data", "rejects"):
        wanted = {shard[kind]["file"] for shard in shards}
        for info in storage.list_files(storage.join(out, kind)):
            if f"{kind}/{info.uri.rpartition('/')[2]}" not in wanted:
                log.info("removing the orphan %s", info.uri)
                storage.delete(info.uri)


def plan_folder(fingerprint: Mapping[str, Any]) -> str:
    """Returns where plan files go below ``out``: two jobs that plan at once must not mix them, and what they
    list is not known yet."""
    settings = {name: value for name, value in fingerprint.items() if name != SOURCES}
    return f"plan/{digest(settings)[:8]}"


def inputs_file(fingerprint: Mapping[str, Any], number: int) -> str:
    """Returns the name of a plan file, which has ``FILE_SHARDS`` shards, below ``out``."""
    return f"{plan_folder(fingerprint)}/inputs-{number:05d}.parquet"
