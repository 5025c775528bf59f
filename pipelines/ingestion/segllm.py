"""Segmentation in several rounds, as SegLLM's conversations (family F10; berkeley-hipie/segllm, DATASET.md).

The file is a list, or JSON lines, of ``{conversations: [{from, value}]}`` whose texts name masks in brackets
(``segllm_rounds``); the masks lie in files of other datasets (``mask_files``). All conversations about an
image become one row; each is a ``dialogue`` whose payload has, besides its ``turns``, the ``rounds``: which
masks each answers, and to which masks of earlier rounds it refers.

Listing goes through the conversations and once through each file of masks; of those the places of masks are
kept in memory, and reading a row reads its masks there. Equal conversations count once.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby, islice
from typing import Any, ClassVar, TypeAlias

from pipelines.ingestion import (
    annotations,
    image_source,
    json_lines,
    label_maps,
    mask_files,
    records,
    segllm_rounds,
)
from pipelines.ingestion.annotations import Annotation
from pipelines.ingestion.external_sort import ExternalSort
from pipelines.ingestion.file_reader import FileReader, first_of, size_bytes, witness_of
from pipelines.ingestion.mask_files import MaskFilesOptions, Place
from pipelines.ingestion.reader import MAX_NAMES, Head, Input, ReadResult, Reject
from pipelines.ingestion.records import Record
from pipelines.ingestion.segllm_rounds import MaskKey, Rounds
from samtok.errors import DataError

_FLAG = "--corpus.source"
_NUMBER = re.compile(r"(\d+)\.\w+$", re.ASCII)
_Row: TypeAlias = tuple[str, str]  # image, conversation as JSON
_Index: TypeAlias = dict[str, dict[str, Place]]  # of masks, by dataset and id


@dataclass(frozen=True, kw_only=True)
class SegllmReader(FileReader, MaskFilesOptions):
    """Reads one file of conversations."""

    options: ClassVar[type] = MaskFilesOptions

    def witness(self, inputs: Sequence[Input] = ()) -> dict[str, str]:
        """Returns ``{name: "size:sha256"}`` of the conversations and of each file of masks, by its dataset;
        of a folder what ``label_maps.first_files`` tells."""
        found = super().witness(inputs)
        for word, uri in self._files().items():
            is_folder = mask_files.KINDS[word] in mask_files.FOLDERS
            told = label_maps.first_files(uri) if is_folder else next(iter(witness_of(uri).values()))
            found[f"masks of {word}"] = told
        return found

    def inputs(self) -> Iterator[Input | Reject]:
        """Yields rejects, then one input per image by ascending key.

        Raises:
            DataError: If no entry is a conversation, or a file of masks has another layout.
            ConfigError: As ``json_lines.read_lines``.
            StorageError: If a file cannot be read, or sorted on the local disk.
        """
        wanted: dict[str, set[str]] = defaultdict(set)
        rejects: list[Reject] = []
        with ExternalSort[_Row]() as rows:
            for found in self._conversations():
                if isinstance(found, dict):
                    rejects.append(found)
                    continue
                for dataset, mask_id in found.masks:
                    wanted[dataset].add(mask_id)
                text = records.compact_json([found.masks, found.turns, found.rounds])
                rows.add((found.image, text), len(text))
            files = self._files()
            places = {word: mask_files.places(word, files[word], ids) for word, ids in wanted.items()}
            yield from sorted(rejects, key=records.compact_json)
            for image, own in groupby(rows, lambda row: row[0]):
                yield from self._of_image(image, [text for _, text in own], places)

    def head(self, limit: int = MAX_NAMES) -> Head:
        """Lists the first images; where a file is large, counts those of the first conversations."""
        files = [
            uri for word, uri in self._files().items() if mask_files.KINDS[word] not in mask_files.FOLDERS
        ]
        if all(size_bytes(uri) <= self.max_head_bytes for uri in (self.source, *files)):
            return first_of(self.inputs(), limit)
        found = list(islice(self._conversations(), limit))
        images = {one.image for one in found if isinstance(one, Rounds)}
        return Head([one for one in found if isinstance(one, dict)], more=True, unlisted=len(images))

    def read(self, item: Input) -> ReadResult:
        """Reads one image's masks and conversations; a mask that is nowhere is a reject, and the
        conversations stay."""
        body = json.loads(item.payload)
        num_masks = len(body["masks"])
        try:
            image_uri = self.image_uri(item.key, *_repaired(item.key))
            usable, rejects = self._masks(body["masks"], item.key, image_uri)
            stated = (entry["segmentation"] for entry in usable if "segmentation" in entry)
            hw = _size_hw([place for *_, place in body["masks"]], item.key)
            hw = hw or records.size_hw_of_masks(stated, "the image") or image_source.read_size_hw(image_uri)
        except DataError as error:
            return ReadResult.refused(self.name, item.key, error, num_masks=num_masks)
        made: list[Annotation] = []
        for number, (masks, turns, rounds) in enumerate(body["conversations"], start=1):
            names = [MaskKey(*key).text for key in masks]
            payload = {"turns": turns, "rounds": rounds}
            made.append(annotations.annotation(str(number), "dialogue", names, payload=payload))
        return annotations.attach(records.make_row(self, item.key, image_uri, hw, usable, rejects), made)

    def _files(self) -> dict[str, str]:
        return mask_files.parse(self.mask_files)

    def _conversations(self) -> Iterator[Rounds | Reject]:
        """Yields conversations whose datasets are known, and what is none."""
        files, any_found, fault = self._files(), False, None
        for line in json_lines.read_lines(self.source, flag=_FLAG):
            where = f"#{line.number}"
            try:
                found = segllm_rounds.rounds_of(json_lines.parse_line(line.raw, f"conversation {where}"))
                records.image_name(found.image, "the image")
                for dataset, mask_id in found.masks:
                    _check(dataset, mask_id, files)
            except DataError as error:
                fault = fault or error
                yield self.reject(where, error.reason, f"conversation {where}: {error}")
                continue
            any_found = True
            yield found
        if fault and not any_found:
            raise DataError(
                f"{self.source} has no conversation that can be used; the first: {fault}",
                reason="segllm_layout",
            )

    def _of_image(self, image: str, texts: list[str], places: _Index) -> Iterator[Input | Reject]:
        """Yields the input of an image, and rejects of conversations that it has twice."""
        distinct = list(dict.fromkeys(texts))  # which come sorted
        for _ in range(len(texts) - len(distinct)):
            message = f"a conversation about image {image} is repeated; one is kept"
            yield self.reject(image, "duplicate_conversation", message, mask_id="annotation")
        conversations = [json.loads(text) for text in distinct]
        keys = sorted({MaskKey(*key) for masks, *_ in conversations for key in masks})
        masks = [[*key, places[key.dataset].get(key.mask_id)] for key in keys]
        payload = records.compact_json({"conversations": conversations, "masks": masks})
        yield Input(key=image, payload=payload, num_masks=len(masks))

    def _masks(self, listed: list[Any], image: str, image_uri: str) -> tuple[list[Record], list[Reject]]:
        """Reads the masks of an image, and rejects what cannot be read of them."""
        usable, rejects = [], []
        files, size_of = self._files(), cache(lambda: self.size_of(image_uri))
        for dataset, own_id, place in listed:
            mask_id = MaskKey(dataset, own_id).text
            try:
                if place is None:
                    fault = f"{files[dataset]} has no mask of the id {own_id}"
                    raise DataError(fault, reason="unknown_mask")
                _check_image(place, image)
                mask = mask_files.read(dataset, files[dataset], own_id, place, image, size_of)
            except DataError as error:
                message = f"mask {mask_id} of image {image}: {error}"
                rejects.append(records.mask_reject(self.name, image, mask_id, error.reason, message))
            else:
                label = {"label": place["label"]} if place.get("label") else {}
                usable.append({**mask, **label, "mask_id": mask_id})
        return usable, rejects


def _check(dataset: str, mask_id: str, files: dict[str, str]) -> None:
    if dataset not in mask_files.KINDS:
        known = ", ".join(mask_files.KINDS)
        raise DataError(f"masks of {dataset!r:.40} are unknown, known are {known}", reason="unknown_dataset")
    if dataset not in files:
        raise DataError(f"--corpus.mask-files has no file for {dataset}", reason="no_mask_file")


def _check_image(place: Place, image: str) -> None:
    """Compares numbers of images, which those of COCO end in; another number is another picture."""
    number = _NUMBER.search(image)
    own = place.get("image_id") or ""
    if number and own.isdecimal() and number[1].lstrip("0") != own.lstrip("0"):
        raise DataError(f"it is of the image {own}", reason="other_image")


def _size_hw(places: list[Place | None], image: str) -> tuple[int, int] | None:
    """Returns the size that the files of masks state for the image; None without one, or with several."""
    stated = [place["hw"] for place in places if place and isinstance(place.get("hw"), list)]
    stated = [hw for hw in stated if hw != [None, None]]  # its record has none, or several differ
    if not stated or len(stated[0]) != 2 or stated.count(stated[0]) < len(stated):
        return None
    height, width = stated[0]
    return records.size_hw({"height": height, "width": width}, f"image {image}")


def _repaired(image: str) -> list[str]:
    """Returns further names of an image, by the rules of SegLLM's loader."""
    found = []
    folder, slash, base = image.rpartition("/")
    plain = folder + slash + base.removeprefix("new_")
    for name in (image, plain):
        found.append(name)
        found.append(name.replace("val2014", "train2014"))
        found.append(name.replace("val2017", "train2017"))
        if name.startswith("VG_100K"):
            found.append(f"vg/{name}")
    return [name for name in dict.fromkeys(found) if name != image]
