"""Chats in the formats of other projects, written and read.

    ms-swift   {"messages": [{"role": "user", "content": "<image>..."}, ...], "images": ["a.jpg"]}
    LLaVA      {"image": "a.jpg" or a list, "conversations": [{"from": "human", "value": "<image> ..."}, ...]}
    OpenAI     {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}},
               {"type": "text", "text": "..."}]}, ...]}

The first two may have ``image`` or ``images``, a text ``system``, ``objects`` (``boxes``), and ``"loss":
false`` at an answer that is not learnt. A line with another field is refused, since it might mean something
else. Rows of EasyR1 and verl (``pipelines.ingestion.rl_rows``) are read as ms-swift's records.

An image is the placeholder ``<image>`` in the text, in LLaVA followed by a line break. Our rows have images
as parts of their own, so a text that holds the placeholder literally has no unambiguous form and is refused
both ways. Mask words are plain text in all of them; reading gives masks with codes and without outlines.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from pipelines.chats.tokens import refuse_control_tokens, without_ours
from pipelines.dialogues.boxes import BBOX, REF, with_objects
from pipelines.ingestion.rl_rows import PLACEHOLDER
from samtok import words
from samtok.errors import DataError

_OTHER_PLACEHOLDERS = ("<video>", "<audio>", BBOX, REF)
_FIELDS = ("id", "messages", "conversations", "images", "image", "system", "objects")
LLAVA_ROLES = {"system": "system", "user": "human", "assistant": "gpt"}
_ROLES = {
    "ms-swift": {role: role for role in LLAVA_ROLES},
    "llava": {theirs: ours for ours, theirs in LLAVA_ROLES.items()},
}


def from_record(
    record: Any,
    *,
    num_codes: int,
    num_levels: int,
    size_hw: Callable[[str], tuple[int, int]],
    ignore: Collection[str] = (),
) -> dict[str, Any]:
    """Reads a record of any of the formats; its keys say which.

    Args:
        size_hw: Opens an image of the record by its name; for boxes in pixels.
        ignore: Fields of other names that may be left unread.

    Returns:
        ``images`` (names as they are in the record), ``messages`` and ``masks`` in the shape of
        ``pipelines.schema.CHAT_ROW``, and ``unlearnt``, the places of answers without a loss. A mask belongs
        to the image that was shown last before its word; equal words of one image are one mask.

    Raises:
        DataError: With the reason ``record``, ``field``, ``role``, ``loss``, ``objects``, ``placeholder``,
            ``malformed_words``, ``control_token`` or ``text_encoding``.
    """
    chat = _chat_of(_flattened(record), ignore)
    texts = [text for _, text in chat.turns]
    if record.get("objects"):
        texts = with_objects(texts, record["objects"], chat.images, size_hw)
    messages, masks, shown = [], {}, 0
    for (role, _), text in zip(chat.turns, texts, strict=True):
        parts, shown = _parts(role, text, shown, chat.kind)
        mask_ids = _name_masks(parts, masks, shown, num_codes, num_levels)
        messages.append({"role": role, "content": parts, "mask_ids": mask_ids})
    if shown != len(chat.images):
        raise DataError(f"{shown} times {PLACEHOLDER} for {len(chat.images)} images", reason="placeholder")
    masks = list(masks.values())
    return {"images": chat.images, "messages": messages, "masks": masks, "unlearnt": chat.unlearnt}


def _flattened(record: Any) -> Any:
    """Returns OpenAI's messages, whose contents are lists of parts, as ms-swift's; anything else as it is."""
    messages = record.get("messages") if isinstance(record, dict) else None
    if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
        return record
    if not any(isinstance(one.get("content"), list) for one in messages):
        return record
    if record.get("images") or record.get("image"):
        raise DataError("images stand in the messages and beside them", reason="record")
    images: list[str] = []
    flat = []
    for message in messages:
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        flat.append({**message, "content": "".join(_flat_part(part, images) for part in parts)})
    return {**record, "messages": flat, "images": images}


def _flat_part(part: Any, images: list[str]) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    value = part.get(kind) if kind in ("text", "image", "image_url") else None
    if kind == "image_url" and isinstance(value, dict):
        value = value.get("url")
    if not isinstance(value, str):
        raise DataError(
            f"expected a part of type text, image or image_url, got {part!r:.200}", reason="record"
        )
    if kind != "text":
        images.append(value)
        return PLACEHOLDER
    if PLACEHOLDER in value:
        raise DataError(f"a text holds {PLACEHOLDER}, which stands for nothing here", reason="placeholder")
    return value


class _Chat(NamedTuple):
    kind: str
    turns: list[tuple[str, str]]  # role and text
    images: list[str]
    unlearnt: list[int]


def _chat_of(record: Any, ignore: Collection[str]) -> _Chat:
    if not isinstance(record, dict) or ("messages" in record) == ("conversations" in record):
        raise DataError("expected an object with either messages or conversations", reason="record")
    kind = "ms-swift" if "messages" in record else "llava"
    key, role_key, text_key = (
        ("messages", "role", "content") if kind == "ms-swift" else ("conversations", "from", "value")
    )
    _refuse_others(record, (*_FIELDS, *ignore), "of the record")
    images, system, turns = _images_of(record), record.get("system") or "", record[key]
    if not _are_texts([*images, system]):
        raise DataError("expected names of images, and a text in system", reason="record")
    if not isinstance(turns, list) or not all(isinstance(t, dict) for t in turns):
        raise DataError(f"expected a list of messages in {key}", reason="record")
    if not _are_texts([turn.get(text_key) for turn in turns]):
        raise DataError(f"expected a text in {text_key} of every message", reason="record")
    roles = [_ROLES[kind].get(str(turn.get(role_key))) for turn in turns]
    if None in roles or "user" not in roles or roles[-1] != "assistant":
        found = [turn.get(role_key) for turn in turns]
        raise DataError(
            f"expected roles of {', '.join(_ROLES[kind])} that end with an answer, got {found!r:.300}",
            reason="role",
        )
    for turn in turns:
        _refuse_others(turn, (role_key, text_key, "loss"), "of a message")
    said = [(str(role), turn[text_key]) for role, turn in zip(roles, turns, strict=True)]
    unlearnt = _unlearnt(roles, [turn.get("loss") for turn in turns])
    if not system:
        return _Chat(kind, said, images, unlearnt)
    if "system" in roles:
        raise DataError("there is a system message beside the field system", reason="role")
    return _Chat(kind, [("system", system), *said], images, [place + 1 for place in unlearnt])


def _refuse_others(found: Mapping[str, Any], known: Collection[str], where: str) -> None:
    other = [name for name, value in found.items() if name not in known and value not in (None, "", [], {})]
    if other:
        raise DataError(
            f"the field {other[0]!r:.80} {where} is not known, so what is learnt might not be what was "
            "meant; name it in --chats.ignore if it may be left unread",
            reason="field",
        )


def _images_of(record: Mapping[str, Any]) -> list[Any]:
    named = [value for value in (record.get("images"), record.get("image")) if value]
    if len(named) > 1:
        raise DataError("expected either image or images, got both", reason="record")
    images = named[0] if named else []
    return images if isinstance(images, list) else [images]


def _unlearnt(roles: Sequence[str | None], losses: Sequence[Any]) -> list[int]:
    for role, loss in zip(roles, losses, strict=True):
        if loss is not None and (type(loss) is not bool or (loss and role != "assistant")):
            raise DataError(
                f"expected loss true or false at an answer, got {loss!r:.40} at the {role}", reason="loss"
            )
    unlearnt = [place for place, loss in enumerate(losses) if roles[place] == "assistant" and loss is False]
    if unlearnt and unlearnt[-1] == len(roles) - 1:
        raise DataError(
            "the last answer has no loss; leave out what follows the last one that is learnt", reason="loss"
        )
    return unlearnt


def _are_texts(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _parts(role: str, text: str, shown: int, kind: str) -> tuple[list[dict[str, Any]], int]:
    """Splits a text at its images; returns the parts, and how many images were shown so far."""
    other = next((tag for tag in _OTHER_PLACEHOLDERS if tag in text), None)
    if other is not None:
        raise DataError(f"a message holds {other}, which stands for nothing here", reason="placeholder")
    refuse_control_tokens(without_ours(text.replace(PLACEHOLDER, "")), "a message")
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
