"""What training and validation read, and where it comes from: datasets behind a reader, synthetic scenes."""

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

from pipelines import schema, storage
from pipelines.ingestion.image_source import read_image_bytes
from pipelines.ingestion.reader import Input, Reader, ReadResult
from pipelines.tokenizer_training.config import SamplingConfig
from pipelines.tokenizer_training.select import draw_masks, pick_masks, why_unusable
from pipelines.training.draws import Unusable
from samtok import images, masks
from samtok.errors import DataError, StorageError
from samtok.shapes import WorldConfig, make_scene

STAGE = "train"
"""Stage of all rejects made here."""


@dataclass(frozen=True)
class Sample:
    """An image and the masks of it that are trained on or measured, never without masks.

    ``counts`` has ``masks_in`` of the image, and how many of them were ``masks_rejected`` or
    ``masks_filtered``.
    """

    name: str  # ``dataset/image id``
    image: UInt8[np.ndarray, "height width 3"]  # RGB
    masks: list[np.ndarray]  # bool arrays at the image's size, none of them empty
    counts: Mapping[str, int] = field(default_factory=dict)


class Source(Protocol):
    """One dataset with a fixed order of images. Small and picklable: it travels to loader processes."""

    @property
    def name(self) -> str:
        """Name of the dataset."""
        ...

    def __len__(self) -> int:
        """Images that may be drawn."""
        ...

    def read(self, index: int, *, most: int, draw: np.random.Generator) -> Sample:
        """Reads an image and at most ``most`` of its masks, drawn as the run's sampling says. Raises Unusable
        if the record, the image or all of its masks cannot be used; StorageError if the storage fails."""
        ...


@dataclass(frozen=True)
class CorpusSource:
    """A dataset behind a reader, over the inputs that ``corpus.build_index`` listed."""

    reader: Reader
    uri: str
    count: int
    policy: SamplingConfig

    @property
    def name(self) -> str:
        return self.reader.name

    def __len__(self) -> int:
        return self.count

    def read(self, index: int, *, most: int, draw: np.random.Generator) -> Sample:
        """As ``Source.read``; an image is only decoded if it has usable masks."""
        item = self._item(index)
        try:
            result = self.reader.read(item)
            rles, counts = self._picked(item, result, most, draw)
            row = result.row
            assert row is not None  # or nothing had been picked
            where, height, width = row["image_uri"], row["height"], row["width"]
            image = images.decode_image(read_image_bytes(where), where=where, expected_hw=(height, width))
            dense = [masks.decode(rle, height=height, width=width) for rle in rles]
        except DataError as error:
            raise Unusable(self._reject(item, error.reason, str(error))) from error
        except storage.NotFoundError as error:
            raise Unusable(self._reject(item, "image_missing", str(error))) from error
        return Sample(f"{self.name}/{item.key}", image, dense, counts)

    def _picked(
        self, item: Input, result: ReadResult, most: int, draw: np.random.Generator
    ) -> tuple[list[str], Counter[str]]:
        """Returns the RLEs of the masks that are trained on, at least one; and what became of all of them."""
        row, rejected = result.row, sum(entry["num_masks"] for entry in result.rejects)
        counts = Counter(masks_in=result.num_masks_in, masks_rejected=rejected)
        if row is None:
            first = result.rejects[0]
            raise Unusable(self._reject(item, first["reason"], first["message"]), counts=counts)
        size_hw, lost = (row["height"], row["width"]), Counter[str]()
        rles, areas = [], []
        for mask in row["masks"]:
            reason = why_unusable(mask["flags"], self.policy)
            area = 0 if reason else masks.area(mask["rle"], height=size_hw[0], width=size_hw[1])
            if reason or area < self.policy.min_area_px:
                lost[reason or "min_area"] += 1
            else:
                rles.append(mask["rle"])
                areas.append(area)
        counts["masks_filtered"] = lost.total()
        if not rles:
            lost.update(entry["reason"] for entry in result.rejects)
            because = ", ".join(f"{count} {reason}" for reason, count in sorted(lost.items()))
            message = (
                f"none of the {result.num_masks_in} masks can be trained on ({because or 'there are none'})."
            )
            raise Unusable(
                self._reject(item, "no_masks", message), filtered=not result.rejects, counts=counts
            )
        picked = pick_masks(rles, areas, size_hw=size_hw, most=most, policy=self.policy, draw=draw)
        return [rles[i] for i in picked], counts

    def _reject(self, item: Input, reason: str, message: str) -> dict[str, Any]:
        return schema.reject(STAGE, self.name, item.key, reason, message, num_masks=item.num_masks or 0)

    def _item(self, index: int) -> Input:
        table = _mapped(self.uri)
        if not 0 <= index < self.count == table.num_rows:
            raise IndexError(
                f"{self.uri} has {table.num_rows} images, expected {self.count}; asked for {index}"
            )
        return Input(table["key"][index].as_py(), table["payload"][index].as_py(), None)


@functools.cache
def _mapped(uri: str) -> pa.Table:
    """Maps an index file into this process, once.

    An object is copied to a file first, which is deleted at once: the mapping keeps its content until the
    process ends.
    """
    with storage.local_copy(uri) as path:
        try:
            return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (pa.ArrowInvalid, OSError) as error:
            raise StorageError(
                f"{uri} cannot be read as an Arrow file: {error}. Delete its folder; the same command "
                "makes it again."
            ) from error


@dataclass(frozen=True)
class SceneSource:
    """Synthetic scenes, made when they are read. Their masks are what is visible, so none lies in another."""

    seed: int
    count: int
    first_index: int
    world: WorldConfig
    policy: SamplingConfig

    name: ClassVar[str] = "scenes"

    def __len__(self) -> int:
        return self.count

    def read(self, index: int, *, most: int, draw: np.random.Generator) -> Sample:
        """As ``Source.read``; unusable if all masks are too small for ``--sampling.min-area-px``."""
        scene = make_scene(self.seed, self.first_index + index, self.world)
        found = [(shape.mask, int(shape.mask.sum())) for shape in scene.objects]
        usable = [(mask, area) for mask, area in found if area >= self.policy.min_area_px]
        counts = {"masks_in": len(found), "masks_filtered": len(found) - len(usable)}
        if not usable:
            message = f"none of the {len(found)} masks of a scene can be trained on ({len(found)} min_area)."
            reject = schema.reject(
                STAGE, self.name, str(scene.index), "no_masks", message, num_masks=len(found)
            )
            raise Unusable(reject, filtered=True, counts=counts)
        picked = draw_masks([area for _, area in usable], most=most, policy=self.policy, draw=draw)
        return Sample(f"{self.name}/{scene.index}", scene.image, [usable[i][0] for i in picked], counts)
