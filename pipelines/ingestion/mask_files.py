"""Masks by their ids in files of other datasets: where they are, found once, and read when they are needed.

A dataset's word, as SegLLM's conversations have it, says of what kind its file is
(berkeley-hipie/segllm, seg_register/register_dataset.py):

- COCO layout by the id of the annotation: refcoco, refcoco+, refcocog, grefcoco, coco, lvis, paco_lvis;
- an object by id of RLEs, or of objects with ``segmentation``: visual_genome, pascal,
  description_based_coco;
- a folder of PNGs by class: ade20k, where the value of pixels is the id + 1, and cocostuff;
- a folder of JSON files with polygons: reason_seg, whose only mask of an image has the id ``target``.

Of a file only the places of wanted entries are kept in memory. Of an id that is there twice equal entries
count as one, and of differing ones none can be used.
"""

import functools
import hashlib
import posixpath
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np

from pipelines import storage
from pipelines.config import PlaceMark
from pipelines.ingestion import coco, image_source, json_stream, label_maps, reasonseg_shapes, records
from pipelines.ingestion.file_reader import limited_bytes
from pipelines.ingestion.records import Record
from pipelines.ingestion.sidecar import MAX_SIDECAR_BYTES
from samtok import masks
from samtok.errors import ConfigError, DataError

Kind = Literal["coco", "by_id", "maps", "polygons"]

KINDS: dict[str, Kind] = {
    **dict.fromkeys(("refcoco", "refcoco+", "refcocog", "grefcoco", "coco", "lvis", "paco_lvis"), "coco"),
    **dict.fromkeys(("visual_genome", "pascal", "description_based_coco"), "by_id"),
    **dict.fromkeys(("ade20k", "cocostuff"), "maps"),
    "reason_seg": "polygons",
}
"""What the masks of a dataset are in, by its word."""

FOLDERS = ("maps", "polygons")
"""Kinds of which each image has a file."""

_FIRST_VALUES = {"ade20k": 1, "cocostuff": 0}  # of pixels of class 0

Place: TypeAlias = dict[str, Any]
"""Where a mask is, as JSON: ``at`` [offset, size] in its file and what else is known of it; ``class`` of a
map; ``polygons``, which of them; or ``fault`` [reason, message]."""


def _rewritten(text: str, absolute: Callable[[str], str]) -> str:
    word, mark, uri = text.partition("=")
    return f"{word}={absolute(uri)}" if mark and uri else text


MaskFile = Annotated[str, PlaceMark(rewrite=_rewritten)]
"""``DATASET=URI``, as ``parse`` reads it."""


@dataclass(frozen=True, kw_only=True)
class MaskFilesOptions:
    """Options of readers that look masks up by their ids."""

    mask_files: tuple[MaskFile, ...] = ()
    """segllm: files with the masks, as DATASET=URI: COCO layout of refcoco, refcoco+, refcocog, grefcoco,
    coco, lvis and paco_lvis; JSON by id of visual_genome, pascal and description_based_coco; folders of PNGs
    of ade20k and cocostuff; a folder of JSON files of reason_seg."""


def parse(texts: Collection[str]) -> dict[str, str]:
    """Returns the URIs by their datasets; raises ConfigError for what is no pair, or twice."""
    found: dict[str, str] = {}
    for text in texts:
        word, _, uri = text.partition("=")
        if word not in KINDS or not uri or word in found:
            raise ConfigError(
                f"--.mask-files has {text!r}, expected DATASET=URI, each of {', '.join(KINDS)} at most once."
            )
        found[word] = uri
    return found


def places(word: str, uri: str, wanted: Collection[str]) -> dict[str, Place]:
    """Returns the places of those wanted masks of a dataset that its file has, in one pass over it.

    Raises:
        DataError: ``mask_file_layout`` if the file is of another kind, ``json``.
        StorageError: If it cannot be read.
    """
    if KINDS[word] == "maps":
        return {one: {"class": one} for one in wanted}
    if KINDS[word] == "polygons":
        return {one: {"polygons": one} for one in wanted}
    found = _Places(uri, wanted)
    with storage.open_input(uri) as stream:
        members = json_stream.members_of(stream, uri)
        if isinstance(members, str):
            raise _layout_error(uri, f"a {members}", word)
        if KINDS[word] == "coco":
            _add_annotations(members, found, word)
        else:
            _add_by_id(members, found)
    return found.places


class _Places:
    """Takes entries and keeps the places of wanted ones."""

    def __init__(self, uri: str, wanted: Collection[str]) -> None:
        self.uri, self.places = uri, dict[str, Place]()
        self._wanted, self._digests = wanted, dict[str, bytes]()

    def add(self, mask_id: str | None, entry: json_stream.Entry, more: Place) -> None:
        if mask_id not in self._wanted or mask_id is None:
            return
        digest = hashlib.blake2b(records.compact_json(entry.value).encode(), digest_size=8).digest()
        if self._digests.setdefault(mask_id, digest) != digest:
            message = f"{self.uri} has the id {mask_id} twice, with different content"
            self.places[mask_id] = {"fault": ["duplicate_annotation_id", message]}
        elif mask_id not in self.places:
            self.places[mask_id] = {"at": [entry.offset, entry.size_bytes], **more}


