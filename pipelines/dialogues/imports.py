"""Imports a JSONL file of chats: parts of its lines become shards, like slices of a corpus of words."""

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipelines import schema, storage
from pipelines.chats.commit import Composed
from pipelines.dialogues.config import JsonlConfig
from pipelines.dialogues.exchange import from_record
from pipelines.ingestion.image_source import read_size_hw
from pipelines.ingestion.reader import Input
from samtok.errors import ConfigError, DataError


@dataclass(frozen=True)
class Lines:
    """``count`` lines of a JSONL file in ``size`` bytes from ``offset``; ``first`` lines are before them."""

    offset: int
    size: int
    first: int
    count: int


def inputs_of(uri: str, *, lines_per_shard: int, limit: int | None) -> Iterator[Input]:
    """Cuts a JSONL file into parts, one input each; reads it once, line by line.

    Raises:
        ConfigError: If it is one JSON list instead of lines.
    """
    offset = size = first = count = number = 0
    with storage.open_input(uri) as file:
        for line in file:
            if not number and line.lstrip().startswith(b"["):
                raise ConfigError(
                    f"--jsonl.source {uri} is a JSON list, expected one object per line. "
                    "`jq -c '.[]' FILE` writes such a file."
                )
            if number == limit:
                break
            number, size, count = number + 1, size + len(line), count + 1
            if count == lines_per_shard:
                yield _input(Lines(offset, size, first, count))
                offset, size, first, count = offset + size, 0, number, 0
    if count:
        yield _input(Lines(offset, size, first, count))


def _input(part: Lines) -> Input:
    return Input(f"{part.first:012d}", json.dumps(asdict(part), sort_keys=True), None)


def take_lines(jsonl: JsonlConfig, payload: dict[str, Any], done: Composed) -> None:
    """Adds the chats of some ``Lines`` of the file."""
    part = Lines(**payload)
    assert jsonl.source is not None
    data = storage.read_bytes(jsonl.source, offset=part.offset, size=part.size)
    lines = data.removesuffix(b"\n").split(b"\n")
    if len(lines) != part.count:
        raise DataError(
            f"{jsonl.source} has changed: {len(lines)} lines instead of {part.count} at byte "
            f"{part.offset}. Restore it, or choose another --out."
        )
    for number, line in enumerate(lines, start=part.first + 1):
        _take_line(jsonl, f"line-{number:08d}", line, done)


def _take_line(jsonl: JsonlConfig, row_id: str, line: bytes, done: Composed) -> None:
    task = jsonl.task
    ends = ["rows_in", "items_in", f"{task}/items_in"]
    try:
        done.samples.append(_row(jsonl, row_id, line))
        ends += ["rows_out", "items_out", f"{task}/items_out", "samples_out", f"{task}/samples_out"]
    except DataError as error:
        done.rejects.append(schema.reject("compose", jsonl.dataset, row_id, error.reason, str(error)))
        ends += ["items_rejected", f"{task}/items_rejected"]
    done.counts.update(ends)


def _row(jsonl: JsonlConfig, row_id: str, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"the line is no JSON: {error}", reason="json") from error
    chat = from_record(record, num_codes=jsonl.num_codes, num_levels=jsonl.num_levels)
    return {
        "dataset": jsonl.dataset,
        "split": jsonl.split,
        "image_id": chat["images"][0] if chat["images"] else row_id,
        "sample_id": "/".join((jsonl.dataset, jsonl.split, row_id)),
        "task": jsonl.task,
        "tags": [],
        **chat,
        "images": [_image(jsonl.images, name) for name in chat["images"]],
        "meta": json.dumps({"id": str(record["id"])} if "id" in record else {}),
    }


def _image(folder: str, name: str) -> Mapping[str, Any]:
    if not folder and not storage.is_anchored(name):
        raise DataError(
            f"the image {name!r} is relative; name the folder that it is in by --jsonl.images",
            reason="path",
        )
    uri = storage.join(folder, name) if folder else name
    height, width = _size_hw(uri)
    return {"uri": uri, "height": height, "width": width}


_size_hw = functools.lru_cache(maxsize=1024)(read_size_hw)
"""Opens an image, so one that cannot be opened is found here and not in training."""
