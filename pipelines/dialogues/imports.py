"""Imports chats of another project: parts of its files become shards, like slices of a corpus of words.

A part is some lines of a JSONL file, entries of a JSON list, or rows of a row group of a Parquet file.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

from pipelines import schema, storage
from pipelines.chats.commit import Composed
from pipelines.dialogues import decoded
from pipelines.dialogues.config import ImportConfig
from pipelines.dialogues.exchange import from_record
from pipelines.ingestion import parquet_cells, rl_rows
from pipelines.ingestion.image_source import below_root, read_size_hw
from pipelines.ingestion.json_lines import MAX_LINE_BYTES, entries_of, parse_line, read_lines
from pipelines.ingestion.parquet_cells import Cell
from pipelines.ingestion.reader import Input
from pipelines.ingestion.records import Record, image_name
from samtok import masks
from samtok.errors import ConfigError, DataError

_PART_BYTES = 64 * 2**20
"""A part that has as many is not filled further, since a shard is made of it in memory."""

_BATCH_ROWS = 64
_IMAGES = "images"


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


@dataclass(frozen=True)
class Rows:
    """``count`` rows of a row group of a Parquet file, of which ``skip`` are before them; ``first`` is the
    number of the first one in the file."""

    file: str
    group: int
    skip: int
    first: int
    count: int


@dataclass(frozen=True)
class Settings:
    """What decides the chats besides the file; see ``config.py`` for what the options mean."""

    chats: ImportConfig
    min_iou: float | None = None
    keep_rle: bool = True


def is_parquet(source: str) -> bool:
    """Whether a source is a Parquet file, or a folder, which is one of them."""
    return source.endswith(parquet_cells.SUFFIX) or not storage.exists(source)


def inputs_of(source: str, *, rows_per_shard: int, limit: int | None) -> Iterator[Input]:
    """Cuts a source into parts, one input each; reads JSON once, line by line, and of Parquet the ends.

    Raises:
        ConfigError: If it is something else.
    """
    if is_parquet(source):
        yield from _row_parts(source, rows_per_shard, limit)
        return
    part: Lines | None = None
    for line in islice(read_lines(source, flag="--chats.source"), limit):
        alone = line.size > MAX_LINE_BYTES
        if part and (alone or part.count == rows_per_shard or part.size > _PART_BYTES):
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


def _row_parts(source: str, rows_per_shard: int, limit: int | None) -> Iterator[Input]:
    taken = 0
    for name in parquet_cells.files_of(source):
        uri, first = _file(source, name), 0
        try:
            metadata, columns = parquet_cells.metadata(uri), parquet_cells.columns_of(uri)
        except DataError as error:
            raise ConfigError(f"--chats.source: {error}") from error
        if rl_rows.layout_of(columns) is None:
            needed = "; or ".join(", ".join(names) for names in rl_rows.REQUIRED.values())
            raise ConfigError(
                f"--chats.source: {uri} has the columns {', '.join(columns)}, expected {needed}."
            )
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            for skip in range(0, rows, rows_per_shard):
                most = rows_per_shard if limit is None else min(rows_per_shard, limit - taken)
                count = min(most, rows - skip)
                if count < 1:
                    return
                taken += count
                part = Rows(name, group, skip, first + skip, count)
                key = f"{parquet_cells.stem(name)}{part.first:08d}"
                yield Input(key, json.dumps(asdict(part), sort_keys=True), None)
            first += rows


def _file(source: str, name: str) -> str:
    return source if source.endswith(parquet_cells.SUFFIX) else storage.join(source, name)


def take_part(settings: Settings, payload: dict[str, Any], done: Composed) -> None:
    """Adds the chats of some ``Lines`` or ``Rows`` of the source."""
    source = settings.chats.source
    assert source is not None
    if "group" in payload:
        _take_rows(settings, source, Rows(**payload), done)
    else:
        _take_lines(settings, source, Lines(**payload), done)


def _take_lines(settings: Settings, source: str, part: Lines, done: Composed) -> None:
    data = storage.read_bytes(source, offset=part.offset, size=part.size)
    cut = data.removesuffix(b"\n").split(b"\n")
    if part.listed:
        cut = entries_of(data) if part.count > 1 else [data]
    numbered = enumerate(cut, start=part.first + 1)
    lines = [(number, line) for number, line in numbered if line.strip()]
    if len(lines) != part.count:
        raise DataError(
            f"{source} has changed: {len(lines)} lines instead of {part.count} at byte "
            f"{part.offset}. Restore it, or choose another --out."
        )
    for number, line in lines:
        row_id = f"{'entry' if part.listed else 'line'}-{number:08d}"
        _take(settings, row_id, functools.partial(_of_line, line, settings.chats.images), done)


def _take_rows(settings: Settings, source: str, part: Rows, done: Composed) -> None:
    uri = _file(source, part.file)
    columns = parquet_cells.columns_of(uri)
    layout = rl_rows.layout_of(columns)
    assert layout is not None  # when it was listed
    wanted = [name for name in rl_rows.COLUMNS[layout] if name in columns]
    rows = parquet_cells.each_row(uri, part.group, wanted, _BATCH_ROWS)
    for number, values in enumerate(islice(rows, part.skip, part.skip + part.count), start=part.first):
        row_id = f"{parquet_cells.stem(part.file)}{number:08d}"
        cell = Cell(uri, number, _IMAGES)
        _take(settings, row_id, functools.partial(_of_row, values, cell, settings.chats.images), done)


class _Found(NamedTuple):
    record: Any
    uri_of: Callable[[str], str]  # of an image that the record names
    rles: Sequence[Any] | None = None  # of its words, in their order


def _of_line(line: bytes, folder: str) -> _Found:
    return _Found(parse_line(line, "the line"), functools.partial(_uri, folder))


def _of_row(values: Record | DataError, cell: Cell, folder: str) -> _Found:
    """Reads a row; images that no text shows stand before its first question."""
    if isinstance(values, DataError):
        raise values
    record, rles = rl_rows.record_of(values)
    images = []
    for number, entry in enumerate(parquet_cells.entries(cell)):
        if entry.data or (entry.path and folder):
            name = entry.path or ""
            name = name.rpartition("/")[2] if name.startswith("/") else name  # of another machine
            images.append(cell._replace(entry=number).uri if entry.data else _uri(folder, name))
        elif entry.path:
            raise DataError(
                f"the image {entry.path!r:.200} is not in the file; name its folder by --chats.images",
                reason="image_cell",
            )
    return _Found(rl_rows.shown(record, len(images)) | {"images": images}, str, rles)


def _take(settings: Settings, row_id: str, read: Callable[[], _Found], done: Composed) -> None:
    options = settings.chats
    task = options.task
    ends = ["rows_in", "items_in", f"{task}/items_in"]
    try:
        row = _row(options, row_id, read())
        reason = decoded.checked(row, options.tokenizer, settings.min_iou)
        if reason is None:
            kept = [{**mask, "rle": mask["rle"] if settings.keep_rle else None} for mask in row["masks"]]
            done.samples.append({**row, "masks": kept})
            ends += ["rows_out", "items_out", f"{task}/items_out", "samples_out", f"{task}/samples_out"]
        else:
            done.rejects.append(schema.reject("filter", options.dataset, row_id, reason.reason, str(reason)))
            ends += ["items_filtered", f"{task}/items_filtered"]
    except DataError as error:
        done.rejects.append(schema.reject("compose", options.dataset, row_id, error.reason, str(error)))
        ends += ["items_rejected", f"{task}/items_rejected"]
    done.counts.update(ends)


def _row(options: ImportConfig, row_id: str, found: _Found) -> dict[str, Any]:
    record = found.record
    chat = from_record(
        record,
        num_codes=options.num_codes,
        num_levels=options.num_levels,
        size_hw=lambda name: _size_hw(found.uri_of(name)),
        ignore=options.ignore,
    )
    images = [_image(found.uri_of(name)) for name in chat["images"]]
    if found.rles is not None:
        _outline(chat, found.rles, images)
    unlearnt = chat.pop("unlearnt")
    meta = {"id": str(record["id"])} if "id" in record else {}
    return {
        "dataset": options.dataset,
        "split": options.split,
        "image_id": chat["images"][0] if chat["images"] else row_id,
        "sample_id": "/".join((options.dataset, options.split, row_id)),
        "task": options.task,
        "tags": [],
        **chat,
        "images": images,
        "meta": json.dumps(meta | ({"unlearnt": unlearnt} if unlearnt else {})),
    }


def _outline(chat: dict[str, Any], rles: Sequence[Any], images: Sequence[Mapping[str, Any]]) -> None:
    """Gives masks the RLEs of a row, in the order of the words of the last answer, or of all messages. Equal
    words of different RLEs become different masks."""
    messages = chat["messages"]
    of_all = [(message, place) for message in messages for place in range(len(message["mask_ids"]))]
    of_answer = [(message, place) for message, place in of_all if message is messages[-1]]
    named = of_all if len(of_all) == len(rles) else of_answer
    if len(named) != len(rles):
        raise DataError(
            f"{len(named)} mask words in the answer for {len(rles)} masks", reason="words_and_masks"
        )
    found = {mask["mask_id"]: mask for mask in chat["masks"]}
    made: dict[tuple[str, str | None], dict[str, Any]] = {}
    for (message, place), rle in zip(named, rles, strict=True):
        mask_id = message["mask_ids"][place]
        image = images[found[mask_id]["image"]]
        counts = masks.to_counts(rle, height=image["height"], width=image["width"])
        if (mask_id, counts) not in made:
            again = any(one == mask_id for one, _ in made)
            own_id = f"{mask_id}.{len(made)}" if again else mask_id
            made[mask_id, counts] = {**found[mask_id], "mask_id": own_id, "rle": counts}
        message["mask_ids"][place] = made[mask_id, counts]["mask_id"]
    used = {mask_id for mask_id, _ in made}
    chat["masks"] = [*(mask for mask in chat["masks"] if mask["mask_id"] not in used), *made.values()]


def _image(uri: str) -> Mapping[str, Any]:
    height, width = _size_hw(uri)
    return {"uri": uri, "height": height, "width": width}


def _uri(folder: str, name: str) -> str:
    image_name(name, "the name of an image")
    if folder:
        return below_root(folder, name, link_roots=("/",))  # without a folder they may lie anywhere, too
    if not name.startswith(("/", "s3://", "file:///")):
        raise DataError(
            f"the image {name!r:.200} is no absolute path or s3:// URI; name the folder that relative ones "
            "are in by --chats.images",
            reason="path",
        )
    return name


_size_hw = functools.lru_cache(maxsize=1024)(read_size_hw)
"""Opens an image, so one that cannot be opened is found here and not in training."""
