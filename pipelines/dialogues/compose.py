"""An image and its annotations become chats: what can be asked, in which words, and what cannot be used.

What is asked about an image depends on the image and the settings alone, never on its place in the corpus.
Every item (an annotation as a task sees it, a class of masks, a relation) is accounted for: it is in a chat,
or rejected (the data are at fault), filtered (by policy), thinned (``--tasks NAME=SHARE``) or unused (no chat
of several rounds could take it).
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow.parquet as pq

from pipelines import schema, storage
from pipelines.chats import lost
from pipelines.chats.commit import OF_DATASET, Composed
from pipelines.dialogues import captions, referring, regions
from pipelines.dialogues.pieces import Message, Ref
from pipelines.dialogues.scene import Item, Scene
from pipelines.dialogues.slices import slices_of
from pipelines.dialogues.style import Voice
from pipelines.shards import ROW_GROUP_ROWS
from samtok.errors import DataError

FIRST_IMAGE = 0


@dataclass(frozen=True)
class Task:
    """One kind of question. ``find`` lists what could be asked about an image, ``ask`` makes the messages of
    one item, and raises ``DataError`` for one that cannot be used."""

    find: Callable[[Scene], list[Item]]
    ask: Callable[[Item, Scene, Voice], list[Message]]
    annotation_tasks: tuple[str, ...] = ("referring",)  # of which annotations its items are made
    grouped: bool = True  # several items may be turns of one chat (``--turns-per-sample``)
    rounds: bool = False  # later items build on earlier ones


def _items(task: str, *, targets: bool = True) -> Callable[[Scene], list[Item]]:
    return lambda scene: scene.items(task, targets=targets)


TASKS: dict[str, Task] = {
    "res": Task(referring.find_single, partial(referring.ask_targets, "res")),
    "gres": Task(_items("referring"), partial(referring.ask_targets, "gres")),
    "grounding": Task(referring.find_single, partial(referring.ask_targets, "grounding")),
    "gcg": Task(_items("grounded_caption"), captions.ask_gcg, ("grounded_caption",), grouped=False),
    "psg": Task(_items("scene_graph"), captions.ask_psg, ("scene_graph",), grouped=False),
    "instances": Task(referring.find_instances, referring.ask_instances, ()),
    "region_caption": Task(
        _items("region_caption", targets=False), regions.ask_region_caption, ("region_caption",)
    ),
    "region_qa": Task(_items("region_qa", targets=False), regions.ask_region_qa, ("region_qa",)),
    "multi_round": Task(
        referring.find_rounds, referring.ask_round, ("referring", "scene_graph"), rounds=True
    ),
    "dialogue": Task(_items("dialogue", targets=False), regions.ask_dialogue, ("dialogue",), grouped=False),
}


_SCORED_BY_MORE = ("region_caption", "grounding")
_ABOUT = ("class_name", "questions", "question", "box_xyxy")
"""What benchmarks need of an item besides its text: DLC-Bench, MDVP-Bench, GroundingSuite-Eval."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the chats besides the rows; see ``config.py`` for what the options mean."""

    num_codes: int
    num_levels: int
    tasks: Mapping[str, float]
    styles: tuple[str, ...] = ("words",)
    wordings: int | None = None
    turns_per_sample: int = 1
    max_rounds: int = 4
    max_masks: int = 64
    min_iou: float | None = None
    keep_rle: bool = True
    psg: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    tasks_of: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # by dataset; else ``tasks``
    styles_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # likewise


@dataclass(frozen=True)
class Slice:
    """Rows of one file of a corpus of words, from a row group on; corpora are numbered."""

    corpus: int
    file: str
    first_group: int
    rows: int


def take_slice(words: tuple[str, ...], settings: Settings, payload: dict[str, Any], done: Composed) -> None:
    """Adds the chats of a ``Slice`` of one of the corpora of words."""
    part = Slice(**payload)
    for row in _rows(storage.join(words[part.corpus], part.file), part):
        done.add(compose_row(row, settings))


