"""Label maps beside images: what the readers of PSG, of panoptic JSON and of plain label maps share.

A label map is a PNG whose pixels are numbers (``samtok.labelmaps``). Here are the reading of one, with what
can be wrong with its file, and the segments that a record lists of it (``segments_info`` of the panoptic
format, cocodataset/panopticapi: ``{id, category_id, area, iscrowd}``).
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np
from jaxtyping import Int

from pipelines import storage
from pipelines.config import Place
from pipelines.ingestion import image_source, records
from pipelines.ingestion.file_reader import size_bytes
from pipelines.ingestion.orientation import Orientation
from pipelines.ingestion.records import Record
from pipelines.storage.threads import map_ahead
from samtok import masks
from samtok.errors import DataError
from samtok.labelmaps import read_label_map, split_labels

MAX_IDS = 10_000
"""Most different numbers of a map. Published maps have some hundred at most, a photograph that is read as a
map has as many as pixels."""

SEGMENT_FIELDS = ("id", "category_id", "iscrowd", "area")

_WITNESS_NAMES = 1000


@dataclass(frozen=True, kw_only=True)
class PanopticOptions:
    """Options of panoptic maps."""

    panoptic: Place | None = None
    """psg, panoptic: URI of the folder of panoptic maps. By default annotations below the images, as in COCO
    (psg), or the folder beside the JSON that has its name without .json, as published (panoptic)."""


def read_map(uri: str, *, rgb: bool | None = None) -> Int[np.ndarray, "height width"]:
    """Reads a label map; ``rgb`` as in ``samtok.labelmaps.read_label_map``.

    Raises:
        DataError: ``label_map_missing``, ``label_map_empty`` and so on for its file, else as
            ``read_label_map``.
        StorageError: If the storage fails.
    """
    try:
        data = image_source.read_image_bytes(uri)
    except DataError as error:
        raise DataError(str(error), reason=error.reason.replace("image", "label_map", 1)) from error
    return read_label_map(data, where=uri, rgb=rgb)


def counts_of(labels: Int[np.ndarray, "height width"], uri: str) -> dict[int, str]:
    """Returns the mask of each number but 0; DataError ``label_map_ids`` for more than ``MAX_IDS``."""
    counts = dict(islice(split_labels(labels), MAX_IDS + 1))
    if len(counts) > MAX_IDS:
        fault = f"{uri} has more than {MAX_IDS} different numbers, expected a label map: is it a photograph?"
        raise DataError(fault, reason="label_map_ids")
    return counts


def read_counts(
    uri: str, image_hw: tuple[int, int] | None, orientation: Orientation
) -> tuple[dict[int, str], tuple[int, int]]:
    """Returns the masks of a map by their numbers, and its size, which the image may have upright; None
    stands for an image of that size.

    Raises:
        DataError: ``label_map_size`` for another size than that of the image, else as ``read_map`` and
            ``counts_of``.
    """
    labels = read_map(uri)
    height, width = labels.shape
    stated_hw = image_hw or (height, width)
    turned_hw = stated_hw if orientation == "stored" else stated_hw[::-1]
    if (height, width) not in (stated_hw, turned_hw):
        raise DataError(
            f"{uri} has (height, width) {labels.shape}, its image {stated_hw}: is it of another image?",
            reason="label_map_size",
        )
    return counts_of(labels, uri), (height, width)


def mask_ids_of(segments: Iterable[Record]) -> list[str]:
    """Returns a mask id for each segment: its own; ``#`` and its index if it has none or that of another."""
    ids = [records.id_text(segment.get("id")) for segment in segments]
    times = Counter(ids)
    return [own if own and times[own] == 1 else f"#{index}" for index, own in enumerate(ids)]


def check_id(mask_id: str, segment: Record) -> int:
    """Returns the number of a segment in its map; DataError ``segment_id`` if that is not its own."""
    number = segment.get("id")
    if type(number) is not int or mask_id != str(number):
        raise DataError(f"segment {mask_id} has the id {number!r:.40}, expected its own", reason="segment_id")
    return number


def segment_of(mask_id: str, segment: Record, counts: dict[int, str], image_hw: tuple[int, int]) -> Record:
    """Returns a segment in the shape of ``records.make_row``, without a label; without pixels it has no mask.

    Raises:
        DataError: As ``check_id``; ``segment_area`` if its pixels are there and not as many as it states.
    """
    number = check_id(mask_id, segment)
    found = {"mask_id": mask_id, "iscrowd": segment.get("iscrowd"), "segmentation": None}
    if number not in counts:
        return found
    area = masks.area(counts[number], height=image_hw[0], width=image_hw[1])
    if segment.get("area", area) != area:
        message = f"segment {mask_id} has {area} pixels in the label map, its area is {segment['area']!r:.40}"
        raise DataError(f"{message}; is it the map of another image?", reason="segment_area")
    return found | {"segmentation": {"size": list(image_hw), "counts": counts[number]}}


def unlisted(segments: Iterable[Record], counts: dict[int, str]) -> list[int]:
    """Returns the numbers of pixels that no segment has, ascending."""
    return sorted(counts.keys() - {one.get("id") for one in segments if type(one.get("id")) is int})


def sizes_now(names: Iterable[str], uri_of: Callable[[str], str]) -> dict[str, str]:
    """Returns ``{name: size}`` of files as they are now, ``missing`` for those that are not there: the
    witness of some images."""

    def size_of(name: str) -> str:
        try:
            return str(size_bytes(uri_of(name)))
        except (storage.ObjectError, DataError):
            return "missing"

    ordered = sorted(set(names))
    return dict(zip(ordered, map_ahead(size_of, ordered), strict=True))


def first_files(folder: str) -> str:
    """Returns ``count:total size:sha256`` of names and sizes of the first files: the witness of a folder."""
    root = len(folder.rstrip("/")) + 1
    files = [(found.uri[root:], found.size) for found in storage.list_files(folder, limit=_WITNESS_NAMES)]
    digest = hashlib.sha256(records.compact_json(files).encode()).hexdigest()
    return f"{len(files)}:{sum(size for _, size in files)}:{digest}"
