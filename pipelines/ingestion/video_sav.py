"""SA-V: masklets of every fourth frame (facebookresearch/sam2, sav_dataset/README.md).

- train (``sav``): ``SOURCE/sav_000/sav_000001_auto.json`` and ``_manual.json``, one JSON for each video, in
  which ``masklet[k][i]`` is the RLE of object ``i`` in the video's frame ``4 * k``. Sizes are floats. Files
  are read once, to list; of a frame only its place in the file is kept, and read by range.
- val and test (``sav_masks``): ``SOURCE/sav_000001/000/00004.png``, where the source is Annotations_6fps: a
  PNG for each object and frame, in which every value but 0 is inside.

A video whose JSON cannot be used is one reject; how many masks are lost with it is not known, and counts as
0. The last annotated frames may have no image: videos can be a frame shorter than their JSON says.
"""

import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, ClassVar, NamedTuple

from pipelines import storage
from pipelines.ingestion import json_stream, label_maps, records
from pipelines.ingestion.archives import name_fault
from pipelines.ingestion.external_sort import ExternalSort
from pipelines.ingestion.reader import Input, Reject
from pipelines.ingestion.records import Record
from pipelines.ingestion.video_frames import Frame, Layout, Masks, require_frames
from pipelines.storage.threads import map_ahead
from samtok import masks
from samtok.errors import DataError

FRAMES_APART = 4
"""Frames of a video from one annotated frame to the next: 24 a second, of which 6 are annotated."""

_PARTS = 64  # of a large listing, at least
_THREADS = 8  # PNGs of a frame that are fetched at a time
_FIELDS = ("video_id", "video_height", "video_width", "masklet_id")
_PNG = re.compile(r"(?P<video>.+)/(?P<object>[^/]+)/(?P<frame>[^/]+)\.png", re.DOTALL)


class _Place(NamedTuple):
    """Where the masks of one frame are in its file."""

    offset: int
    size_bytes: int
    num_masks: int | None  # None if it is no list


class SavLayout(Layout):
    """Folders of JSON files of masklets."""

    frame_paths: ClassVar = ("{video}/{frame:05d}.jpg", "{folder}/{video}/{frame:05d}.jpg")
    of_videos: ClassVar = True

    @property
    def _suffix(self) -> str:
        return f"_{self.reader.masklets}.json"

    def parts(self) -> tuple[str, ...]:
        """Returns beginnings of the names of files; DataError ``video_layout`` if there are none of the kind,
        and as ``require_frames``."""
        self._check()
        return tuple(storage.beginnings(self.reader.source, _PARTS))

    def _check(self) -> None:
        if not any(self._names()):
            raise DataError(
                f"there is no file *{self._suffix} below {self.reader.source}; --corpus.source is the "
                "folder of "
                "SA-V's JSON files, and --corpus.masklets says which of them are read",
                reason="video_layout",
            )
        require_frames(self.reader)

    def frames_of(self, part: str) -> Iterator[Frame | Reject]:
        """Yields the frames of all files whose names begin so."""
        for name in self._names(part):
            yield from self._of_file(name)

    def beginning(self, limit: int) -> Iterator[Frame | Reject]:
        """Yields the frames of the first files."""
        self._check()
        taken = 0
        for name in self._names():
            for frame in self._of_file(name):
                taken += isinstance(frame, Frame)
                yield frame
            if taken > limit:
                return

    def witness(self, inputs: Sequence[Input], places: Sequence[Record]) -> dict[str, str]:
        """Returns the sizes of the files of these inputs, else names and sizes of the first files."""
        found = label_maps.sizes_now((place["file"] for place in places), self._uri)
        return found or {"masklets": label_maps.first_files(self.reader.source)}

    def masks_of(self, key: str, where: Record) -> Masks:
        """Reads the RLEs of one frame."""
        uri = self._uri(where["file"])
        raw = storage.read_bytes(uri, offset=where["at"][0], size=where["at"][1])
        found = records.parse_json(raw, f"frame {key} in {uri}")
        if not isinstance(found, list) or len(found) != where["num"]:
            raise DataError(f"{uri} has changed since the corpus was listed", reason="masklets_changed")
        found += [None] * (len(where["ids"]) - len(found))  # objects that its list ends before are absent
        usable, rejects = list[Record](), list[Reject]()
        for index, segmentation in enumerate(found):
            mask_id = where["ids"][index] if index < len(where["ids"]) else f"#{index}"
            if mask_id.startswith("#"):
                message = f"mask {index} of frame {key} has no id in masklet_id that is its own"
                rejects.append(records.mask_reject(self.reader.name, key, mask_id, "annotation_id", message))
            else:
                usable.append({"mask_id": mask_id, "segmentation": segmentation})
        return Masks(usable, rejects)

    def _names(self, part: str = "") -> Iterator[str]:
        root = len(self.reader.source.rstrip("/")) + 1
        for found in storage.iter_files(self.reader.source, beginning=part):
            if found.uri.endswith(self._suffix):
                yield found.uri[root:]

    def _uri(self, name: str) -> str:
        return self.reader.below(self.reader.source, name)

    def _of_file(self, name: str) -> Iterator[Frame | Reject]:
        """Yields the frames of one video; what cannot be read is one reject of it."""
        folder, base = posixpath.split(name.removesuffix(self._suffix))
        shown = base.encode(errors="backslashreplace").decode()
        try:
            if fault := name_fault(name):
                raise DataError(f"{name!r:.200} {fault} ({self.reader.source})", reason="unsafe_path")
            about, places = self._parsed(self._uri(name), base)
        except storage.ObjectError as error:
            yield self.reader.reject(shown, f"record_{error.reason}", str(error))
            return
        except DataError as error:
            yield self.reader.reject(shown, error.reason, str(error))
            return
        ids = label_maps.mask_ids_of({"id": one} for one in about["masklet_id"])
        size = {"height": about.get("video_height"), "width": about.get("video_width")}
        for index in range(0, len(places), self.reader.stride):
            frame, place = f"{FRAMES_APART * index:05d}", places[index]
            if place.num_masks is None:
                message = f"masklet {index} of {name} is no list"
                yield self.reader.reject(f"{base}/{frame}", "video_frame", message)
                continue
            at = [place.offset, place.size_bytes]
            where = {"file": name, "at": at, "ids": ids, "num": place.num_masks}
            num_masks = max(len(ids), place.num_masks)
            yield Frame(base, frame, where, num_masks, size, folder=folder, place=name)

    def _parsed(self, uri: str, video: str) -> tuple[Record, list[_Place]]:
        """Returns what a file says of its video, and where the masks of each annotated frame are."""
        about: Record = {}
        places: list[_Place] | None = None
        with storage.open_input(uri) as stream:
            members = json_stream.members_of(stream, uri)
            for member in () if isinstance(members, str) else members:
                if member.key == "masklet" and member.entries is not None and places is None:
                    places = [_place(entry) for entry in member.entries]
                elif member.key == "masklet":
                    raise _record_fault(uri, "has masklet twice or as no list")
                elif member.key in _FIELDS:
                    listed = None if member.entries is None else [one.value for one in member.entries]
                    about[member.key] = member.value if listed is None else listed
        if places is None or not isinstance(about.get("masklet_id"), list):
            raise _record_fault(uri, "lacks the list masklet or masklet_id")
        if about.get("video_id", video) != video:
            raise DataError(f"{uri} is of video {about['video_id']!r:.80}, not {video}", reason="file_name")
        return about, places


