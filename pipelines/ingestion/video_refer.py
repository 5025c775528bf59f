"""VideoRefer-Bench-D: captions of objects in videos (DAMO-NLP-SG/VideoRefer, Benchmark.md).

The source is one list of ``{id, video: "name.mp4", caption, frame_idx: "12", annotation: [{"0":
{"segmentation": RLE}, ...}, ...]}``, an entry of ``annotation`` for each object, with its masks by the number
of the frame. It has 400 items and is held in memory.

All items of a video share its frames. Object ``n`` of an item, counted from 1, has the mask id ``ID-n``. The
caption is of the first object in the frame ``frame_idx``, as in the evaluation of single frames; that frame
is read whatever the stride is. Where the object has no mask in it, the caption is a reject; another frame is
never taken instead.
"""

import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pipelines import storage
from pipelines.ingestion import annotations, records
from pipelines.ingestion.file_reader import witness_of
from pipelines.ingestion.reader import Input, Reject
from pipelines.ingestion.records import Record
from pipelines.ingestion.video_frames import Frame, Layout, Masks, number_of, require_frames
from samtok.errors import DataError


@dataclass
class _Shown:
    """What the items of a video have in one of its frames."""

    masks: list[tuple[str, Any]] = field(default_factory=list)
    texts: list[Record] = field(default_factory=list)


_Video = defaultdict[int, _Shown]


class VideoReferLayout(Layout):
    """One list of items."""

    frame_paths: ClassVar = ("{video}/{frame:05d}.jpg",)
    of_videos: ClassVar = True

    def witness(self, inputs: Sequence[Input], places: Sequence[Record]) -> dict[str, str]:
        """Returns ``{file name: "size:sha256"}``."""
        return witness_of(self.reader.source)

    def frames_of(self, part: str) -> Iterator[Frame | Reject]:
        """Yields all frames; DataError ``video_layout`` if the file is no list, and as ``require_frames``."""
        source = self.reader.source
        items = records.parse_json(storage.read_bytes(source), source)
        if not isinstance(items, list):
            fault = f"{source} holds a {type(items).__name__}, expected a list (VideoRefer-Bench-D)"
            raise DataError(fault, reason="video_layout")
        require_frames(self.reader)
        found = records.by_id((records.id_of(item), item) for item in items)
        for index, item in found.nameless:
            message = f"item {index} is {item!r:.200}, expected an object with an id"
            yield self.reader.reject(f"#{index}", "annotation_id", message)
        for item_id, _, end in found.repeated:
            yield self.reader.reject(item_id, "duplicate_annotation_id", f"item {item_id} {end}")
        videos: dict[str, _Video] = defaultdict(lambda: defaultdict(_Shown))
        for item_id, item in found.kept.items():
            yield from self._add(item_id, item, videos)
        for name, frames in videos.items():
            for index, number in enumerate(sorted(frames)):
                shown = frames[number]
                if index % self.reader.stride == 0 or shown.texts:
                    masks = sorted(shown.masks, key=lambda one: one[0])
                    where = {"masks": masks}
                    texts = sorted(shown.texts, key=lambda one: one["id"])
                    yield Frame(name, f"{number:05d}", where, len(masks), texts=texts)

    def _add(self, item_id: str, item: Record, videos: dict[str, _Video]) -> Iterator[Reject]:
        """Adds an item to its video; yields what cannot be used of it."""
        listed = item.get("annotation")
        try:
            video = records.image_name(item.get("video"), "video")
            if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
                fault = f"annotation is {listed!r:.200}, expected a list of objects by frame"
                raise DataError(fault, reason="video_record")
        except DataError as error:
            yield self.reader.reject(item_id, error.reason, f"item {item_id}: {error}")
            return
        frames = videos[posixpath.splitext(video)[0]]
        for number, by_frame in enumerate(listed, start=1):
            for key, one in by_frame.items():
                frame, mask_id = number_of(key), f"{item_id}-{number}"
                if frame is None:
                    message = f"frame {key!r:.80} of object {mask_id} is no number"
                    yield records.mask_reject(self.reader.name, item_id, mask_id, "frame_number", message)
                else:
                    mask = one.get("segmentation") if isinstance(one, dict) else one
                    frames[frame].masks.append((mask_id, mask))
        try:
            frame, text = self._caption(item, item_id, frames)
            frames[frame].texts.append(text)
        except DataError as error:
            yield annotations.annotation_reject(self.reader.name, item_id, item_id, error)

    def _caption(self, item: Record, item_id: str, frames: _Video) -> tuple[int, Record]:
        text = annotations.text_of(item.get("caption"), "caption")
        frame, mask_id = number_of(item.get("frame_idx")), f"{item_id}-1"
        has = frame is not None and frame in frames and mask_id in dict(frames[frame].masks)
        if frame is None or not has:
            fault = f"the first object has no mask in frame_idx {item.get('frame_idx')!r:.40}"
            raise DataError(fault, reason="caption_frame")
        return frame, {
            "id": item_id,
            "task": "region_caption",
            "text": text,
            "masks": [mask_id],
            "tags": [],
        }

    def masks_of(self, key: str, where: Record) -> Masks:
        """Returns the RLEs of one frame; of one object's several in it none is kept."""
        times = Counter(mask_id for mask_id, _ in where["masks"])
        usable, rejects = list[Record](), list[Reject]()
        for mask_id, segmentation in where["masks"]:
            if times[mask_id] == 1:
                usable.append({"mask_id": mask_id, "segmentation": segmentation})
            else:
                message = f"object {mask_id} has {times[mask_id]} masks in frame {key}; none is kept"
                reason = "duplicate_annotation_id"
                rejects.append(records.mask_reject(self.reader.name, key, mask_id, reason, message))
        return Masks(usable, rejects)
