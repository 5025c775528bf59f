"""A folder of label maps and a folder of images: ADE20K, Cityscapes, COCO-Stuff (family F4).

What the pixels mean and which files are maps says ``--corpus.encoding`` (``label_encodings.ENCODINGS``). An
image and its map have the same name below their folders, but for what marks the map: that name is the image
id, such as ``aachen/aachen_000000_000019``. Each pixel is in one mask of its row: void pixels are a mask with
the flag ``void``, several objects as one have ``crowd``. Only the map tells how many masks there are, so a
map that cannot be read loses an unknown number, which counts as 0.

Names of classes come from a legend, of the full ADE20K also from the JSON beside the map. A class that it
lacks is told as ``unknown_category``; the mask stays, without a label. That JSON also says which instances
have the flag ``occluded`` (``ade20k_objects``).

Listing takes names only, each part of the names on its own, as ``sidecar`` does.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, ClassVar

from pipelines import storage
from pipelines.config import AtLeast0
from pipelines.ingestion import ade20k_objects, annotations, label_maps, records
from pipelines.ingestion.ade20k_objects import Described
from pipelines.ingestion.archives import name_fault
from pipelines.ingestion.external_sort import ExternalSort
from pipelines.ingestion.file_reader import FileReader, witness_of
from pipelines.ingestion.label_encodings import (
    ENCODINGS,
    Encoding,
    EncodingName,
    Named,
    Pixels,
    image_stem,
)
from pipelines.ingestion.legends import Legend, LegendOption, legend_of
from pipelines.ingestion.reader import MAX_NAMES, Head, Input, ReadResult, Reject, in_order
from pipelines.ingestion.records import Record
from samtok.errors import ConfigError, DataError

_PARTS = 64  # of a large listing, at least
_SUFFIXES = (".jpg", ".png", ".jpeg", ".JPG", ".JPEG", ".PNG")  # of images; the first one found counts


@dataclass(frozen=True, kw_only=True)
class LabelMapOptions(LegendOption):
    """Options of label maps."""

    encoding: EncodingName | None = None
    """labelmap: what the pixels mean. ade20k: *_seg.png of the full release, class R // 10 * 256 + G, a mask
    per class; ade20k_instances: the same, one per instance (B). sceneparsing: ADEChallengeData2016, void 0.
    ade_instances: its annotations_instance, category R and instance G. cityscapes: *_instanceIds.png, classes
    0 to 6 void; cityscapes_labels: *_labelIds.png. cocostuff: maps of COCO-Stuff 164k, void 255. train_ids:
    *_labelTrainIds.png of COCO-Stuff or Cityscapes, void 255."""
    part_levels: AtLeast0 = 0
    """labelmap, ade20k and ade20k_instances: levels of parts that are read besides whole objects: 2 takes
    *_parts_1.png and *_parts_2.png of images that have them."""


def check_options(encoding: str | None, part_levels: int) -> None:
    """Refuses options that do not go together; ConfigError names them."""
    if encoding is None:
        raise ConfigError(f"--.reader labelmap needs --.encoding, one of {', '.join(ENCODINGS)}.")
    if part_levels and not encoding.startswith("ade20k"):
        raise ConfigError("--.part-levels is for --.encoding ade20k and ade20k_instances: others have none.")


@dataclass(frozen=True, kw_only=True)
class LabelMapReader(FileReader, LabelMapOptions):
    """Reads the label maps below ``source``, whose images are below ``images``."""

    options: ClassVar[type] = LabelMapOptions

    @property
    def _encoding(self) -> Encoding:
        assert self.encoding is not None  # see check_options
        return ENCODINGS[self.encoding]

    def witness(self, inputs: Sequence[Input] = ()) -> dict[str, str]:
        """Returns ``{name: size}`` of the maps of these inputs; without inputs what
        ``label_maps.first_files`` tells of their folder; and the legend's as ``witness_of``."""
        names = [json.loads(item.payload) for item in inputs]
        maps = label_maps.sizes_now(names, lambda name: self.below(self.source, name))
        legend = {} if self.legend is None else witness_of(self.legend)
        return legend | (maps or {"label maps": label_maps.first_files(self.source)})

    def parts(self) -> tuple[str, ...]:
        """Returns beginnings of the names of maps.

        Raises:
            DataError: If no file is a map of this encoding, or the legend cannot be read.
            StorageError: If the source cannot be listed.
        """
        if self.legend is not None:
            legend_of.cache_clear()  # it may have changed since another corpus was read
            legend_of(self.legend)
        if not any(self._keys(storage.iter_files(self.source))):
            raise DataError(
                f"{self.source} has no file {self._encoding.files.pattern} of the encoding {self.encoding}. "
                "Check that --corpus.source names the folder of the label maps, and --corpus.encoding "
                "their kind.",
                reason="labelmap_layout",
            )
        return tuple(storage.beginnings(self.source, _PARTS))

    def inputs_of(self, part: str) -> Iterator[Input | Reject]:
        """Yields the images of a part by ascending key and place, and rejects; raises as ``parts``."""
        yield from self._sorted(self._keys(storage.iter_files(self.source, beginning=part)))

    def inputs(self) -> Iterator[Input | Reject]:
        """Yields rejects, then images by ascending key; raises as ``parts``. Holds the listing meanwhile."""
        yield from in_order(self.name, chain.from_iterable(map(self.inputs_of, self.parts())))

    def head(self, limit: int = MAX_NAMES) -> Head:
        """Lists the first images; raises as ``parts``."""
        self.parts()
        found = list(islice(self._keys(storage.iter_files(self.source)), limit + 1))
        return Head(list(in_order(self.name, self._sorted(found[:limit]))), more=len(found) > limit)

    def _keys(self, files: Iterable[storage.FileInfo]) -> Iterator[tuple[str, str]]:
        """Yields key and name of the files that are maps."""
        root = len(self.source.rstrip("/")) + 1
        for file in files:
            match = self._encoding.files.fullmatch(file.uri, root)
            if match is not None:
                yield match["key"], match[0]

    def _sorted(self, found: Iterable[tuple[str, str]]) -> Iterator[Input | Reject]:
        with ExternalSort[tuple[str, str]]() as rows:
            for key, name in found:
                fault = name_fault(name)
                if fault:
                    shown = name.encode(errors="backslashreplace").decode()
                    yield self.reject(shown, "unsafe_path", f"{shown!r} {fault} ({self.source})")
                else:
                    rows.add((key, name), 4 * len(name))
            for key, name in rows:
                yield Input(key=key, payload=json.dumps(name), num_masks=None, place=name)

    def read(self, item: Input) -> ReadResult:
        """Reads the label maps of one image."""
        name = json.loads(item.payload)
        told = list[Reject]()
        try:
            map_uri = self.below(self.source, name)
            labels = label_maps.read_map(map_uri, rgb=self._encoding.rgb)
            image_uri = self._image(item.key, map_uri)
            found = self._masks(labels, map_uri)
        except DataError as error:
            return ReadResult.refused(self.name, item.key, error)
        image_hw = labels.shape[0], labels.shape[1]
        for level in range(1, self.part_levels + 1):
            try:
                found += self._parts_of(item.key, level, image_hw)
            except DataError as error:
                if error.reason == "label_map_missing":
                    break
                told.append(self.reject(item.key, error.reason, str(error), mask_id=f"parts {level}"))
        objects = self._objects(item.key, told)
        legend = self._legend(objects)
        described = ade20k_objects.described(objects) if self.encoding == "ade20k_instances" else {}
        made = [_annotation(named, counts, legend, described, image_hw) for named, counts in found]
        return annotations.attach(records.make_row(self, item.key, image_uri, image_hw, made), [], told)

    def _image(self, key: str, map_uri: str) -> str:
        """Returns where the image is; raises as ``image_source.find_image``."""
        stem = image_stem(self._encoding, key)
        suffixes = sorted(_SUFFIXES, key=lambda suffix: suffix != ".png") if stem != key else _SUFFIXES
        first, *others = [stem + suffix for suffix in suffixes]
        uri = self.image_uri(first, *others)
        if uri == map_uri:  # where images are looked for among maps
            raise DataError(f"there is no image {first}, only its label map {uri}", reason="missing_image")
        return uri

    def _masks(self, labels: Pixels, uri: str) -> list[tuple[Named, str]]:
        values = self._encoding.values(labels) + 1  # a value of 0 is one too, and not what is left out
        named = self._encoding.named
        return [(named(number - 1), counts) for number, counts in label_maps.counts_of(values, uri).items()]

    def _parts_of(self, key: str, level: int, image_hw: tuple[int, int]) -> list[tuple[Named, str]]:
        """Returns the parts of a level of an image of ADE20K; what is no part there is no mask."""
        uri = self.below(self.source, f"{key}_parts_{level}.png")
        labels = label_maps.read_map(uri, rgb=True)
        if labels.shape != image_hw:
            message = f"{uri} has (height, width) {labels.shape}, the map of whole objects {image_hw}"
            raise DataError(message, reason="label_map_size")
        found = self._masks(labels, uri)
        return [
            (named._replace(mask_id=f"part{level}-{named.mask_id}", level=level), counts)
            for named, counts in found
            if not named.void
        ]

    def _objects(self, key: str, told: list[Reject]) -> list[Any]:
        """Returns what the full ADE20K says of objects beside a map; tells of what cannot be read."""
        is_named = self.encoding == "ade20k" and self.legend is None
        if self.encoding != "ade20k_instances" and not is_named:
            return []
        try:
            return ade20k_objects.objects_beside(self.below(self.source, f"{key}.json"))
        except DataError as error:
            told.append(self.reject(key, error.reason, str(error), mask_id="labels"))
            return []

    def _legend(self, objects: list[Any]) -> Legend:
        """Returns the names of classes."""
        if self.legend is not None:
            return legend_of(self.legend)
        return ade20k_objects.names_of(objects) or dict(enumerate(self._encoding.classes))


def _annotation(
    named: Named,
    counts: str,
    legend: Legend,
    objects: Mapping[int, Sequence[Described]],
    image_hw: tuple[int, int],
) -> Record:
    """Returns a mask in the shape of ``records.make_row``."""
    found: Record = {
        "mask_id": named.mask_id,
        "iscrowd": int(named.crowd),
        "ignore": named.void,
        "segmentation": {"size": list(image_hw), "counts": counts},
    }
    if named.label in legend:
        found["label"] = legend[named.label]
    elif legend and not named.void:
        found["unknown_category"] = str(named.label)
    if named.instance:
        candidates = objects.get(named.label, ())
        found["occluded"] = ade20k_objects.is_occluded(candidates, named.level, counts, image_hw)
    return found
