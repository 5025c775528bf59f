"""Plans of jobs that work in shards: what there is to do, frozen before anything is done (``shards``).

A plan is made of a listing that streams, so memory does not grow with the corpus but by the sizes of its
shards and its rejects.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import schema, shards, storage
from pipelines.ingestion.reader import Input, Reject
from pipelines.provenance import differences
from pipelines.shards import Plan
from pipelines.storage.threads import map_ahead
from pipelines.tracking import RUN_FILE

log = logging.getLogger(__name__)

Witness: TypeAlias = Callable[[Sequence[Input]], Mapping[str, str]]
"""Says cheaply, given a sample of planned inputs, whether what was listed is still there:
``Reader.witness``."""

SAMPLED_SHARDS = 16
"""Shards of a plan whose first inputs a witness is asked about."""
PLAN_THREADS = 8
"""Plan files that are written at a time."""
REJECTS_AT_ONCE = 4096


def open_plan(
    out: str,
    fingerprint: Mapping[str, Any],
    inputs: Callable[[], Iterable[Input | Reject]],
    *,
    shard_rows: int,
    chunk_rows: int | None = None,
    witness: Witness | None = None,
) -> Plan:
    """Returns the plan of an earlier run of the same job, or makes it; by default a shard is one chunk.

    A plan with other settings from which nothing came is replaced; raises ConfigError for another one, and
    for one whose witness says something else now.
    """
    plan = shards.load_plan(out)
    if plan is not None:
        if not may_replace(plan, _wanted(plan, fingerprint, witness)):
            return plan
        log.info("the earlier run in %s had other settings and gave nothing; it is replaced", out)
        storage.delete(storage.join(out, RUN_FILE))
        remove(plan)
    log.info("planning %s", out)
    rows = {"shard_rows": shard_rows, "chunk_rows": chunk_rows or shard_rows}
    return make_plan(out, fingerprint, inputs(), **rows, witness=witness)


def left_of(out: str, fingerprint: Mapping[str, Any], witness: Witness | None = None) -> str | None:
    """Returns what is left of a plan in one line; None if there is none, or one that may be replaced. For dry
    runs. Raises ConfigError if the plan had other settings."""
    plan = shards.load_plan(out)
    if plan is None or may_replace(plan, _wanted(plan, fingerprint, witness)):
        return None
    left = len(plan.shard_rows) - len(shards.committed(plan))
    return f"{plan.num_inputs} inputs in {len(plan.shard_rows)} shards, {left} left"


def _wanted(plan: Plan, fingerprint: Mapping[str, Any], witness: Witness | None) -> Mapping[str, Any]:
    """Returns the fingerprint that a plan must have to be resumed."""
    if witness is None:
        return fingerprint
    seen = dict(witness(sample(plan)))
    same = seen == plan.witness
    return {
        **fingerprint,
        shards.SOURCES: plan.fingerprint.get(shards.SOURCES) if same else shards.digest(seen),
    }


def may_replace(plan: Plan, wanted: Mapping[str, Any]) -> bool:
    """Returns whether a plan has other settings and its committed shards, at least one, hold nothing; raises
    as ``check_fingerprint`` if it has other settings and may still become something."""
    if not differences(plan.fingerprint, wanted):
        return False
    counts = [record["counts"] for record in shards.records_of(plan)]
    if not counts or any(one.get(name) for one in counts for name in ("masks_out", "samples_out")):
        shards.check_fingerprint(plan, wanted)
    return True


def remove(plan: Plan) -> None:
    """Deletes a plan and all that was made of it; what proves results goes first, the plan last."""
    for folder in (shards.GROUPS, "commits"):
        storage.delete_folder(storage.join(plan.out, folder))
    storage.delete(storage.join(plan.out, shards.MANIFEST))
    for folder in ("data", "rejects", "plan", "index"):
        storage.delete_folder(storage.join(plan.out, folder))
    storage.delete(storage.join(plan.out, shards.PLAN))


def make_plan(
    out: str,
    fingerprint: Mapping[str, Any],
    inputs: Iterable[Input | Reject],
    *,
    shard_rows: int,
    chunk_rows: int,
    witness: Witness | None = None,
) -> Plan:
    """Freezes the corpus: streams its inputs into plan files and writes ``plan.json`` after them.

    Entries of the reject table among ``inputs`` become the plan's own rejects. ``shard_rows`` and
    ``chunk_rows`` are inputs of each. With a ``witness``, which is asked about a sample of the inputs, their
    digest goes into the fingerprint as ``sources``.
    """
    listing = Listing(inputs)

    def write(numbered: tuple[int, list[Input]]) -> int:
        file, batch = numbered
        data = _plan_bytes(batch, shard_rows, chunk_rows)
        storage.write_bytes(storage.join(out, shards.inputs_file(fingerprint, file)), data)
        return len(batch)

    files = enumerate(batches_of(listing.inputs(), shard_rows * shards.FILE_SHARDS))
    total = sum(map_ahead(write, files, threads=PLAN_THREADS))
    rows = (*(shard_rows,) * (total // shard_rows), *((total % shard_rows,) if total % shard_rows else ()))
    rejects = _write_rejects(listing.rejects(), out, shards.plan_folder(fingerprint))
    full = dict(fingerprint)
    if witness is not None:
        full[shards.SOURCES] = listing.digest.hexdigest()
    plan = shards.Plan(out, full, chunk_rows, rows, rejects, file_shards=shards.FILE_SHARDS)
    if witness is not None:
        plan = dataclasses.replace(plan, witness=dict(witness(sample(plan))))
    body = {"schema_version": schema.SCHEMA_VERSION, **dataclasses.asdict(plan)}
    del body["out"]
    text = json.dumps(body, indent=1, sort_keys=True).encode()
    if not storage.put_if_absent(storage.join(out, shards.PLAN), text):
        earlier = shards.load_plan(out)
        assert earlier is not None
        shards.check_fingerprint(earlier, full)
        return earlier
    return plan


def _plan_bytes(inputs: list[Input], shard_rows: int, chunk_rows: int) -> bytes:
    """Returns a plan file: a row group per chunk, so none has inputs of two shards."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, shards.INPUT_ROW, compression="zstd") as writer:
        for start in range(0, len(inputs), shard_rows):
            columns = zip(*map(_values, inputs[start : start + shard_rows]), strict=True)
            arrays = [
                pa.array(values, field.type) for values, field in zip(columns, shards.INPUT_ROW, strict=True)
            ]
            writer.write_table(pa.table(arrays, schema=shards.INPUT_ROW), row_group_size=chunk_rows)
    return sink.getvalue().to_pybytes()


