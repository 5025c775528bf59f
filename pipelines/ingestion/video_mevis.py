"""MeViS and ReVOS: expressions of videos, and one JSON of all masks (family F5).

- MeViS (henghuiding/MeViS, ReferFormer_dataset.py): ``anno_id`` of an expression lists its objects, none for
  no target. ``mask_dict.json`` has for each of them an RLE or null for each of the *sorted* frames. It may
  have gigabytes: it is read once, entry by entry, and of each mask only its place is kept and read by range.
- ReVOS (cilinyan/ReVOS-api, cilinyan/VISA): the same, with the size of each video, and ``type_id`` of each
  expression, which becomes a tag. Names of videos are relative paths. The official evaluation takes frames as
  they are stored, its training loader sorts them, so a video where that differs is rejected.

An expression all of whose objects are in no frame is taken as one without a target, and told as
``targets_nowhere``. The size of a video is that of most of its masks, unless it is stated.
"""

import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, ClassVar, NamedTuple, TypeAlias

from pipelines import storage
from pipelines.ingestion import json_stream, records
from pipelines.ingestion.external_sort import ExternalSort
from pipelines.ingestion.file_reader import size_bytes, witness_of
from pipelines.ingestion.reader import Input, Reject
from pipelines.ingestion.records import Record
from pipelines.ingestion.video_expressions import ExpressionLayout, Video
from pipelines.ingestion.video_frames import Frame, Masks
from pipelines.storage.threads import map_ahead
from samtok import masks
from samtok.errors import DataError

TYPE_TAGS = {0: "referring", 1: "reasoning", 2: "nan"}
"""Names of ReVOS' ``type_id``; its evaluation leaves the last one out of its means."""

_THREADS = 8  # masks of a frame that are fetched at a time

_Row: TypeAlias = tuple[str, int, str, int, int]  # video, index of the frame, object, offset, size in bytes


class _Indexed(NamedTuple):
    """What one pass over ``mask_dict.json`` tells, besides where masks are."""

    known: set[str]
    """Objects that it has."""
    visible: set[str]
    """Those that are in a frame of their video."""
    faults: dict[str, tuple[str, str]]
    """Reason and message of those whose masks cannot be used."""
    sizes: dict[str, Counter[tuple[int, int]]]
    """How often masks of a video have a size."""