def _record_fault(uri: str, fault: str) -> DataError:
    return DataError(
        f"{uri} {fault}, expected an object with masklet, masklet_id, video_height and video_width (SA-V)",
        reason="video_record",
    )


def _place(entry: json_stream.Entry) -> _Place:
    num_masks = len(entry.value) if isinstance(entry.value, list) else None
    return _Place(entry.offset, entry.size_bytes, num_masks)


class SavMasksLayout(Layout):
    """A folder of PNGs, one for each object and frame."""

    frame_paths: ClassVar = ("{video}/{frame}.jpg",)

    def frames_of(self, part: str) -> Iterator[Frame | Reject]:
        """Yields all frames that have PNGs; DataError ``video_layout`` if none has."""
        root = self.reader.source.rstrip("/") + "/"
        with ExternalSort[tuple[str, str, str, str]]() as rows:
            found = False
            for file in storage.iter_files(self.reader.source):
                name = file.uri[len(root) :]
                if match := _PNG.fullmatch(name):
                    found = True
                    if fault := name_fault(match["object"]):
                        key, one = (
                            text.encode(errors="backslashreplace").decode()
                            for text in (f"{match['video']}/{match['frame']}", match["object"])
                        )
                        message = f"{name!r:.200} {fault} ({root})"
                        yield records.mask_reject(self.reader.name, key, one, "unsafe_path", message)
                        continue
                    rows.add((match["video"], match["frame"], match["object"], name), 3 * len(name))
            if not found:
                raise DataError(
                    f"there is no VIDEO/OBJECT/FRAME.png below {root}; --corpus.source is the folder "
                    "Annotations_6fps of SA-V's val or test",
                    reason="video_layout",
                )
            for _, of_video in groupby(rows, lambda row: row[0]):
                yield from self._of_video(of_video)

    def _of_video(self, rows: Iterable[tuple[str, str, str, str]]) -> Iterator[Frame]:
        for index, ((video, frame), of_frame) in enumerate(groupby(rows, lambda row: row[:2])):
            objects = [[row[2], row[3]] for row in of_frame]
            if index % self.reader.stride == 0:
                yield Frame(video, frame, {"objects": objects}, len(objects))

    def witness(self, inputs: Sequence[Input], places: Sequence[Record]) -> dict[str, str]:
        """Returns the sizes of the PNGs of these inputs, else names and sizes of the first files."""
        names = [name for place in places for _, name in place["objects"]]
        found = label_maps.sizes_now(names, lambda name: self.reader.below(self.reader.source, name))
        return found or {"masks": label_maps.first_files(self.reader.source)}

    def masks_of(self, key: str, where: Record) -> Masks:
        """Reads the PNGs of one frame; one that cannot be read is one mask less."""
        names = [name for _, name in where["objects"]]
        usable, rejects = list[Record](), list[Reject]()
        for (mask_id, _), found in zip(
            where["objects"], map_ahead(self._read, names, threads=_THREADS), strict=True
        ):
            if isinstance(found, DataError):
                rejects.append(records.mask_reject(self.reader.name, key, mask_id, found.reason, str(found)))
            else:
                usable.append({"mask_id": mask_id, "segmentation": found})
        return Masks(usable, rejects)

    def _read(self, name: str) -> dict[str, Any] | DataError:
        try:
            values = label_maps.read_map(self.reader.below(self.reader.source, name))
        except DataError as error:
            return error
        return {"size": list(values.shape), "counts": masks.encode(values)}