def _write_rejects(table: pa.Table, out: str, folder: str) -> dict[str, Any] | None:
    """Writes the rejects of a listing, if there are any; returns what a plan says of them."""
    if not table.num_rows:
        return None
    file = f"{folder}/rejects.parquet"
    storage.write_bytes(storage.join(out, file), shards.parquet_bytes(table))
    rows, masks = table["mask_id"].null_count, sum(table["num_masks"].to_pylist())
    return {"file": file, "entries": table.num_rows, "rows": rows, "masks": masks}


def inputs_digest(inputs: Iterable[Input | Reject]) -> str:
    """Returns what ``sources`` of a plan would be that is made of these."""
    listing = Listing(inputs)
    for _ in listing.inputs():
        pass
    return listing.digest.hexdigest()


class Listing:
    """Takes a listing apart as it comes: inputs, of which a digest is made, and rejects."""

    def __init__(self, items: Iterable[Input | Reject]) -> None:
        self._items, self._rejects, self._tables = items, list[Reject](), list[pa.Table]()
        self.digest = hashlib.sha256()

    def inputs(self) -> Iterator[Input]:
        """Yields the inputs; once."""
        for item in self._items:
            if isinstance(item, Input):
                self.digest.update(f"{item.key}\n{item.payload}\n{item.num_masks}\n".encode())
                yield item
                continue
            self._rejects.append(item)
            if len(self._rejects) == REJECTS_AT_ONCE:
                self._to_table()

    def _to_table(self) -> None:
        """Keeps rejects as a table, which is much smaller."""
        self._tables.append(schema.table(self._rejects, schema.REJECT_ROW))
        self._rejects = []

    def rejects(self) -> pa.Table:
        """Returns what was rejected; ``pipelines.schema.REJECT_ROW``."""
        self._to_table()
        return pa.concat_tables(self._tables).combine_chunks()


def _values(item: Input) -> tuple[str, str, int | None]:
    return item.key, item.payload, item.num_masks


def batches_of(items: Iterator[Input], rows: int) -> Iterator[list[Input]]:
    """Yields inputs so many at a time."""
    while batch := list(islice(items, rows)):
        yield batch


def sample(plan: Plan) -> list[Input]:
    """Returns some inputs of a plan, spread over it, always the same: the first of ``SAMPLED_SHARDS`` shards
    and the last of the last one."""
    if not plan.shard_rows:
        return []
    last = len(plan.shard_rows) - 1
    picked = sorted({round(n * last / (SAMPLED_SHARDS - 1)) for n in range(SAMPLED_SHARDS)})
    chunks = [next(plan.chunks(shard)) for shard in picked]
    found = [inputs[0] for inputs in map_ahead(partial(shards.read_inputs, plan), chunks)]
    *_, end = plan.chunks(last)
    return [*found, shards.read_inputs(plan, end)[-1]]
