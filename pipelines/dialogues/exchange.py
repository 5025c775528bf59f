"""Chats in the formats of two other projects, written and read.

    ms-swift   {"messages": [{"role": "user", "content": "<image>..."}, ...], "images": ["a.jpg"]}
    LLaVA      {"image": "a.jpg" or a list, "conversations": [{"from": "human", "value": "<image> ..."}, ...]}

An image is the placeholder ``<image>`` in the text, in LLaVA followed by a line break. Our rows have images
as parts of their own, so a text that holds the placeholder literally has no unambiguous form and is refused
both ways. Mask words are plain text in all of them; reading gives masks with codes and without outlines.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.chats.tokens import OBJECT_END, OBJECT_START, refuse_control_tokens
from samtok import words
from samtok.errors import DataError

FORMATS = ("ms-swift", "llava")
PLACEHOLDER = "<image>"
_OURS = re.compile("|".join(map(re.escape, (OBJECT_START, OBJECT_END))) + r"|<\|mt_(?:start|end|\d{4,9})\|>")
_LLAVA_ROLES = {"system": "system", "user": "human", "assistant": "gpt"}
_ROLES = {
    "ms-swift": {role: role for role in _LLAVA_ROLES},
    "llava": {theirs: ours for ours, theirs in _LLAVA_ROLES.items()},
}


def to_record(row: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Returns a chat row as a record of ``ms-swift`` or ``llava``; raises DataError ``placeholder`` if a text
    holds ``<image>``, or images are not shown once and in order."""
    break_ = "\n" if kind == "llava" else ""
    texts = [(message["role"], _flat(row["sample_id"], message, break_)) for message in row["messages"]]
    order = [p["image"] for message in row["messages"] for p in message["content"] if p["text"] is None]
    uris = [image["uri"] for image in row["images"]]
    if order != list(range(len(uris))):
        raise DataError(
            f"sample {row['sample_id']!r} shows its {len(uris)} images in the order {order}; these formats "
            "can only show each once, in order",
            reason="placeholder",
        )
    if kind == "ms-swift":
        return {"messages": [{"role": role, "content": text} for role, text in texts], "images": uris}
    turns = [{"from": _LLAVA_ROLES[role], "value": text} for role, text in texts]
    image = {"image": uris[0] if len(uris) == 1 else uris} if uris else {}
    return {"id": row["sample_id"], **image, "conversations": turns}


def _flat(sample_id: str, message: Mapping[str, Any], break_: str) -> str:
    found = []
    for part in message["content"]:
        if part["text"] is None:
            found.append(PLACEHOLDER + break_)
        elif PLACEHOLDER in part["text"]:
            raise DataError(
                f"sample {sample_id!r} has the text {PLACEHOLDER}, which would be read as an image",
                reason="placeholder",
            )
        else:
            found.append(part["text"])
    return "".join(found)


def from_record(record: Any, *, num_codes: int, num_levels: int) -> dict[str, Any]:
    """Reads a record of either format; its keys say which.

    Returns:
        ``images`` (names as they are in the record), ``messages`` and ``masks`` in the shape of
        ``pipelines.schema.CHAT_ROW``. A mask belongs to the image that was shown last before its word; equal
        words of one image are one mask.

    Raises:
        DataError: With the reason ``record``, ``role``, ``placeholder``, ``malformed_words`` or
            ``control_token``.
    """
    kind, texts, images = _messages_of(record)
    messages, masks, shown = [], {}, 0
    for role, text in texts:
        parts, shown = _parts(role, text, shown, kind)
        mask_ids = _name_masks(parts, masks, shown, num_codes, num_levels)
        messages.append({"role": role, "content": parts, "mask_ids": mask_ids})
    if shown != len(images):
        raise DataError(f"{shown} times {PLACEHOLDER} for {len(images)} images", reason="placeholder")
    return {"images": images, "messages": messages, "masks": list(masks.values())}


def _messages_of(record: Any) -> tuple[str, list[tuple[str, str]], list[str]]:
    """Returns the format, role and text of each message, and the names of the images."""
    if not isinstance(record, dict) or ("messages" in record) == ("conversations" in record):
        raise DataError("expected an object with either messages or conversations", reason="record")
    kind = "ms-swift" if "messages" in record else "llava"
    key, role_key, text_key = (
        ("messages", "role", "content") if kind == "ms-swift" else ("conversations", "from", "value")
    )
    images = record.get("images" if kind == "ms-swift" else "image") or []
    images = [images] if isinstance(images, str) else images
    turns = record[key]
    if not _are_texts(images) or not isinstance(turns, list) or not all(isinstance(t, dict) for t in turns):
        raise DataError(f"expected a list of messages in {key}, and names of images", reason="record")
    if not _are_texts([turn.get(text_key) for turn in turns]):
        raise DataError(f"expected a text in {text_key} of every message", reason="record")
    roles = [_ROLES[kind].get(str(turn.get(role_key))) for turn in turns]
    if None in roles or "user" not in roles or roles[-1] != "assistant":
        found = [turn.get(role_key) for turn in turns]
        raise DataError(
            f"expected roles of {', '.join(_ROLES[kind])} that end with an answer, got {found}", reason="role"
        )
    return kind, [(str(role), turn[text_key]) for role, turn in zip(roles, turns, strict=True)], images


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _parts(role: str, text: str, shown: int, kind: str) -> tuple[list[dict[str, Any]], int]:
    """Splits a text at its images; returns the parts, and how many images were shown so far."""
    refuse_control_tokens(_OURS.sub("", text.replace(PLACEHOLDER, "")), "a message")
    if role == "assistant" and PLACEHOLDER in text:
        raise DataError(f"an answer holds {PLACEHOLDER}", reason="placeholder")
    found: list[dict[str, Any]] = []
    for number, part in enumerate(text.split(PLACEHOLDER)):
        if number:
            found.append({"text": None, "image": shown})
            shown += 1
            part = part.removeprefix("\n") if kind == "llava" else part
        if part:
            found.append({"text": part, "image": None})
    return found or [{"text": "", "image": None}], shown


def _name_masks(
    parts: Sequence[Mapping[str, Any]],
    masks: dict[tuple[int, tuple[int, ...]], dict[str, Any]],
    shown: int,
    num_codes: int,
    num_levels: int,
) -> list[str]:
    """Adds the masks of a message to those of its chat; returns their ids in the text's order."""
    image = shown - sum(part["text"] is None for part in parts) - 1  # the last one before this message
    found = []
    for part in parts:
        if part["text"] is None:
            image = part["image"]
            continue
        for codes in words.parse_words(part["text"], num_codes=num_codes, num_levels=num_levels):
            found.append(_mask(masks, (max(image, 0), codes), num_codes)["mask_id"])
    return found


def _mask(
    masks: dict[tuple[int, tuple[int, ...]], dict[str, Any]], key: tuple[int, tuple[int, ...]], num_codes: int
) -> dict[str, Any]:
    image, codes = key
    text = words.format_words(codes, num_codes=num_codes)
    named = {"mask_id": f"w{len(masks)}", "image": image, "codes": list(codes), "words": text}
    return masks.setdefault(key, {**named, "label": None, "iou": None, "rle": None})
