"""Masks as PNG files beside images: one file per object, or one label map per image.

- ``objects``: ``SOURCE/<image>/<anything>.png`` or ``SOURCE/<image>_<anything>.png``, of which every value
  but 0 is inside. The mask's id is the file's name, its label what that has besides the image's name and a
  number: ``dog`` of ``dog_2.png``, none of ``17.png``.
- ``labelmap``: ``SOURCE/<image>.png``, of 1 to 16 bits, palette or RGB (``samtok.labelmaps``). Every value
  but 0 is the mask of an instance or a class, whose id it is; a legend names the values.

``<image>`` is the path of the image without its suffix. An image without files is rejected, since nobody has
said that it shows nothing; a mask without pixels is kept as empty. The size of a row is that of its PNGs;
where these differ, the image's.
"""

import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Interval
from jaxtyping import Int

from pipelines.ingestion import image_source, legends, records
from pipelines.ingestion.folder_reader import (
    Belongs,
    FolderReader,
    Group,
    ParseNames,
    names_of,
    same_stem,
)
from pipelines.ingestion.legends import LegendOption
from pipelines.ingestion.reader import MAX_NAMES, Input, ReadResult, Reject
from pipelines.ingestion.records import Record
from pipelines.storage.threads import map_ahead
from samtok import masks
from samtok.errors import ConfigError, DataError
from samtok.labelmaps import read_label_map, split_labels

MaskLayout = Literal["auto", "objects", "labelmap"]

MAX_VALUES = 2**16
"""Most values of a label map; a photograph in its place has more."""

_THREADS = 8  # PNGs of an image that are fetched at a time
_SEPARATORS = " _-."
_COUNTER = re.compile(r"[ _.-]+\d+$")


@dataclass(frozen=True, kw_only=True)
class MasksOptions(LegendOption):
    """Options of folders of masks."""

    mask_layout: MaskLayout = "auto"
    """masks: what a PNG is. ``objects``: one mask, in a folder of its image's name or named after it;
    ``labelmap``: all masks of the image of its name, a value each. ``auto``: what the names there say, if all
    say the same."""
    void_value: Annotated[int, Interval(ge=1, le=2**24 - 1)] | None = None
    """masks: value of a label map besides 0 that means nothing, such as 255; its mask is kept as void."""


