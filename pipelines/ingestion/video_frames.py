"""What the layouts of video datasets have in common: options, frames, and where their images are.

A frame is a row. A layout lists frames, each with all that is needed to read its masks later, and reads these
masks (``Layout``). Videos themselves are not decoded: frames are images, extracted before.
"""

import posixpath
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from pipelines import storage
from pipelines.config import AtLeast1, Place
from pipelines.ingestion import image_source
from pipelines.ingestion.file_reader import FileReader
from pipelines.ingestion.folder_reader import PICTURES
from pipelines.ingestion.reader import MAX_NAMES, Input, Reject
from pipelines.ingestion.records import Record
from samtok.errors import ConfigError, DataError

VideoLayout = Literal["sav", "sav_masks", "mevis", "revos", "ytvos", "videorefer"]

EXTRACT = (
    "Videos are not decoded here: extract every frame of each first, numbered from 0, as in "
    "`mkdir -p FRAMES/sav_000001 && ffmpeg -i sav_000001.mp4 -fps_mode passthrough -q:v 2 -start_number 0 "
    "FRAMES/sav_000001/%05d.jpg`, and name FRAMES as --corpus.images"
)
"""What to do where there are no frames. With ``passthrough`` none is doubled or dropped."""

_FIELD = re.compile(r"\{(?P<name>video|folder|frame)(?::0(?P<digits>[1-9])d)?\}")


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """Options of videos."""

    video_layout: VideoLayout | None = None
    """video: layout. sav: SA-V's train, a JSON of masklets for each video; sav_masks: its val and test, a PNG
    for each object and frame; mevis: MeViS, expressions and mask_dict.json; revos: ReVOS, the same with sizes
    and kinds of expressions; ytvos: Ref-YouTube-VOS, expressions and palette PNGs; videorefer:
    VideoRefer-Bench-D."""
    stride: AtLeast1 = 1
    """video: every how many annotated frames of a video one is read, from its first. SAMTok: 10 for SA-V."""
    masklets: Literal["auto", "manual"] = "auto"
    """video, sav: which files are read, *_auto.json (as SAMTok) or *_manual.json."""
    video_masks: Place | None = None
    """video: URI of the masks; by default mask_dict.json beside --corpus.source (mevis, revos), or the folder
    Annotations beside --corpus.images (ytvos)."""
    frame_path: str | None = None
    """video: name of a frame below --corpus.images, made of {video}, {folder} (of the masklets, sav) and
    {frame}; {frame:05d} is its number in five digits. By default the published one: {video}/{frame:05d}.jpg
    (sav, videorefer), else {video}/{frame}.jpg."""
    absent_targets: Literal["skip", "no_target"] = "skip"
    """video: what becomes of an expression in a frame that none of its objects is in. skip: it is left out
    there, and counted; no_target: it means nothing there."""


_OF_LAYOUTS = {
    "masklets": ("sav",),
    "video_masks": ("mevis", "revos", "ytvos"),
    "absent_targets": ("mevis", "revos", "ytvos"),
}


def check_options(options: VideoOptions) -> None:
    """Refuses options that do not go together; ConfigError names them."""
    layout = options.video_layout
    if layout is None:
        known = ", ".join(VideoLayout.__args__)
        raise ConfigError(f"--.reader video needs --.video-layout, one of {known}.")
    for name, layouts in _OF_LAYOUTS.items():
        if getattr(options, name) != getattr(VideoOptions, name) and layout not in layouts:
            flag = name.replace("_", "-")
            raise ConfigError(f"--.{flag} is for --.video-layout {', '.join(layouts)}, not {layout}.")
    path = options.frame_path
    if path is not None and ("frame" not in _names(path) or set("{}") & set(_FIELD.sub("", path))):
        raise ConfigError(
            f"--.frame-path must be text with {{frame}} or {{frame:05d}} in it, and {{video}} or {{folder}} "
            f"where needed, got {path!r}."
        )


def _names(path: str) -> set[str]:
    return {match["name"] for match in _FIELD.finditer(path)}