class MevisLayout(ExpressionLayout):
    """Expressions and one file of all masks."""

    @property
    def _mask_dict(self) -> str:
        beside = posixpath.join(posixpath.dirname(self.reader.source), "mask_dict.json")
        return self.reader.video_masks or beside

    def witness(self, inputs: Sequence[Input], places: Sequence[Record]) -> dict[str, str]:
        """Returns ``{file name: "size:sha256"}`` of both files."""
        return witness_of(self.reader.source) | witness_of(self._mask_dict)

    def beginning(self, limit: int) -> int | None:
        """Returns the number of frames where the masks are too many to go through."""
        if size_bytes(self._mask_dict) <= self.reader.max_head_bytes:
            return None
        return sum(-(-len(video.frames) // self.reader.stride) for video in self.videos()[0].values())

    def frames_of(self, part: str) -> Iterator[Frame | Reject]:
        """Yields all frames by ascending video; DataError if a file has another layout."""
        videos, rejects = self.videos()
        yield from rejects
        with ExternalSort[_Row]() as rows:
            index = self._index(videos, rows)
            by_frame = groupby(rows, lambda row: row[:2])
            there = next(by_frame, None)
            for name in sorted(videos):
                video, told = self._known(name, videos[name], index)
                yield from told
                own = [mask_id for mask_id in videos[name].objects if mask_id in index.known]
                faults = {mask_id: index.faults[mask_id] for mask_id in own if mask_id in index.faults}
                for number in range(0, len(video.frames), self.reader.stride):
                    at: dict[str, list[int]] = {}
                    if there is not None and there[0] == (name, number):
                        at = {row[2]: [row[3], row[4]] for row in there[1] if row[2] not in faults}
                        there = next(by_frame, None)
                    absent = [mask_id for mask_id in own if mask_id not in at and mask_id not in faults]
                    where = {"at": at, "absent": absent, "faults": faults}
                    yield Frame(name, video.frames[number], where, len(own), video.size, video.texts)

    def masks_of(self, key: str, where: Record) -> Masks:
        """Reads the RLEs of one frame, each by its place."""
        usable: list[Record] = [{"mask_id": one, "segmentation": None} for one in where["absent"]]
        rejects = [
            records.mask_reject(self.reader.name, key, mask_id, reason, message)
            for mask_id, (reason, message) in where["faults"].items()
        ]
        places = where["at"]
        for mask_id, raw in zip(
            places, map_ahead(self._range, places.values(), threads=_THREADS), strict=True
        ):
            try:
                segmentation = records.parse_json(raw, f"mask {mask_id} of frame {key}")
            except DataError as error:
                lost = records.mask_reject(self.reader.name, key, mask_id, error.reason, str(error))
                rejects.append(lost)
            else:
                usable.append({"mask_id": mask_id, "segmentation": segmentation})
        return Masks(usable, rejects)

    def _range(self, place: list[int]) -> bytes:
        return storage.read_bytes(self._mask_dict, offset=place[0], size=place[1])

    def _index(self, videos: dict[str, Video], rows: ExternalSort[_Row]) -> _Indexed:
        """Goes through all masks once, and gives the places of those that are read to ``rows``."""
        owners: dict[str, list[str]] = defaultdict(list)
        for name, video in videos.items():
            for mask_id in video.objects:
                owners[mask_id].append(name)
        index = _Indexed(set(), set(), {}, defaultdict(Counter))
        uri = self._mask_dict
        with storage.open_input(uri) as stream:
            members = json_stream.members_of(stream, uri)
            if isinstance(members, str):
                fault = f"{uri} holds a {members}, expected an object with a list of masks for each anno_id"
                raise DataError(fault, reason="video_layout")
            for member in members:
                if member.key not in owners:
                    continue
                if member.key in index.known:
                    fault = f"anno_id {member.key} is repeated in mask_dict.json; none is kept"
                    index.faults[member.key] = ("duplicate_annotation_id", fault)
                    continue
                index.known.add(member.key)
                self._index_object(member, {name: videos[name] for name in owners[member.key]}, index, rows)
        return index

    def _index_object(
        self,
        member: json_stream.Member,
        owners: dict[str, Video],
        index: _Indexed,
        rows: ExternalSort[_Row],
    ) -> None:
        places: list[tuple[int, int] | None] = []
        for entry in member.entries or ():
            if entry.value is not None and member.key not in index.visible and _is_visible(entry.value):
                index.visible.add(member.key)
            if (size := records.stated_size(entry.value)) is not None:
                for name in owners:
                    index.sizes[name][size] += 1
            places.append(None if entry.value is None else (entry.offset, entry.size_bytes))
        for name, video in owners.items():
            if member.entries is None or len(places) != len(video.frames):
                has = "no list" if member.entries is None else f"{len(places)} masks"
                message = f"anno_id {member.key} has {has}, its video {name} {len(video.frames)} frames"
                index.faults[member.key] = ("mask_list", message)
                continue
            for number in range(0, len(places), self.reader.stride):
                if (place := places[number]) is not None:
                    rows.add((name, number, member.key, *place), len(name) + 32)

    def _known(self, name: str, video: Video, index: _Indexed) -> tuple[Video, list[Reject]]:
        """Returns a video of which expressions whose objects are in no frame have no target, and notes of
        these."""
        texts, told = [], []
        for text in video.texts:
            named = set(text["masks"])
            seen = not named.isdisjoint(index.visible) or not named.isdisjoint(index.faults)
            if named and named <= index.known and not seen:
                message = f"no frame of video {name} has an object of expression {text['id']}: no target"
                label = f"annotation {text['id']}"
                told.append(self.reader.reject(name, "targets_nowhere", message, mask_id=label))
                text = {**text, "masks": []}
            texts.append(text)
        size = video.size
        if size is None and index.sizes[name]:
            height, width = records.commonest_size(index.sizes[name])
            size = {"height": height, "width": width}
        return Video(video.frames, texts, size), told


def _is_visible(rle: Any) -> bool:
    """Tells whether a mask has a pixel; one that cannot be read may have."""
    try:
        height, width = rle["size"]
        counts = masks.to_counts(rle, height=height, width=width)
        return counts is not None and masks.area(counts, height=height, width=width) > 0
    except (DataError, KeyError, TypeError, ValueError):
        return True


class RevosLayout(MevisLayout):
    """MeViS' layout with sizes, types and names of videos that are paths."""

    frame_paths: ClassVar = ("{video}/{frame}.jpg", "JPEGImages/{video}/{frame}.jpg")

    def _tags(self, expression: Record) -> list[str]:
        kind = expression.get("type_id")
        if kind is not None and (type(kind) is not int or kind not in TYPE_TAGS):
            raise DataError(f"type_id is {kind!r:.40}, expected 0, 1 or 2", reason="annotation_tags")
        return [] if kind is None else [TYPE_TAGS[kind]]

    def _ordered(self, frames: list[str]) -> list[str]:
        if frames != sorted(frames):
            fault = "its frames are not sorted, so the order of its masks cannot be told"
            raise DataError(fault, reason="frame_order")
        return frames

    def _stated(self, body: Record) -> Record | None:
        return records.picked(body, ("height", "width")) or None
