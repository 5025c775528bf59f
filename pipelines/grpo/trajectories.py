"""Every response of a run with all that it was learnt from, one Parquet file per step.

OUT/trajectories/step-00000012.parquet   responses of step 12, by prompt and place in their group

A step that is repeated after a kill replaces its file with the same rows.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import schema, shards, storage
from pipelines.chats.corpus import text_of
from pipelines.chats.prompts import last_answer
from pipelines.grpo.groups import Group
from pipelines.grpo.reward.components import Scored
from samtok.errors import DataError

FOLDER = "trajectories"

_NAME = re.compile(r"step-(\d{8,})\.parquet")
_COMPONENT = pa.struct(
    [pa.field("name", pa.string(), nullable=False), pa.field("value", pa.float64(), nullable=False)]
)

TRAJECTORY_ROW = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("draw", pa.int64(), nullable=False),  # number of the prompt in the order of the run
        pa.field("reply", pa.int32(), nullable=False),  # index in its group
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("image_uri", pa.string()),  # of the first image; null, as the next two, for text alone
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("question", pa.string(), nullable=False),
        pa.field("truth", pa.string(), nullable=False),  # text of the true answer
        pa.field("truth_codes", pa.list_(pa.list_(pa.int32())), nullable=False),
        pa.field("thinking", pa.bool_(), nullable=False),  # the prompt asks for a thought first
        pa.field("text", pa.string(), nullable=False),  # of the response, mask words and all
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),  # as sampled, never tokenized again
        pa.field("rollout_log_probs", pa.list_(pa.float32()), nullable=False),  # one per token
        pa.field("complete", pa.bool_(), nullable=False),  # ended by itself, before the limit
        pa.field("weight_version", pa.int64(), nullable=False),  # of the weights that sampled it
        pa.field("staleness", pa.int32(), nullable=False),  # versions behind the learner
        pa.field("reward", pa.float64(), nullable=False),  # the weighted sum
        pa.field("components", pa.list_(_COMPONENT), nullable=False),  # before their weights
        pa.field("advantage", pa.float64(), nullable=False),
        pa.field("used", pa.bool_(), nullable=False),  # whether it was learnt from
    ],
    metadata={"samtok_schema_version": str(schema.SCHEMA_VERSION)},
)
"""One response to one prompt in one step."""


def write_trajectories(out: str, step: int, rows: Iterable[Mapping[str, Any]]) -> str:
    """Writes the responses of a step, sorted by prompt and response, and returns the URI of the file.

    Args:
        rows: Entries of ``TRAJECTORY_ROW``; ``step`` is filled in.

    Raises:
        StorageError: If the file cannot be written; what was there before is still there.
    """
    ordered = sorted(({**row, "step": step} for row in rows), key=lambda row: (row["draw"], row["reply"]))
    uri = storage.join(out, FOLDER, f"step-{step:08d}.parquet")
    storage.write_bytes(uri, shards.parquet_bytes(schema.table(ordered, TRAJECTORY_ROW)))
    return uri


def trajectory_rows(
    group: Group, scored: Sequence[Scored], advantages: np.ndarray, used: np.ndarray, step: int
) -> Iterator[dict[str, Any]]:
    """Yields one row per response, as ``write_trajectories`` takes them."""
    record = group.question.record
    image = next(iter(record["images"]), dict.fromkeys(("uri", "height", "width")))
    last = last_answer(record["messages"])
    assert last is not None  # it was asked
    for number, (response, text, worth) in enumerate(zip(group.responses, group.texts, scored, strict=True)):
        yield {
            "draw": group.draw,
            "reply": number,
            **{name: record[name] for name in ("sample_id", "dataset", "image_id")},
            "image_uri": image["uri"],
            "height": image["height"],
            "width": image["width"],
            "question": text_of(record["messages"][last - 1]).strip(),
            "truth": group.question.text,
            "truth_codes": [list(codes) for codes in group.question.truth],
            "thinking": group.question.thinking,
            "text": text,
            "token_ids": response.ids.tolist(),
            "rollout_log_probs": response.log_probs.tolist(),
            "complete": response.complete,
            "weight_version": group.version,
            "staleness": step - group.version,
            "reward": worth.total,
            "components": [{"name": name, "value": float(value)} for name, value in worth.components.items()],
            "advantage": float(advantages[number]),
            "used": bool(used[number]),
        }


def components_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Returns the named components of a row."""
    return {entry["name"]: entry["value"] for entry in row["components"]}


def by_prompt(rows: Iterable[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Returns the rows of one step by prompt, prompts and responses in their order."""
    ordered = sorted(rows, key=lambda row: (row["draw"], row["reply"]))
    return [list(group) for _, group in groupby(ordered, key=lambda row: row["draw"])]


def steps_of(out: str) -> list[int]:
    """Returns the steps whose trajectories are kept, in rising order; none if there are none."""
    return sorted(_files(out))


def read_trajectories(out: str, step: int | None = None) -> Iterator[dict[str, Any]]:
    """Yields the responses of a step, none if it was not kept, or of all steps; raises as
    ``read_trajectory_file``."""
    for number, uri in sorted(_files(out).items()):
        if step in (None, number):
            yield from read_trajectory_file(uri)


def _files(out: str) -> dict[int, str]:
    folder = storage.join(out, FOLDER)
    named = ((_NAME.fullmatch(file.uri.rpartition("/")[2]), file.uri) for file in storage.list_files(folder))
    return {int(match[1]): uri for match, uri in named if match is not None}


def read_trajectory_file(uri: str) -> list[dict[str, Any]]:
    """Returns the responses of one file.

    Raises:
        DataError: If it was written with another version of the schema.
        StorageError: If it cannot be read.
    """
    with storage.open_input(uri) as stream:
        table = pq.ParquetFile(stream).read()
    found = (table.schema.metadata or {}).get(b"samtok_schema_version", b"none").decode()
    if found != str(schema.SCHEMA_VERSION):
        raise DataError(
            f"{uri} has trajectories of schema version {found}, expected {schema.SCHEMA_VERSION}. "
            "Read it with the samtok that wrote it."
        )
    return table.to_pylist()