class Frame(NamedTuple):
    """One annotated frame of a video."""

    video: str
    """Name of the video; may be a relative path."""
    frame: str
    """Name of the frame in it; mostly its number."""
    masks: Record
    """Where its masks are, for ``Layout.masks_of``; plain JSON."""
    num_masks: int | None
    """Masks of the row, those of absent objects included; None where only reading tells."""
    size: Record | None = None
    """``height`` and ``width`` as stated in pixels; None if the masks or the image have to tell."""
    texts: Sequence[Record] = ()
    """About objects: ``id``, ``task``, ``text``, ``masks`` (their ids) and ``tags``."""
    folder: str = ""
    """Folder of the file that it is from."""
    place: str = ""
    """File that it is from."""


class Masks(NamedTuple):
    """What became of the masks of a frame."""

    usable: list[Record]
    """In the shape of ``records.make_row``; an object that is absent has no ``segmentation``."""
    rejects: list[Reject]
    """One mask each."""


@dataclass(frozen=True, kw_only=True)
class VideoFiles(FileReader, VideoOptions):
    """What layouts see of the reader."""

    options: ClassVar[type] = VideoOptions


class Layout(ABC):
    """How a dataset writes frames, masks and texts.

    Attributes:
        frame_paths: Names that a frame may have, as the option ``frame_path``; the first one wins.
        of_videos: The dataset is published as videos, of which frames have to be extracted.
    """

    frame_paths: ClassVar[tuple[str, ...]]
    of_videos: ClassVar[bool] = False

    def __init__(self, reader: VideoFiles) -> None:
        self.reader = reader

    def parts(self) -> tuple[str, ...]:
        """Returns the names of what is listed apart; raises as ``Reader.inputs``."""
        return (posixpath.basename(self.reader.source.rstrip("/")),)

    @abstractmethod
    def frames_of(self, part: str) -> Iterator[Frame | Reject]:
        """Yields the frames of a part, every ``stride``-th of a video, and what cannot be used, in any order;
        raises as ``Reader.inputs``."""

    @abstractmethod
    def masks_of(self, key: str, where: Record) -> Masks:
        """Reads the masks of a frame from ``Frame.masks``; DataError loses them all."""

    @abstractmethod
    def witness(self, inputs: Sequence[Input], places: Sequence[Record]) -> dict[str, str]:
        """Returns what tells whether masks are the same, as ``Reader.witness``; ``places`` are the
        ``Frame.masks`` of these inputs."""

    def beginning(self, limit: int) -> Iterator[Frame | Reject] | int | None:
        """Returns the frames of the first videos, at least one more than ``limit`` if there are more; or how
        many there are of a dataset that is too large to be listed; None if all have to be listed."""
        return None


def require_frames(reader: VideoFiles) -> None:
    """Raises DataError ``frames_missing`` if there is no image below ``images``."""
    for limit in (MAX_NAMES, None):  # a disk is listed whole unless a limit says how far
        for found in storage.iter_files(reader.images, limit=limit):
            if posixpath.splitext(found.uri)[1].lower() in PICTURES:
                return
    raise DataError(f"there is no frame below {reader.images}. {EXTRACT}.", reason="frames_missing")


def image_of(reader: VideoFiles, layout: Layout, record: Record) -> str:
    """Returns where the image of a frame is; raises as ``image_source.find_image``, and DataError
    ``frame_path`` where a frame has no number."""
    paths = layout.frame_paths if reader.frame_path is None else (reader.frame_path,)
    first, *others = [_filled(path, record) for path in paths]
    try:
        return image_source.find_image(reader.images, first, others, link_roots=reader.link_root)
    except DataError as error:
        if error.reason != "missing_image" or not layout.of_videos:
            raise
        raise DataError(f"{error}. {EXTRACT}", reason=error.reason) from error


def _filled(path: str, record: Record) -> str:
    def value(match: re.Match[str]) -> str:
        text = record[match["name"]]
        if match["digits"] is None:
            return text
        if number_of(text) is None:
            raise DataError(f"frame {text!r:.80} has no number, but {path} asks for it", reason="frame_path")
        return f"{number_of(text):0{match['digits']}d}"

    return _FIELD.sub(value, path).removeprefix("/")


def number_of(text: Any) -> int | None:
    """Returns the number that a text of up to nine digits is."""
    return int(text) if isinstance(text, str) and re.fullmatch(r"[0-9]{1,9}", text) else None
