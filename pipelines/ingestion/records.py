"""Checks of dataset records that all readers share. Records are untrusted JSON.

``make_row`` builds a row from annotations in one common shape, a dict with ``mask_id`` and, where the dataset
has them, ``label`` or ``unknown_category``, ``iscrowd``, ``ignore`` (a void), ``occluded`` (True), ``bbox``
(x, y, width, height in pixels), ``point`` (x, y) and ``segmentation`` in any form that
``samtok.masks.to_counts`` reads.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from pipelines import schema
from pipelines.ingestion import polygons
from pipelines.ingestion.orientation import TURNED, frame_of, stated_size
from pipelines.ingestion.reader import STAGE, Reader, ReadResult, Reject
from samtok import masks
from samtok.errors import DataError

MASK_FIELDS = ("segmentation", "bbox", "iscrowd", "ignore")
"""Of an annotation in the common shape, what datasets write under the same names."""

_MAX_COORDINATE_PX = 2**24  # beyond this float32, in which rows keep boxes, misses whole pixels

Record = dict[str, Any]


def parse_json(raw: bytes, where: str) -> Any:
    """Parses UTF-8 JSON, with or without a byte order mark.

    Raises:
        DataError: With reason ``json`` and the position of the fault in bytes.
    """
    try:
        return json.loads(raw.decode().removeprefix("\ufeff"))  # utf-8-sig would misstate where a fault is
    except UnicodeDecodeError as error:
        raise json_error(where, error.start, f"is not UTF-8 ({error.reason})") from error
    except json.JSONDecodeError as error:
        mark_bytes = len(raw) - len(error.doc.encode())
        position = len(error.doc[: error.pos].encode()) + mark_bytes
        raise json_error(where, position, f"is not JSON ({error.msg})") from error
    except (RecursionError, ValueError) as error:  # an integer of thousands of digits
        raise unreadable_json(where, error) from error


def parse_object(raw: bytes, name: str, kind: str, *lists: str) -> Record:
    """Returns the object of a JSON file.

    Args:
        raw: Its bytes.
        name: Of the file.
        kind: What such files are called; for errors.
        lists: Keys that must hold a list.

    Raises:
        DataError: ``sidecar_layout`` if it is none or a list is missing; as ``parse_json``.
    """
    record = parse_json(raw, name)
    if not isinstance(record, dict) or not all(isinstance(record.get(key), list) for key in lists):
        needed = " and ".join(f"the list {key!r}" for key in lists)
        fault = f"{name} is {record!r:.80}, expected an object with {needed} ({kind})"
        raise DataError(fault, reason="sidecar_layout")
    return record


def json_error(where: str, position: int, problem: str) -> DataError:
    """Returns the error of a file with a fault at a byte."""
    return DataError(
        f"{where} {problem} at byte {position}; the file may be cut off or of another kind: fetch it again "
        "or check the path",
        reason="json",
    )


def unreadable_json(where: str, error: Exception) -> DataError:
    """Returns the error of JSON that Python does not take: nested too deeply, or a number too long."""
    if isinstance(error, RecursionError):
        return DataError(f"{where} nests lists or objects too deeply to be read", reason="json")
    return DataError(f"{where} cannot be read as JSON: {error}", reason="json")


_COMPACT = json.JSONEncoder(separators=(",", ":"), sort_keys=True)


def compact_json(value: Any) -> str:
    """Returns ASCII JSON without spaces and with sorted keys, so that equal values give equal text."""
    return _COMPACT.encode(value)


def is_utf8(text: str) -> bool:
    """Tells whether Arrow can store the text: JSON can spell half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _whole(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def id_text(value: object) -> str | None:
    """Returns an id as text: whole numbers without a fraction, strings as they are; None if it is no id."""
    number = _whole(value)
    if number is not None:
        return str(number)
    return value if isinstance(value, str) and value and is_utf8(value) else None


def image_name(value: object, what: str) -> str:
    """Returns the name of an image as a record has it.

    Raises:
        DataError: ``image_path`` if it is no text, empty or not UTF-8.
    """
    if not isinstance(value, str) or not value or not is_utf8(value):
        raise DataError(f"{what} is {value!r:.200}, expected the image's place", reason="image_path")
    return value


def id_of(entry: object, key: str = "id") -> str | None:
    """Returns the id that an entry of a file has under a key, as text; None if it has none."""
    return id_text(entry.get(key)) if isinstance(entry, dict) else None


def picked(entry: Record, names: Iterable[str]) -> Record:
    """Returns the fields of these names that a record has."""
    return {name: entry[name] for name in names if name in entry}


def id_order(text: str) -> tuple[int, str]:
    """Sorts ids by length, then as text: numbers ascend, and any other ids have a fixed order too."""
    return len(text), text


def size_hw(record: Mapping[str, Any], where: str) -> tuple[int, int]:
    """Returns ``height`` and ``width`` of an image record in pixels.

    Raises:
        DataError: With reason ``image_size`` if one is missing, not a whole number above 0, or if the image
            has more than ``samtok.masks.MAX_PIXELS``.
    """
    height, width = _whole(record.get("height")), _whole(record.get("width"))
    if height is None or width is None or height < 1 or width < 1 or height * width > masks.MAX_PIXELS:
        raise DataError(
            f"{where} has height {record.get('height')!r:.40} and width {record.get('width')!r:.40}, "
            f"expected whole numbers above 0 with a product of at most {masks.MAX_PIXELS}",
            reason="image_size",
        )
    return height, width


def commonest_size(sizes: Mapping[tuple[int, int], int]) -> tuple[int, int]:
    """Returns the size that is counted most, of several the largest."""
    return max(sizes, key=lambda size: (sizes[size], size))


def size_hw_of_masks(rles: Iterable[Any], where: str) -> tuple[int, int] | None:
    """Returns height and width of an image whose record states none: the ``size`` of most of its RLEs, of
    several the largest. None if no RLE states one; raises as ``size_hw``."""
    sizes = Counter(size for rle in rles if (size := stated_size(rle)) is not None)
    if not sizes:
        return None
    height, width = commonest_size(sizes)
    return size_hw({"height": height, "width": width}, f"{where}, by its masks,")


K = TypeVar("K", str, tuple[str, str])


class ById(NamedTuple, Generic[K]):
    """The entries of a file, each in one of three parts."""

    kept: dict[K, Record]
    nameless: list[tuple[int, Any]]
    """Those without an id, with their index."""
    repeated: list[tuple[K, Record, str]]
    """Those whose id others have, with the id, and how the sentence that begins with it ends."""


def by_id(
    entries: Iterable[tuple[K | None, Any]], content: Callable[[Any], Any] = lambda entry: entry
) -> ById[K]:
    """Separates entries whose id is theirs alone from those that have none or repeat one.

    Of entries with the same ``content``, which is what is read of them, one is kept. Where it differs, what
    points at the id is ambiguous: none is kept. Which one came first never matters.
    """
    kept: dict[K, Record] = {}
    nameless: list[tuple[int, Any]] = []
    repeated: list[tuple[K, Record]] = []
    conflicting: set[K] = set()
    for index, (identity, entry) in enumerate(entries):
        if identity is None:
            nameless.append((index, entry))
            continue
        first = kept.setdefault(identity, entry)
        if first is not entry:
            repeated.append((identity, entry))
            if content(first) != content(entry):
                conflicting.add(identity)
    repeated += [(identity, kept.pop(identity)) for identity in sorted(conflicting)]
    ends = {True: "is repeated; one equal is kept", False: "is repeated; none is kept"}
    return ById(kept, nameless, [(name, entry, ends[name in kept]) for name, entry in repeated])


def identify(
    dataset: str,
    entries: Iterable[tuple[int, Any]],
    row_id: Callable[[Any], str],
    content: Callable[[Any], Any] = lambda entry: entry,
    *,
    numbered: bool,
) -> tuple[dict[tuple[str, str], Record], list[Reject]]:
    """Gives annotations their ids: each entry is either among the records or one mask reject.

    An id is one of its image: several tools count from 1 in every image. Where no annotation has an id
    (V3Det), they are ``numbered`` from 1 in file order. Otherwise those without one and those that repeat one
    (``by_id``) are rejected.

    Args:
        dataset: Dataset name of the rejects.
        entries: Annotations as they are in the file, with their index there.
        row_id: Gives the image id of an entry, which can be any JSON value.
        content: Gives what is read of an entry, an object.
        numbered: No annotation of the file ``has_id``.

    Returns:
        Usable annotations by image id and their own, and the rejects.
    """

    def named(index: int, entry: Any) -> tuple[str, str] | None:
        own = str(index + 1) if numbered and isinstance(entry, dict) else id_of(entry)
        return None if own is None else (row_id(entry), own)

    indices: list[int] = []
    keyed: list[tuple[tuple[str, str] | None, Any]] = []
    for index, entry in entries:
        indices.append(index)
        keyed.append((named(index, entry), entry))
    found = by_id(keyed, content)
    rejects: list[Reject] = []
    for place, entry in found.nameless:
        index = indices[place]
        reason = "annotation_id" if isinstance(entry, dict) else "annotation_type"
        message = f"annotation at index {index} is {entry!r:.200}, expected an object with an id"
        rejects.append(mask_reject(dataset, row_id(entry), f"#{index}", reason, message))
    for (owner, mask_id), _, end in found.repeated:
        message = f"annotation id {mask_id} {end}"
        rejects.append(mask_reject(dataset, owner, mask_id, "duplicate_annotation_id", message))
    return found.kept, rejects


def has_id(entry: object) -> bool:
    """Returns whether an annotation says what its id is, usable or not."""
    return isinstance(entry, dict) and "id" in entry


def mask_reject(dataset: str, row_id: str, mask_id: str, reason: str, message: str) -> Reject:
    """Returns the reject of one mask; an annotation without an id goes as ``#7``, its index in the file."""
    return schema.reject(STAGE, dataset, row_id, reason, message, mask_id=mask_id, num_masks=1)


def make_row(
    reader: Reader,
    image_id: str,
    image_uri: str,
    image_hw: tuple[int, int],
    annotations: Iterable[Record],
    rejects: Sequence[Reject] = (),
) -> ReadResult:
    """Builds the row of an image from its annotations; each is a mask of the row or one reject.

    Masks are sorted by id. A mask that cannot be decoded leaves the others as they are; what cannot be used
    of a mask that stays is a reject of no mask. Rejects that the caller has already made for this image, of
    one mask each, go along. Which way up the image is read, and so its size, is decided here (``frame_of``).
    """
    kept: list[Record] = []
    lost = list(rejects)
    ordered = sorted(annotations, key=lambda entry: id_order(entry["mask_id"]))
    segmentations = [annotation.get("segmentation") for annotation in ordered]
    image_uri, image_hw, told = frame_of(reader.orientation, image_uri, image_hw, segmentations)
    if told:
        message = f"image {image_id}: {told}"
        lost.append(schema.reject(STAGE, reader.name, image_id, TURNED, message, mask_id="image"))
    for annotation in ordered:
        mask_id = annotation["mask_id"]
        which = f"annotation {mask_id} of image {image_id}"
        try:
            kept.append(_mask(annotation, *image_hw))
        except DataError as error:
            lost.append(mask_reject(reader.name, image_id, mask_id, error.reason, f"{which}: {error}"))
            continue
        for reason, message in _notes(annotation):
            place = STAGE, reader.name, image_id
            lost.append(schema.reject(*place, reason, f"{which}: {message}", mask_id=mask_id))
    row = {
        "dataset": reader.name,
        "split": reader.split,
        "image_id": image_id,
        "image_uri": image_uri,
        "height": image_hw[0],
        "width": image_hw[1],
        "masks": kept,
        "annotations": [],
    }
    num_lost = sum(entry["num_masks"] for entry in lost)
    return ReadResult(row=row, rejects=lost, num_masks_in=len(kept) + num_lost)


def _notes(annotation: Record) -> Iterator[tuple[str, str]]:
    """Yields reason and message of what cannot be used of a mask that is there."""
    if "unknown_category" in annotation:
        message = f"category_id is {annotation['unknown_category']}, which no category of the file has"
        yield "unknown_category", message
    if polygons.is_polygons(annotation.get("segmentation")):
        yield from (("polygon_part", message) for message in polygons.lost_parts(annotation["segmentation"]))


def _mask(annotation: Record, height: int, width: int) -> Record:
    segmentation = annotation.get("segmentation")
    counts = masks.to_counts(segmentation, height=height, width=width)
    if counts is not None:
        area_px = masks.area(counts, height=height, width=width)
        if area_px <= 1 and segmentation is not None and polygons.is_polygons(segmentation):
            polygons.check_visible(segmentation, area_px=area_px, height=height, width=width)
        counts = counts if area_px else None
    has_box_only = "segmentation" not in annotation and annotation.get("bbox") is not None
    box_xyxy = _box_xyxy(annotation["bbox"]) if has_box_only else None
    if has_point_only := "point" in annotation:
        box_xyxy = _point_xyxy(annotation["point"], height, width)
    crowd = annotation.get("iscrowd")
    if crowd not in (None, 0, 1):
        raise DataError(f"iscrowd is {crowd!r:.40}, expected 0, 1 or nothing", reason="iscrowd")
    stated = {
        "crowd": bool(crowd),
        "void": annotation.get("ignore") in (True, 1),
        "empty": counts is None and box_xyxy is None,
        "box_only": has_box_only,
        "point_only": has_point_only,
        "occluded": annotation.get("occluded") is True,
    }
    return {
        "mask_id": annotation["mask_id"],
        "rle": counts,
        "box_xyxy": box_xyxy,
        "label": annotation.get("label"),
        "flags": [flag for flag in schema.MASK_FLAGS if stated.get(flag)],
    }


def _box_xyxy(bbox: object) -> list[float] | None:
    """Turns x, y, width, height into x0, y0, x1, y1, both in pixels; None for a box without area."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(is_coordinate, bbox)):
        raise DataError(
            f"bbox is {bbox!r:.80}, expected four finite numbers [x, y, width, height] in pixels",
            reason="bbox",
        )
    x, y, width, height = bbox
    return [float(x), float(y), float(x + width), float(y + height)] if width > 0 and height > 0 else None


def _point_xyxy(point: object, height: int, width: int) -> list[float]:
    """Returns a point, x and y in pixels, as a box without width and height."""
    if not isinstance(point, list) or len(point) != 2 or not all(map(is_coordinate, point)):
        raise DataError(f"point is {point!r:.80}, expected two finite numbers in pixels", reason="point")
    x, y = map(float, point)
    if not (0 <= x <= width and 0 <= y <= height):
        raise DataError(f"the point {point!r:.80} is outside the image of {height} x {width}", reason="point")
    return [x, y, x, y]


def is_coordinate(value: object) -> bool:
    """Tells whether a value is a finite number of pixels that a row can keep."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= _MAX_COORDINATE_PX  # also refuses NaN
