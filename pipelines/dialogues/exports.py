"""Writes chats in the formats of other projects: JSONL, or Parquet with the images in it.

What ``exchange`` and ``imports`` read back is the same chat, but for names of masks, labels and IoUs. A chat
that a format cannot say is left out and counted.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.chats.corpus import load_chat_corpus, rows_of_shard, text_of, unlearnt_of
from pipelines.dialogues.boxes import BBOX, REF
from pipelines.dialogues.exchange import LLAVA_ROLES
from pipelines.ingestion.image_source import read_image_bytes
from pipelines.ingestion.rl_rows import PLACEHOLDER
from pipelines.shards import ROW_GROUP_ROWS
from samtok import masks
from samtok.errors import DataError

Format = Literal["ms-swift", "ms-swift-boxes", "llava", "openai", "easyr1", "verl"]
FORMATS: tuple[Format, ...] = get_args(Format)

Row = Mapping[str, Any]

_IMAGES = pa.field("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())])))
_MASKS = pa.list_(pa.struct([("size", pa.list_(pa.int64())), ("counts", pa.string())]))
SCHEMAS = {
    "easyr1": pa.schema(
        [
            _IMAGES,
            *((name, pa.string()) for name in ("problem", "answer", "source", "id")),
            ("masks", _MASKS),
        ]
    ),
    "verl": pa.schema(
        [
            ("data_source", pa.string()),
            ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
            _IMAGES,
            ("ability", pa.string()),
            ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
            ("extra_info", pa.struct([("id", pa.string()), ("masks", _MASKS)])),
        ]
    ),
}
"""Formats that are Parquet files."""


def export(out: str, kind: Format) -> str:
    """Writes a finished corpus to ``OUT/export/FORMAT``, a file per shard; returns what was written.

    Raises:
        DataError: If no chat can be written, with the reason of the first one.
        StorageError: If the storage fails.
    """
    lost: Counter[str] = Counter()
    first: DataError | None = None
    written = 0
    for number, shard in enumerate(load_chat_corpus(out).shards):
        records = []
        for row in rows_of_shard(shard):
            try:
                records.append(to_record(row, kind))
            except DataError as error:
                lost[error.reason] += 1
                first = first or error
        written += len(records)
        ending = "parquet" if kind in SCHEMAS else "jsonl"
        name = f"export/{kind}/shard-{number:05d}.{ending}"
        storage.write_bytes(storage.join(out, name), _file(records, kind))
    if first is not None and not written:
        raise DataError(f"--export {kind} can say none of the chats: {first}", reason=first.reason)
    left_out = ", ".join(f"{count} {reason}" for reason, count in lost.most_common())
    return f"{written} chats" + (f", not {lost.total()}: {left_out}" if lost else "")


def _file(records: Sequence[Mapping[str, Any]], kind: Format) -> bytes:
    if kind not in SCHEMAS:
        return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(list(records), SCHEMAS[kind])
    pq.write_table(table, sink, row_group_size=ROW_GROUP_ROWS)
    return sink.getvalue().to_pybytes()


def to_record(row: Row, kind: Format) -> dict[str, Any]:
    """Returns a chat row as a record of a format.

    Raises:
        DataError: ``placeholder`` if a text holds ``<image>`` or images are not shown once and in order;
            ``loss`` or ``rounds`` for what the format cannot say, ``no_mask`` if a box is wanted of a mask
            without an outline; as ``read_image_bytes`` where images go into the file.
    """
    unlearnt = unlearnt_of(row)
    if unlearnt and not kind.startswith("ms-swift"):
        raise _unsaid(row, "answers that are not learnt", kind, "loss")
    if kind == "openai":
        return {"id": row["sample_id"], "messages": [_openai(row, message) for message in row["messages"]]}
    texts = _texts(row, "\n" if kind == "llava" else "")
    uris = [image["uri"] for image in row["images"]]
    if kind == "llava":
        image = {"image": uris[0] if len(uris) == 1 else uris} if uris else {}
        turns = [{"from": LLAVA_ROLES[role], "value": text} for role, text in texts]
        return {"id": row["sample_id"], **image, "conversations": turns}
    if kind == "easyr1":
        return _easyr1(row, texts)
    messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in texts]
    if kind == "verl":
        return _verl(row, messages)
    for place in unlearnt:
        messages[place]["loss"] = False
    record = {"messages": messages, "images": uris}
    return _boxed(row, record) if kind == "ms-swift-boxes" else record


def _texts(row: Row, break_: str) -> list[tuple[str, str]]:
    """Returns role and text of each message, with placeholders."""
    order = [p["image"] for message in row["messages"] for p in message["content"] if p["text"] is None]
    if order != list(range(len(row["images"]))):
        raise DataError(
            f"sample {row['sample_id']!r} shows its {len(row['images'])} images in the order {order}; these "
            "formats can only show each once, in order",
            reason="placeholder",
        )
    return [(message["role"], _flat(row, message, break_)) for message in row["messages"]]


def _flat(row: Row, message: Row, break_: str) -> str:
    _refuse(row, text_of(message), PLACEHOLDER)
    parts = message["content"]
    return "".join(PLACEHOLDER + break_ if part["text"] is None else part["text"] for part in parts)


def _refuse(row: Row, text: str, tag: str) -> None:
    if tag in text:
        what = "an image" if tag == PLACEHOLDER else "an object"
        raise DataError(
            f"sample {row['sample_id']!r} has the text {tag}, which would be read as {what}",
            reason="placeholder",
        )


def _openai(row: Row, message: Row) -> dict[str, Any]:
    _refuse(row, text_of(message), PLACEHOLDER)
    if message["role"] != "user":
        return {"role": message["role"], "content": text_of(message)}
    parts = [
        {"type": "image_url", "image_url": {"url": row["images"][part["image"]]["uri"]}}
        if part["text"] is None
        else {"type": "text", "text": part["text"]}
        for part in message["content"]
    ]
    return {"role": "user", "content": parts}


def _easyr1(row: Row, texts: Sequence[tuple[str, str]]) -> dict[str, Any]:
    if [role for role, _ in texts] != ["user", "assistant"]:
        raise _unsaid(row, f"{len(texts)} messages", "easyr1", "rounds")
    return {
        "images": _embedded(row),
        "problem": texts[0][1],
        "answer": texts[1][1],
        "source": row["dataset"],
        "id": row["sample_id"],
        "masks": _outlines(row, row["messages"][-1:]),
    }


def _verl(row: Row, messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "data_source": row["dataset"],
        "prompt": messages[:-1],
        "images": _embedded(row),
        "ability": row["task"],
        "reward_model": {"style": "rule", "ground_truth": messages[-1]["content"]},
        "extra_info": {"id": row["sample_id"], "masks": _outlines(row, row["messages"])},
    }


def _embedded(row: Row) -> list[dict[str, Any]]:
    uris = [image["uri"] for image in row["images"]]
    return [{"bytes": read_image_bytes(uri), "path": uri.rpartition("/")[2]} for uri in uris]


def _outlines(row: Row, messages: Sequence[Row]) -> list[dict[str, Any]] | None:
    """Returns the RLEs of the words of messages, in their order; None if one is not known."""
    found = [mask for message in messages for mask in _named(row, message)]
    if any(mask["rle"] is None for mask in found):
        return None
    images = row["images"]
    sizes = [[images[mask["image"]]["height"], images[mask["image"]]["width"]] for mask in found]
    return [{"size": size, "counts": mask["rle"]} for size, mask in zip(sizes, found, strict=True)]


def _named(row: Row, message: Row) -> Iterator[Row]:
    of_row = {mask["mask_id"]: mask for mask in row["masks"]}
    return (of_row[mask_id] for mask_id in message["mask_ids"])


def _boxed(row: Row, record: dict[str, Any]) -> dict[str, Any]:
    """Puts ``<bbox>`` in the place of each mask word, and the box of its mask into ``objects``."""
    boxes, owners = [], []
    for place, message in enumerate(row["messages"]):
        text = record["messages"][place]["content"]
        for tag in (BBOX, REF):
            _refuse(row, text, tag)
        for mask in _named(row, message):
            text = text.replace(mask["words"], BBOX, 1)
            image = row["images"][mask["image"]]
            size = {"height": image["height"], "width": image["width"]}
            box = None if mask["rle"] is None else masks.box_xyxy(mask["rle"], **size)
            if box is None:
                what = f"a mask {mask['mask_id']!r} without an outline"
                raise _unsaid(row, what, "ms-swift-boxes", "no_mask")
            boxes.append([box[0], box[1], box[2] + 1, box[3] + 1])
            owners.append(mask["image"])
        record["messages"][place]["content"] = text
    return record | ({"objects": {"ref": [], "bbox": boxes, "image_id": owners}} if boxes else {})


def _unsaid(row: Row, what: str, kind: str, reason: str) -> DataError:
    return DataError(f"sample {row['sample_id']!r} has {what}, which {kind} cannot say", reason=reason)
