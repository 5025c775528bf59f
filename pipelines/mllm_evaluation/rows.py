"""What is asked and what came of it: questions as the plan keeps them, and the table of answers.

A question is an assistant's turn of a chat row: the messages before it, and the masks that its true answer
names. Questions about one image are one input of the plan, so the image is read and encoded once for all.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa

from pipelines import schema, shards
from pipelines.chats.corpus import text_of, unlearnt_of
from pipelines.ingestion.reader import Input
from samtok import masks
from samtok.errors import DataError
from samtok.mllm.thinking import split_thinking

Turns = Literal["last", "first", "all"]

STAGE = "answer"
"""Stage of all rejects made here."""

SLICE = "slice: "
"""Before the names of slices (``slices`` of a chat's meta) among the tags of a question."""

COUNTS = shards.COUNTS["predictions"]
"""What is counted per shard: images, and questions about them; in = out + rejected, always."""

_CODES = pa.list_(pa.list_(pa.int32()))

_WORD_FIELDS = [
    pa.field("codes", pa.list_(pa.int32()), nullable=False),
    pa.field("rle", pa.string(), nullable=False),
]

_TRUE_FIELDS = [
    pa.field("mask_id", pa.string(), nullable=False),
    *_WORD_FIELDS,
    pa.field("label", pa.string()),
]

_PREDICTION = pa.struct(  # of one mode of scoring
    [
        pa.field("codes", _CODES, nullable=False),  # as that mode reads the text
        pa.field("rle", pa.string(), nullable=False),  # union of the masks
        pa.field("intersection_px", pa.int64(), nullable=False),
        pa.field("predicted_px", pa.int64(), nullable=False),  # 0: no target is predicted
        pa.field("box_xyxy", pa.list_(pa.int32())),  # far side included; null if the mask is empty
        pa.field("masks", pa.list_(pa.struct(_WORD_FIELDS)), nullable=False),  # of each different word
    ]
)

ANSWER_ROW = pa.schema(
    [
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("turn", pa.int32(), nullable=False),  # index of the message that is the true answer
        pa.field("round", pa.int32(), nullable=False),  # which question of its chat it is, from 1 on
        pa.field("task", pa.string(), nullable=False),
        pa.field("tags", pa.list_(pa.string()), nullable=False),
        pa.field("image_uri", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("asked_rle", pa.string()),  # union of the masks that the question names; null without any
        pa.field("asked_box_xyxy", pa.list_(pa.int32())),  # far side included
        pa.field("about", pa.string()),  # JSON of what scores need besides, from the dataset
        pa.field("key", pa.string(), nullable=False),  # image id and phrase, for the keyed mean of RES
        pa.field("truth", pa.string(), nullable=False),  # text of the true answer
        pa.field("truth_codes", _CODES, nullable=False),
        pa.field("truth_rle", pa.string()),  # union of the true masks; null where there is no target
        pa.field("truth_masks", pa.list_(pa.struct(_TRUE_FIELDS)), nullable=False),  # of each of its words
        pa.field("target_px", pa.int64(), nullable=False),
        pa.field("target_box_xyxy", pa.list_(pa.int32())),  # far side included; null where there is none
        pa.field("generated", pa.string()),  # null: the question could not be asked
        pa.field("num_tokens", pa.int32()),
        pa.field("cut", pa.bool_()),  # the answer did not end before the limit of tokens
        pa.field("num_malformed", pa.int32()),  # broken words in the text that is scored
        pa.field("thought_tokens", pa.int32()),  # null: there is none, or it has no end
        pa.field("unfinished", pa.bool_(), nullable=False),  # a thought was asked for, and no answer came
        pa.field("strict", _PREDICTION),
        pa.field("official", _PREDICTION),  # null also for words of other than two levels
        pa.field("problem", pa.string()),  # why the question could not be asked
    ],
    metadata={"samtok_schema_version": str(schema.SCHEMA_VERSION)},
)
"""One question with its answer and scores. Every question of the plan has a row, asked or not. Masks one
by one are kept for benchmarks that score them so (``Benchmark.keeps_masks``); else the lists are empty."""


def inputs_of(
    rows: Iterable[Mapping[str, Any]], *, tasks: Iterable[str], turns: Turns, keeps_masks: bool = False
) -> list[Input]:
    """Returns the questions of chat rows by image, in the order in which images first appear.

    Args:
        rows: Of a chat corpus.
        tasks: Of rows that are asked.
        turns: Which questions of a chat.
        keeps_masks: Keep each true mask beside their union.

    Raises:
        DataError: ``no_rle`` if a true mask has no RLE, so nothing can be scored against it; ``no_image``
            for a chat without one; ``thought`` if the true answer has one.
    """
    wanted = frozenset(tasks)
    groups: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["task"] not in wanted:
            continue
        for question in _questions_of(row, turns, keeps_masks):
            home = (row["dataset"], row["split"], row["image_id"], question["image"]["uri"])
            groups.setdefault(home, []).append(question)
    return [_input(number, key, found) for number, (key, found) in enumerate(groups.items())]


def _input(number: int, key: tuple[str, ...], questions: list[dict[str, Any]]) -> Input:
    body = {"dataset": key[0], "split": key[1], "image_id": key[2], "image": questions[0]["image"]}
    payload = json.dumps({**body, "questions": questions}, ensure_ascii=False)
    return Input(f"{number:08d}/{'/'.join(key[:3])}", payload, len(questions))


def _questions_of(row: Mapping[str, Any], turns: Turns, keeps_masks: bool) -> Iterator[dict[str, Any]]:
    answers = [n for n, message in enumerate(row["messages"]) if message["role"] == "assistant" and n]
    unlearnt = unlearnt_of(row)
    of_items = json.loads(row["meta"] or "{}").get("about") or []  # answers that nobody knows are judged
    places = [n for n in answers if of_items or n not in unlearnt]
    chosen = {"last": places[-1:], "first": places[:1], "all": places}[turns]
    meta = json.loads(row["meta"] or "{}")
    expressions, slices = meta.get("expressions") or [], meta.get("slices") or []
    for number, place in enumerate(places):
        if place not in chosen:
            continue
        _require_no_thought(row, place)
        question = text_of(row["messages"][place - 1]).strip()
        phrase = expressions[number] if len(expressions) == len(places) else None
        of_turn = slices[number] if len(slices) == len(places) else []
        about = of_items[number] if len(of_items) == len(places) else None
        yield {
            "sample_id": row["sample_id"],
            "turn": place,
            "round": number + 1,
            "task": row["task"],
            "tags": [*row["tags"], *(f"{SLICE}{name}" for name in of_turn)],
            "images": [dict(image) for image in row["images"]],
            "messages": [dict(message) for message in row["messages"][:place]],
            "question": question,
            "about": json.dumps(about) if about else None,
            "key": f"{row['image_id']}_{phrase or question}",
            **_truth(row, place, keeps_masks),
        }


def _require_no_thought(row: Mapping[str, Any], place: int) -> None:
    if split_thinking(text_of(row["messages"][place])).answer is not None:
        raise DataError(
            f"the answer of sample {row['sample_id']!r} has a thought in it, whose words would count as true "
            "ones. Ask the corpus that the thoughts were written for, with --thinking on.",
            reason="thought",
        )


def _truth(row: Mapping[str, Any], place: int, keeps_masks: bool) -> dict[str, Any]:
    """Returns what the true answer names: codes, and the union of the masks on their image."""
    message, known = row["messages"][place], {mask["mask_id"]: mask for mask in row["masks"]}
    where = f"sample {row['sample_id']!r}"
    missing = [mask_id for mask_id in message["mask_ids"] if mask_id not in known]
    if missing:
        raise DataError(
            f"{where} names the mask {missing[0]!r}, which it does not have", reason="missing_mask"
        )
    named = [known[mask_id] for mask_id in dict.fromkeys(message["mask_ids"])]
    asked_ids = dict.fromkeys(row["messages"][place - 1]["mask_ids"])
    asked = [known[mask_id] for mask_id in asked_ids if mask_id in known]
    homes = sorted({mask["image"] for mask in named})
    if len(homes) > 1:
        raise DataError(f"{where} names masks of several images in one answer", reason="several_images")
    if any(mask["rle"] is None for mask in named):
        raise DataError(
            f"{where} has no pixels of its masks, so predictions cannot be compared with them. Compose the "
            "chats with --keep-rle, from words that were made with it.",
            reason="no_rle",
        )
    if not row["images"]:
        raise DataError(f"{where} has no image. Choose --tasks whose chats have one.", reason="no_image")
    home = next((mask["image"] for mask in named or asked), 0)
    image = dict(row["images"][home])
    size = {"height": image["height"], "width": image["width"]}
    return {
        "image": image,
        "truth": text_of(message),
        "truth_codes": [list(known[mask_id]["codes"]) for mask_id in message["mask_ids"]],
        "truth_masks": [_true_mask(known[one]) for one in message["mask_ids"]] if keeps_masks else [],
        "truth_rle": masks.union([mask["rle"] for mask in named], **size) if named else None,
        "asked_rle": _asked(asked, home, size),
    }


def _asked(asked: Sequence[Mapping[str, Any]], home: int, size: Mapping[str, int]) -> str | None:
    """Returns the union of what a question names on that image, as far as the pixels are known."""
    rles = [mask["rle"] for mask in asked if mask["image"] == home and mask["rle"] is not None]
    return masks.union(rles, **size) if rles else None


def _true_mask(mask: Mapping[str, Any]) -> dict[str, Any]:
    return {name: mask[name] for name in ("mask_id", "codes", "rle", "label")}


def start_of_row(group: Mapping[str, Any], question: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of an answer's row that is known before it is asked."""
    height, width = group["image"]["height"], group["image"]["width"]
    rle = question["truth_rle"]
    size = {"height": height, "width": width}
    same = (
        *("sample_id", "turn", "round", "task", "tags", "question", "asked_rle", "about", "key"),
        *("truth", "truth_codes", "truth_rle", "truth_masks"),
    )
    return {
        **{name: group[name] for name in ("dataset", "split", "image_id")},
        **{name: question[name] for name in same},
        "image_uri": group["image"]["uri"],
        **size,
        "target_px": masks.area(rle, **size) if rle is not None else 0,
        "target_box_xyxy": _box(rle, size),
        "asked_box_xyxy": _box(question["asked_rle"], size),
        "unfinished": False,
    }


def _box(rle: str | None, size: Mapping[str, int]) -> list[int] | None:
    box = None if rle is None else masks.box_xyxy(rle, **size)
    return None if box is None else list(box)