def read(
    word: str, uri: str, mask_id: str, place: Place, image: str, size_of: Callable[[], tuple[int, int]]
) -> Record:
    """Returns a mask in the shape of ``records.make_row``.

    Args:
        word: Its dataset.
        uri: The file or folder of the dataset.
        mask_id: Its id there.
        place: As ``places`` has it.
        image: Name of its image, by which maps and polygons are found.
        size_of: Returns height and width of the image in pixels, for polygons.

    Raises:
        DataError: ``mask_file_changed`` if it is no longer there, the fault of its place, or as
            ``label_maps.read_map``, ``image_source.find_image`` and ``reasonseg_shapes.target_of``.
        StorageError: If the storage fails.
    """
    if "fault" in place:
        raise DataError(place["fault"][1], reason=place["fault"][0])
    if "class" in place:
        return {"segmentation": _of_map(word, uri, place["class"], image)}
    if "polygons" in place:
        return {"segmentation": _of_polygons(uri, image, size_of)}
    offset, size = place["at"]
    where = f"mask {mask_id} of {uri}"
    entry = records.parse_json(storage.read_bytes(uri, offset=offset, size=size), where)
    if not isinstance(entry, dict) or (KINDS[word] == "coco" and records.id_of(entry) != mask_id):
        raise DataError(f"{where} is not where it was when it was listed", reason="mask_file_changed")
    if KINDS[word] == "by_id" and "segmentation" not in entry:
        return {"segmentation": entry}
    return records.picked(entry, records.MASK_FIELDS)


def _add_annotations(members: Iterator[json_stream.Member], found: _Places, word: str) -> None:
    """Adds the annotations of a file in COCO layout, with the size of the image and the name of the class."""
    sizes: dict[str, list[Any]] = {}
    categories: list[Any] = []
    keys = set[str]()
    for member in members:
        keys.add(member.key)
        for entry in member.entries or ():
            if member.key == "annotations":
                more = {key: records.id_of(entry.value, key) for key in ("image_id", "category_id")}
                found.add(records.id_of(entry.value), entry, more)
            elif member.key == "categories":
                categories.append(entry.value)
            elif member.key == "images" and (image_id := records.id_of(entry.value)) is not None:
                sides = [entry.value.get("height"), entry.value.get("width")]
                sizes[image_id] = sides if sizes.get(image_id, sides) == sides else [None, None]
    if not {"images", "annotations"} <= keys:
        raise _layout_error(found.uri, f"an object with {sorted(keys)[:8]}", word)
    labels = coco.labels_of(categories, found.uri)
    for place in found.places.values():
        if "at" in place:
            place["hw"] = sizes.get(place["image_id"])
            place["label"] = labels.get(place.pop("category_id"))


def _add_by_id(members: Iterator[json_stream.Member], found: _Places) -> None:
    for member in members:
        if member.entry is not None and isinstance(member.value, dict):
            found.add(member.key, member.entry, {"hw": member.value.get("image_dim")})


def _of_map(word: str, uri: str, number: str, image: str) -> Record:
    """Returns the mask of a class in the PNG of an image, which may lie in a folder of the image's folder."""
    if not number.isascii() or not number.isdigit() or len(number) > 6:
        raise DataError(f"the id of a class of {word} is {number!r:.40}, expected a number", reason="mask_id")
    labels = _map_of(uri, image)
    inside = labels == int(number) + _FIRST_VALUES[word]
    return {"size": list(labels.shape), "counts": masks.encode(inside)}


@functools.lru_cache(maxsize=1)  # the masks of several classes lie in one, and come one after the other
def _map_of(uri: str, image: str) -> np.ndarray:
    return label_maps.read_map(_file_of(uri, image, ".png", missing="label_map_missing"))


def _of_polygons(uri: str, image: str, size_of: Callable[[], tuple[int, int]]) -> Record | None:
    """Returns the mask that the polygons of an image make; None if it has no pixel."""
    where = _file_of(uri, image, ".json", missing="unknown_mask")
    raw = limited_bytes(where, where, MAX_SIDECAR_BYTES)
    return reasonseg_shapes.target_of(reasonseg_shapes.record_of(raw, where), size_of(), image)


def _file_of(uri: str, image: str, suffix: str, *, missing: str) -> str:
    """Returns the file of an image in a folder, or in a folder there with the name of the image's folder;
    DataError for the reason ``missing`` if there is none."""
    name = posixpath.splitext(posixpath.basename(image))[0] + suffix
    folder = posixpath.basename(posixpath.dirname(image))
    try:
        return image_source.find_image(uri, name, [posixpath.join(folder, name)] if folder else [])
    except DataError as error:
        raise DataError(str(error), reason=error.reason.replace("missing_image", missing)) from error


def _layout_error(uri: str, has: str, word: str) -> DataError:
    kind = {"coco": "COCO layout", "by_id": "an object of masks by id"}[KINDS[word]]
    return DataError(
        f"{uri} holds {has}, expected {kind} for the masks of {word} (--corpus.mask-files)",
        reason="mask_file_layout",
    )