@dataclass(frozen=True, kw_only=True)
class MasksReader(FolderReader, MasksOptions):
    """Reads folders of images and PNG masks."""

    options: ClassVar[type] = MasksOptions
    suffix: ClassVar[str] = ".png"
    parse_names: ClassVar[ParseNames] = staticmethod(legends.parsed)

    def names_uri(self) -> str | None:
        """Returns where the legend is."""
        return self.legend

    def resolved(self) -> "MasksReader":
        """Returns the reader with the layout that the names of the PNGs tell. Looks at the first names of
        both folders, and at all only if these have nothing to do with each other.

        Raises:
            DataError: ``masks_layout`` if they do not tell.
            ConfigError: For options of label maps where PNGs are objects.
        """
        if self.source.rstrip("/") == self.images.rstrip("/"):
            raise self._unclear("is the folder of the images too", "move the masks to another folder")
        layout = self._told() if self.mask_layout == "auto" else self.mask_layout
        if layout == "objects" and (self.legend is not None or self.void_value is not None):
            raise ConfigError(
                f"the options legend and void_value are of label maps, but {self.source} has a PNG for each "
                "object; drop them, or set mask_layout to labelmap."
            )
        return replace(self, mask_layout=layout)

    def belongs(self) -> Belongs:
        """Returns which files belong to an image."""
        return _is_object if self.mask_layout == "objects" else same_stem

    def _told(self) -> MaskLayout:
        votes = self._votes(self.first_pictures(MAX_NAMES)[0], self.first_files(MAX_NAMES)[0])
        votes = votes or self._votes(self.pictures(), self.files())
        if len(votes) == 1:
            return next(iter(votes))
        if votes:
            has = f"has {votes['labelmap']} PNGs named as an image and {votes['objects']} named after one"
            raise self._unclear(has, "set mask_layout to labelmap or objects, then the others are rejected")
        raise self._unclear("has no PNG whose name fits an image", f"check --images {self.images}")

    def _unclear(self, has: str, remedy: str) -> DataError:
        return DataError(
            f"{self.source} {has}. Expected <image>.png (label maps), or <image>/<object>.png or "
            f"<image>_<object>.png (objects); {remedy}.",
            reason="masks_layout",
        )

    def _votes(self, pictures: Iterable[str], files: Iterable[str]) -> Counter[MaskLayout]:
        votes: Counter[MaskLayout] = Counter()

        def note(image: str, file: str) -> bool:
            kind: MaskLayout = "labelmap" if same_stem(image, file) else "objects"
            fits = kind == "labelmap" or _is_object(image, file)
            votes.update([kind] if fits else [])
            return fits

        for _ in self.groups(pictures, files, note):
            pass
        return votes

    def masks_of(self, files: Sequence[str]) -> int | None:
        """Returns the number of objects; of a label map only reading tells it."""
        return None if files and self.mask_layout != "objects" else len(files)

    def item_of(self, group: Group, names: dict[str, str]) -> Input | Reject:
        """Returns the input of an image."""
        if not group.files:
            return self.missing_annotation(group.stem, group.images[0])
        if self.mask_layout == "objects":
            return self.input_of(group, layout="objects")
        if len(group.files) > 1:
            message = f"{' and '.join(sorted(group.files))} are label maps of one image"
            return self.reject(group.stem, "ambiguous_annotation", message)
        return self.input_of(group, layout="labelmap", **names)

    def alone(self, stem: str, name: str) -> Reject:
        """Returns the reject of a PNG that fits no image: of an object one mask, of a label map a row."""
        lost = {"mask_id": posixpath.basename(stem), "num_masks": 1} if self.mask_layout == "objects" else {}
        return self.missing_image(stem, name, **lost)

    def read(self, item: Input) -> ReadResult:
        """Reads one image's PNGs. Of objects each that cannot be read is a reject of one mask; an image whose
        label map cannot be read is rejected."""
        place = json.loads(item.payload)
        try:
            image_uri = self.below(self.images, place["image"])
            if place["layout"] == "labelmap":
                image_hw, found = self._of_label_map(place)
                return records.make_row(self, item.key, image_uri, image_hw, found)
            return self._of_objects(item.key, image_uri, place["files"])
        except DataError as error:
            return ReadResult.refused(self.name, item.key, error, num_masks=item.num_masks or 0)

    def _of_label_map(self, place: Record) -> tuple[tuple[int, int], list[Record]]:
        (name,) = place["files"]
        labels = _values(self._fetched(name), name, "label_map")
        height, width = labels.shape
        if np.unique(labels).size > MAX_VALUES:
            fault = f"{name} has over {MAX_VALUES} values; is it a picture instead of a label map?"
            raise DataError(fault, reason="label_map_values")
        names: dict[int, str] = {}
        if self.legend is not None:
            names = names_of(self.legend, place["names"], legends.parsed)
        made = []
        for value, counts in split_labels(labels):
            mask = {"mask_id": str(value), "segmentation": {"size": [height, width], "counts": counts}}
            if value == self.void_value:
                mask["ignore"] = True
            elif self.legend is not None and value not in names:
                mask["unknown_category"] = str(value)
            made.append({**mask, "label": names.get(value)})
        return (height, width), made

    def _of_objects(self, key: str, image_uri: str, files: list[str]) -> ReadResult:
        ids = Counter(_mask_id(key, name) for name in files)
        made: list[Record] = []
        rejects: list[Reject] = []
        fetched = map_ahead(self._fetched, files, threads=_THREADS)
        for name, data in zip(files, fetched, strict=True):
            mask_id = _mask_id(key, name)
            try:
                if ids[mask_id] > 1:
                    fault = f"{ids[mask_id]} files of the image have the name {mask_id}; none is kept"
                    raise DataError(fault, reason="duplicate_annotation_id")
                values = _values(data, name, "mask_file")
                size, counts = [*values.shape], masks.encode(values)
                mask = {"mask_id": mask_id, "segmentation": {"size": size, "counts": counts}}
                made.append({**mask, "label": _label(key, mask_id)})
            except DataError as error:
                lost = records.mask_reject(self.name, key, mask_id, error.reason, str(error))
                rejects.append(lost)
        sizes = {tuple(mask["segmentation"]["size"]) for mask in made}
        height, width = sizes.pop() if len(sizes) == 1 else self.size_of(image_uri)
        return records.make_row(self, key, image_uri, (height, width), made, rejects)

    def _fetched(self, name: str) -> bytes | DataError:
        """Returns the bytes of a PNG, or what speaks against them."""
        try:
            return image_source.read_image_bytes(self.below(self.source, name))
        except DataError as error:
            return error


def _values(data: bytes | DataError, name: str, kind: str) -> Int[np.ndarray, "height width"]:
    """Returns the values of a PNG; errors of reading it have the kind instead of the image."""
    try:
        if isinstance(data, DataError):
            raise data
        return read_label_map(data, where=name)
    except DataError as error:
        raise DataError(str(error), reason=error.reason.replace("image", kind, 1)) from error


def _is_object(image: str, file: str) -> bool:
    return file[len(image) : len(image) + 1] in ("/", "_")


def _mask_id(image: str, name: str) -> str:
    """Returns the name of an object's file: below the folder of its image, or beside the others."""
    stem = posixpath.splitext(name)[0]
    return stem[len(image) + 1 :] if stem[len(image)] == "/" else posixpath.basename(stem)


def _label(image: str, mask_id: str) -> str | None:
    """Returns what the name of an object has besides that of its image and a number at the end."""
    own, base = posixpath.basename(mask_id), posixpath.basename(image)
    rest = own[len(base) :]
    if own.startswith(base) and rest[:1] in _SEPARATORS:
        own = rest.lstrip(_SEPARATORS)
    own = _COUNTER.sub("", own)
    return own if any(map(str.isalpha, own)) else None
