"""Imports a JSONL file of chats: parts of its lines become shards, like slices of a corpus of words."""

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

from pipelines import schema, storage
from pipelines.chats.commit import Composed
from pipelines.dialogues.config import JsonlConfig
from pipelines.dialogues.exchange import from_record
from pipelines.ingestion.image_source import below_root, read_size_hw
from pipelines.ingestion.json_lines import MAX_LINE_BYTES, entries_of, parse_line, read_lines
from pipelines.ingestion.reader import Input
from pipelines.ingestion.records import image_name
from samtok.errors import DataError

_PART_BYTES = 64 * 2**20
"""A part that has as many is not filled further, since a shard is made of it in memory."""


@dataclass(frozen=True)
class Lines:
    """``count`` lines of a JSONL file, or entries of its list, in ``size`` bytes from ``offset``; ``first``
    are before them.

    Blank lines are not counted but in ``first``. A line that is too long is a part of its own, cut off.
    """

    offset: int
    size: int
    first: int
    count: int
    listed: bool = False


def inputs_of(uri: str, *, lines_per_shard: int, limit: int | None) -> Iterator[Input]:
    """Cuts a JSONL file, or a JSON list, into parts, one input each; reads it once, line by line.

    Raises:
        ConfigError: If it is something else.
    """
    part: Lines | None = None
    for line in islice(read_lines(uri, flag="--jsonl.source"), limit):
        alone = line.size > MAX_LINE_BYTES
        if part and (alone or part.count == lines_per_shard or part.size > _PART_BYTES):
            yield _input(part)
            part = None
        if alone:
            yield _input(Lines(line.offset, MAX_LINE_BYTES + 1, line.number - 1, 1, line.listed))
        elif part is None:
            part = Lines(line.offset, line.size, line.number - 1, 1, line.listed)
        else:
            part = replace(part, size=line.offset + line.size - part.offset, count=part.count + 1)
    if part:
        yield _input(part)


def _input(part: Lines) -> Input:
    body = {name: value for name, value in asdict(part).items() if value is not False}
    return Input(f"{part.first:012d}", json.dumps(body, sort_keys=True), None)


def take_lines(jsonl: JsonlConfig, payload: dict[str, Any], done: Composed) -> None:
    """Adds the chats of some ``Lines`` of the file."""
    part = Lines(**payload)
    assert jsonl.source is not None
    data = storage.read_bytes(jsonl.source, offset=part.offset, size=part.size)
    cut = data.removesuffix(b"\n").split(b"\n")
    if part.listed:
        cut = entries_of(data) if part.count > 1 else [data]
    numbered = enumerate(cut, start=part.first + 1)
    lines = [(number, line) for number, line in numbered if line.strip()]
    if len(lines) != part.count:
        raise DataError(
            f"{jsonl.source} has changed: {len(lines)} lines instead of {part.count} at byte "
            f"{part.offset}. Restore it, or choose another --out."
        )
    for number, line in lines:
        _take_line(jsonl, f"{'entry' if part.listed else 'line'}-{number:08d}", line, done)


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
    record = parse_line(line, "the line")
    chat = from_record(
        record,
        num_codes=jsonl.num_codes,
        num_levels=jsonl.num_levels,
        size_hw=lambda name: _size_hw(_uri(jsonl.images, name)),
        ignore=jsonl.ignore,
    )
    unlearnt = chat.pop("unlearnt")
    meta = {"id": str(record["id"])} if "id" in record else {}
    return {
        "dataset": jsonl.dataset,
        "split": jsonl.split,
        "image_id": chat["images"][0] if chat["images"] else row_id,
        "sample_id": "/".join((jsonl.dataset, jsonl.split, row_id)),
        "task": jsonl.task,
        "tags": [],
        **chat,
        "images": [_image(jsonl.images, name) for name in chat["images"]],
        "meta": json.dumps(meta | ({"unlearnt": unlearnt} if unlearnt else {})),
    }


def _image(folder: str, name: str) -> Mapping[str, Any]:
    uri = _uri(folder, name)
    height, width = _size_hw(uri)
    return {"uri": uri, "height": height, "width": width}


def _uri(folder: str, name: str) -> str:
    image_name(name, "the name of an image")
    if folder:
        return below_root(folder, name, link_roots=("/",))  # without a folder they may lie anywhere, too
    if not name.startswith(("/", "s3://", "file:///")):
        raise DataError(
            f"the image {name!r:.200} is no absolute path or s3:// URI; name the folder that relative ones "
            "are in by --jsonl.images",
            reason="path",
        )
    return name


_size_hw = functools.lru_cache(maxsize=1024)(read_size_hw)
"""Opens an image, so one that cannot be opened is found here and not in training."""
