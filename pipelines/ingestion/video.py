"""Videos whose frames become rows (family F5): SA-V, MeViS, ReVOS, Ref-YouTube-VOS, VideoRefer-Bench-D.

The image id of a row is ``VIDEO/FRAME``. The id of a mask is that of its object, the same in every frame; an
object that is absent in a frame is there as an empty mask, so whoever filters counts it. Expressions are of a
video and go along with each of its frames. There they name those of their objects that are present:

- an expression without objects, or whose objects are in no frame of the video, means nothing in every frame;
- in a frame that none of its objects is in it is left out, which is told as ``target_absent``, or with
  ``absent_targets`` ``no_target`` it means nothing there;
- a mask that cannot be read stays named, as in every reader.

What a dataset calls these things, and in which files they are, is a layout's (``LAYOUTS``).
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from pipelines.ingestion import annotations, image_source, records, video_frames
from pipelines.ingestion.annotations import Annotation
from pipelines.ingestion.archives import name_fault
from pipelines.ingestion.file_reader import first_of
from pipelines.ingestion.reader import MAX_NAMES, Head, Input, ReadResult, Reject, in_order
from pipelines.ingestion.records import Record
from pipelines.ingestion.video_frames import Frame, Layout, VideoFiles
from pipelines.ingestion.video_mevis import MevisLayout, RevosLayout
from pipelines.ingestion.video_refer import VideoReferLayout
from pipelines.ingestion.video_sav import SavLayout, SavMasksLayout
from pipelines.ingestion.video_ytvos import YtvosLayout
from samtok.errors import DataError

LAYOUTS: dict[str, type[Layout]] = {
    "sav": SavLayout,
    "sav_masks": SavMasksLayout,
    "mevis": MevisLayout,
    "revos": RevosLayout,
    "ytvos": YtvosLayout,
    "videorefer": VideoReferLayout,
}


@dataclass(frozen=True, kw_only=True)
class VideoReader(VideoFiles):
    """Reads the frames of a dataset of videos; ``images`` is the folder of the frames."""

    @property
    def layout(self) -> Layout:
        """How the dataset is written."""
        assert self.video_layout is not None  # see check_options
        return LAYOUTS[self.video_layout](self)

    def witness(self, inputs: Sequence[Input] = ()) -> dict[str, str]:
        """Returns sizes and digests of the files of masks and texts, of many files those of these inputs."""
        return self.layout.witness(inputs, [json.loads(item.payload)["masks"] for item in inputs])

    def parts(self) -> tuple[str, ...]:
        """Returns what the layout lists apart; raises as ``inputs``."""
        return self.layout.parts()

    def inputs_of(self, part: str) -> Iterator[Input | Reject]:
        """Yields the frames of a part by ascending key and place, and rejects; raises as ``inputs``."""
        return self._sorted(self.layout.frames_of(part))

    def inputs(self) -> Iterator[Input | Reject]:
        """Yields rejects, and frames by ascending key.

        Raises:
            DataError: If a file has another layout, there are no files of masks, or no frames were extracted.
            StorageError: If something cannot be listed or read, or sorted on the local disk.
        """
        parts = self.parts()
        listed = chain.from_iterable(map(self.inputs_of, parts))
        yield from listed if len(parts) == 1 else in_order(self.name, listed)

    def head(self, limit: int = MAX_NAMES) -> Head:
        """Lists the first frames; of a large file of masks counts those that there can be."""
        begun = self.layout.beginning(limit)
        if isinstance(begun, int):
            return Head([], more=True, unlisted=min(limit, begun))
        return first_of(self.inputs() if begun is None else self._sorted(begun), limit)

    def _sorted(self, frames: Iterable[Frame | Reject]) -> Iterator[Input | Reject]:
        made = (self._input(frame) if isinstance(frame, Frame) else frame for frame in frames)
        return in_order(self.name, made)

    def _input(self, frame: Frame) -> Input | Reject:
        key = f"{frame.video}/{frame.frame}"
        if fault := name_fault(key):
            shown = key.encode(errors="backslashreplace").decode()
            message = f"{shown!r:.200} {fault} ({self.source})"
            return self.reject(shown, "unsafe_path", message, num_masks=frame.num_masks or 0)
        payload = {**frame._asdict(), "texts": list(frame.texts)}
        del payload["num_masks"], payload["place"]
        return Input(key, records.compact_json(payload), frame.num_masks, frame.place)

    def read(self, item: Input) -> ReadResult:
        """Reads the masks of one frame, and looks whether its image is there."""
        record = json.loads(item.payload)
        layout = self.layout
        try:
            image_uri = video_frames.image_of(self, layout, record)
            found = layout.masks_of(item.key, record["masks"])
            image_hw = self._size(record, [mask.get("segmentation") for mask in found.usable], image_uri)
        except DataError as error:
            return ReadResult.refused(self.name, item.key, error, num_masks=item.num_masks or 0)
        result = records.make_row(self, item.key, image_uri, image_hw, found.usable, found.rejects)
        assert result.row is not None
        absent = {mask["mask_id"] for mask in result.row["masks"] if "empty" in mask["flags"]}
        made, told = self._texts(item.key, record["texts"], absent)
        return annotations.attach(result, made, told)

    def _size(self, record: Record, segmentations: list[Any], image_uri: str) -> tuple[int, int]:
        """Returns height and width in pixels: as stated, else those of the masks, else of the image."""
        where = f"frame {record['frame']} of video {record['video']}"
        if record["size"] is not None:
            return records.size_hw(record["size"], where)
        return records.size_hw_of_masks(segmentations, where) or image_source.read_size_hw(image_uri)

    def _texts(
        self, key: str, texts: list[Record], absent: set[str]
    ) -> tuple[list[Annotation], list[Reject]]:
        """Returns the annotations of a frame in which these objects are absent, and one note on those that
        are left out because of it."""
        made: list[Annotation] = []
        left_out: list[str] = []
        for text in texts:
            here = [mask_id for mask_id in text["masks"] if mask_id not in absent]
            expression = text["task"] == "referring"
            if here or not text["masks"] or (expression and self.absent_targets == "no_target"):
                about = {"text": text["text"], "tags": text["tags"]}
                made.append(annotations.annotation(text["id"], text["task"], here, **about))
            else:
                left_out.append(text["id"])
        if not left_out:
            return made, []
        message = f"none of their objects is in the frame: left out are {len(left_out)} of {len(texts)} texts"
        return made, [self.reject(key, "target_absent", message, mask_id="texts")]