def _rows(where: str, part: Slice) -> Iterator[dict[str, Any]]:
    with storage.open_input(where) as file:
        parquet, left = pq.ParquetFile(file), part.rows
        groups = range(part.first_group, part.first_group - (-part.rows // ROW_GROUP_ROWS))
        if parquet.num_row_groups < groups.stop:
            raise DataError(f"{where} has {parquet.num_row_groups} row groups, the plan {groups.stop}.")
        for group in groups:
            table = parquet.read_row_group(group).slice(0, left)
            left -= len(table)
            yield from table.to_pylist()
    if left:
        raise DataError(f"{where} lacks {left} of the {part.rows} rows that its manifest promises.")


def compose_row(row: Mapping[str, Any], settings: Settings) -> Composed:
    """Composes all chats of one image.

    Args:
        row: In the shape of ``pipelines.schema.CODE_ROW``.
        settings: The same for the whole corpus.

    Returns:
        Chats in the shape of ``pipelines.schema.CHAT_ROW``, rejects, and counts: per task ``res/items_in``
        and so on, and the same without the task's name for all of them together.
    """
    scene = Scene(row, num_codes=settings.num_codes, num_levels=settings.num_levels)
    done = Composed()
    tasks = settings.tasks_of.get(row["dataset"], settings.tasks)
    for name, share in tasks.items():
        _Composer(name, share, scene, settings, done).compose()
    if settings.tasks_of:
        done.counts[OF_DATASET + row["dataset"]] += len(done.samples)
    used = {kind for name in tasks for kind in TASKS[name].annotation_tasks}
    kinds = [annotation["task"] for annotation in row["annotations"]]
    done.counts["rows_in"] += 1
    done.counts["rows_out"] += bool(done.samples)
    done.counts["annotations_in"] += len(kinds)
    done.counts["annotations_unused"] += sum(kind not in used for kind in kinds)
    return done


class _Composer:
    """Composes the chats of one task for one image into ``done``."""

    def __init__(self, name: str, share: float, scene: Scene, settings: Settings, done: Composed) -> None:
        self.name, self.task, self.share = name, TASKS[name], share
        self.scene, self.settings, self.done = scene, settings, done

    def compose(self) -> None:
        items = self._distinct(self.task.find(self.scene))
        self._count("items_in", len(items))
        usable = [item for item in items if self._is_kept(item) and self._is_usable(item)]
        chats = self._arranged(usable)
        self._count("items_unused", len(usable) - sum(map(len, chats)))
        for chat in chats:
            self._sample(chat)

    def _distinct(self, items: list[Item]) -> list[Item]:
        """Numbers the items whose id is taken, so that each has one; ids are from datasets."""
        seen: Counter[str] = Counter()
        found = []
        for item in items:
            seen[item.item_id] += 1
            if seen[item.item_id] == 1:
                found.append(item)
                continue
            self._count("items_in", 1)
            self._lost(item, DataError(f"{item.item_id!r} is there twice", reason="duplicate_id"))
        return found

    def _is_kept(self, item: Item) -> bool:
        """Draws the item by its id; a chat of several rounds is drawn as a whole, by its image."""
        share = self.share
        if share < 1 and self._rng("share", "" if self.task.rounds else item.item_id).random() >= share:
            self._count("items_thinned", 1)
            return False
        return True

    def _is_usable(self, item: Item) -> bool:
        """Checks the item's masks, and that its text can be asked."""
        try:
            if item.problem is not None:
                raise item.problem
            self.scene.check(item.mask_ids)
            reason = self._filtered(item)
            if reason is None:
                self.task.ask(item, self.scene, self._voice(item.item_id))
                return True
        except DataError as error:
            self._lost(item, error)
            return False
        self._lost(item, reason, stage="filter")
        return False

    def _filtered(self, item: Item) -> DataError | None:
        most, least = self.settings.max_masks, self.settings.min_iou
        if len(item.mask_ids) > most:
            return DataError(f"{len(item.mask_ids)} masks; --max-masks allows {most}", reason="max_masks")
        for mask_id in item.mask_ids if least is not None else ():
            iou = self.scene.masks[mask_id]["iou"]
            if iou is None:
                raise DataError(f"mask {mask_id!r} was not reconstructed, so has no IoU", reason="no_iou")
            if iou < least:
                message = f"mask {mask_id!r} has a reconstruction IoU of {iou:.3f}, below --min-iou {least}"
                return DataError(message, reason="low_iou")
        return None

    def _arranged(self, items: list[Item]) -> list[list[Item]]:
        """Puts items in chats. Turns of one chat are drawn from all over the image's items."""
        if self.task.rounds:
            return referring.arrange_rounds(items, self._rng("rounds"), self.settings.max_rounds)
        size = self.settings.turns_per_sample if self.task.grouped else 1
        if size > 1:
            items = sorted(items, key=lambda item: self._rng("turns", item.item_id).random())
        return [items[start : start + size] for start in range(0, len(items), size)]

    def _sample(self, items: Sequence[Item]) -> None:
        voice = self._voice(items[0].item_id)
        messages = [message for item in items for message in self.task.ask(item, self.scene, voice)]
        row = self.scene.row
        self.done.samples.append(
            {
                **{name: row[name] for name in ("dataset", "split", "image_id")},
                "sample_id": "/".join(
                    (row["dataset"], row["split"], row["image_id"], self.name, items[0].item_id)
                ),
                "task": self.name,
                "tags": sorted({tag for item in items for tag in item.tags}),
                "images": [{"uri": row["image_uri"], "height": row["height"], "width": row["width"]}],
                **written(messages, self.scene.masks, keep_rle=self.settings.keep_rle),
                "meta": json.dumps(self._meta(items, messages, voice), ensure_ascii=False, sort_keys=True),
            }
        )
        self._count("items_out", len(items))
        self._count("samples_out", 1)

    def _meta(self, items: Sequence[Item], messages: Sequence[Message], voice: Voice) -> dict[str, Any]:
        more: dict[str, Any] = {}
        if "referring" in self.task.annotation_tasks:
            more["slices"] = [slices_of(item, self.scene) for item in items]
        if unknown := [n for n, one in enumerate(messages) if one.role == "assistant" and not one.pieces]:
            more["unlearnt"] = unknown
        about = [{name: item.payload[name] for name in _ABOUT if name in item.payload} for item in items]
        if self.name in _SCORED_BY_MORE and any(about):
            more["about"] = about
        return {
            "style": voice.style,
            "templates": voice.used,
            "items": [item.item_id for item in items],
            "expressions": [item.text for item in items],
            "targets": [list(item.targets) for item in items],
            **more,
        }

    def _voice(self, item_id: str) -> Voice:
        rng = self._rng("voice", item_id)
        styles = self.settings.styles_of.get(self.scene.row["dataset"], self.settings.styles)
        return Voice(rng.choice(styles), rng, self.settings.psg, self.settings.wordings)

    def _rng(self, purpose: str, item_id: str = "") -> random.Random:
        row = self.scene.row
        key = [self.settings.seed, purpose, self.name, row["dataset"], row["split"], row["image_id"], item_id]
        return random.Random(hashlib.sha256(json.dumps(key).encode()).digest())

    def _lost(self, item: Item, error: DataError, *, stage: str = "compose") -> None:
        row = self.scene.row
        message = f"{self.name} {item.item_id!r}: {error}"
        self.done.rejects.append(schema.reject(stage, row["dataset"], row["image_id"], error.reason, message))
        self._count("items_filtered" if stage == "filter" else "items_rejected", 1)
        areas = {mask_id: mask["area_px"] for mask_id, mask in self.scene.masks.items()}
        for name, number in lost.count(item.targets, areas).items():
            self._count(name, number)

    def _count(self, name: str, number: int) -> None:
        self.done.counts[name] += number
        self.done.counts[f"{self.name}/{name}"] += number


def written(
    messages: Sequence[Message], masks: Mapping[str, Mapping[str, Any]], *, keep_rle: bool
) -> dict[str, list[dict[str, Any]]]:
    """Writes messages with the words of their masks; returns the fields ``messages`` and ``masks`` of a row.

    The image is the first part of the first user's message. Masks are listed as they are first named.
    """
    rows, named = [], {}
    first_user = next((place for place, message in enumerate(messages) if message.role == "user"), None)
    for place, message in enumerate(messages):
        mask_ids = [piece.mask_id for piece in message.pieces if isinstance(piece, Ref)]
        parts = (masks[p.mask_id]["words"] if isinstance(p, Ref) else p for p in message.pieces)
        text = {"text": "".join(parts), "image": None}
        image = [{"text": None, "image": FIRST_IMAGE}] if place == first_user else []
        rows.append({"role": message.role, "content": [*image, text], "mask_ids": mask_ids})
        named |= {mask_id: masks[mask_id] for mask_id in mask_ids if mask_id not in named}
    return {"messages": rows, "masks": [_mask(mask, keep_rle) for mask in named.values()]}


def _mask(mask: Mapping[str, Any], keep_rle: bool) -> dict[str, Any]:
    kept = {name: mask[name] for name in ("mask_id", "codes", "words", "label", "iou")}
    return {**kept, "image": FIRST_IMAGE, "rle": mask["rle"] if keep_rle else None}
