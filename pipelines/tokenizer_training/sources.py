"""What training and validation read, and where it comes from: datasets behind a reader, synthetic scenes.

Which masks of an image a step trains on is set by ``SamplingConfig``, in this order:

- ``skip`` and ``min_area_px`` leave out masks that are never trained on (``why_unusable``);
- ``drop_nested`` leaves out masks that lie in a larger one, so that wholes are seen and not their parts;
- ``pick`` draws without replacement: ``uniform`` takes all masks alike, ``area`` in proportion to the root of
  their area, about their width in pixels. SA-1B has many tiny masks; most of a step would go to them.
"""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8
from pycocotools import mask as coco

from pipelines import schema, storage
from pipelines.ingestion import orientation
from pipelines.ingestion.image_source import read_picture
from pipelines.ingestion.reader import WITHOUT_PIXELS, Input, Reader, ReadResult, read_record
from pipelines.rejects import FILTER
from pipelines.tokenizer_training.config import SamplingConfig
from pipelines.training.draws import Unusable
from samtok import masks
from samtok.errors import DataError, StorageError
from samtok.masks import RunMask
from samtok.shapes import WorldConfig, make_scene

STAGE = "train"
"""Stage of all rejects made here."""

NESTED_SHARE = 0.9
"""Share of a mask's area that must lie in a larger mask for it to count as a part of that one."""


@dataclass(frozen=True)
class Sample:
    """An image and the masks of it that are trained on or measured, never without masks.

    ``counts`` has ``masks_in`` of the image, and how many of them were ``masks_rejected`` or
    ``masks_filtered``, these by reason too: ``masks_filtered/crowd``.
    """

    name: str  # ``dataset/image id``
    image: UInt8[np.ndarray, "height width 3"]  # RGB
    masks: list[RunMask]  # at the image's size, none of them empty
    counts: Mapping[str, int] = field(default_factory=dict)
    rejects: Sequence[dict[str, Any]] = ()  # entries of the reject table for its other masks


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
    max_pixels: int = masks.MAX_PIXELS

    @property
    def name(self) -> str:
        return self.reader.name

    def __len__(self) -> int:
        return self.count

    def read(self, index: int, *, most: int, draw: np.random.Generator) -> Sample:
        """As ``Source.read``; an image is only decoded if it has usable masks."""
        item = self._item(index)
        lost = Counter[str]()
        try:
            result = read_record(self.reader, item)
            runs, counts = self._picked(item, result, most, draw)
            lost = Counter(masks_in=result.num_masks_in, masks_rejected=result.num_masks_in)
            row = result.row
            assert row is not None  # or nothing had been picked
            where, height, width = row["image_uri"], row["height"], row["width"]
            picture = read_picture(where, expected_hw=(height, width), max_pixels=self.max_pixels)
        except DataError as error:
            raise Unusable(self._reject(item, error.reason, str(error)), counts=lost) from error
        rejects = [*result.rejects, *orientation.note(STAGE, row, picture)]
        return Sample(f"{self.name}/{item.key}", picture.pixels, runs, counts, rejects)

    def _picked(
        self, item: Input, result: ReadResult, most: int, draw: np.random.Generator
    ) -> tuple[list[RunMask], Counter[str]]:
        """Returns the masks that are trained on, at least one; and what became of all of them."""
        row, rejected = result.row, sum(entry["num_masks"] for entry in result.rejects)
        counts = Counter(masks_in=result.num_masks_in, masks_rejected=rejected)
        if row is None:
            first = result.rejects[0]
            raise Unusable(self._reject(item, first["reason"], first["message"]), counts=counts)
        size_hw, lost = (row["height"], row["width"]), Counter[str]()
        rles, runs = [], []
        for mask in row["masks"]:
            reason = why_unusable(mask["flags"], self.policy)
            if reason is None:
                run = RunMask.of_counts(mask["rle"], height=size_hw[0], width=size_hw[1])
                if run.area >= self.policy.min_area_px:
                    rles.append(mask["rle"])
                    runs.append(run)
                    continue
            lost[reason or "min_area"] += 1
        counts += _filtered(lost)
        if not rles:
            lost.update(entry["reason"] for entry in result.rejects if entry["num_masks"])
            because = ", ".join(f"{count} {reason}" for reason, count in sorted(lost.items()))
            message = (
                f"none of the {result.num_masks_in} masks can be trained on ({because or 'there are none'})."
            )
            filtered = not any(entry["num_masks"] for entry in result.rejects)
            reject = self._reject(item, "no_masks", message)
            if filtered:
                reject |= {"stage": FILTER, "reason": "all_filtered"}
            raise Unusable(reject, filtered=filtered, counts=counts)
        areas = [run.area for run in runs]
        picked = pick_masks(rles, areas, size_hw=size_hw, most=most, policy=self.policy, draw=draw)
        return [runs[i] for i in picked], counts

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
    """Maps an index file into this process, once; an object's copy is one for all processes of a node, and so
    is its memory."""
    path = storage.node_file(uri)
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

    name: str = "scenes"

    def __len__(self) -> int:
        return self.count

    def read(self, index: int, *, most: int, draw: np.random.Generator) -> Sample:
        """As ``Source.read``; unusable if all masks are too small for ``--sampling.min-area-px``."""
        scene = make_scene(self.seed, self.first_index + index, self.world)
        runs = [RunMask.of_dense(shape.mask) for shape in scene.objects]
        found = [(mask, mask.area) for mask in runs]
        usable = [(mask, area) for mask, area in found if area >= self.policy.min_area_px]
        counts = Counter(masks_in=len(found)) + _filtered(Counter(min_area=len(found) - len(usable)))
        if not usable:
            message = f"none of the {len(found)} masks of a scene can be trained on ({len(found)} min_area)."
            reject = schema.reject(
                FILTER, self.name, str(scene.index), "all_filtered", message, num_masks=len(found)
            )
            raise Unusable(reject, filtered=True, counts=counts)
        picked = draw_masks([area for _, area in usable], most=most, policy=self.policy, draw=draw)
        return Sample(f"{self.name}/{scene.index}", scene.image, [usable[i][0] for i in picked], counts)


def _filtered(reasons: Counter[str]) -> Counter[str]:
    """Returns the counts of masks that settings leave out, together and by reason."""
    by_reason = {f"masks_filtered/{reason}": count for reason, count in reasons.items()}
    return +Counter({"masks_filtered": reasons.total(), **by_reason})


# ---------------------------------------------------------------- which masks


def why_unusable(flags: Sequence[str], policy: SamplingConfig) -> str | None:
    """Returns the first flag that keeps a mask out of training, or None; its area is not looked at."""
    return next((flag for flag in (*policy.skip, *WITHOUT_PIXELS) if flag in flags), None)


def pick_masks(
    rles: Sequence[str],
    areas_px: Sequence[int],
    *,
    size_hw: tuple[int, int],
    most: int,
    policy: SamplingConfig,
    draw: np.random.Generator,
) -> list[int]:
    """Returns the positions of the masks to train on, ascending, at most ``most``.

    Args:
        rles: Compressed COCO counts of usable masks of one image; checked ones, none empty.
        areas_px: Their areas, above 0.
        most: Most masks to pick, at least 1.
        draw: Used only where there are more masks than that.
    """
    left = without_nested(rles, areas_px, size_hw) if policy.drop_nested else list(range(len(rles)))
    return [left[i] for i in draw_masks([areas_px[i] for i in left], most=most, policy=policy, draw=draw)]


def draw_masks(
    areas_px: Sequence[int], *, most: int, policy: SamplingConfig, draw: np.random.Generator
) -> list[int]:
    """Draws at most ``most`` positions without replacement, ascending; as ``pick_masks``, nesting aside."""
    if len(areas_px) <= most:
        return list(range(len(areas_px)))
    weights = np.sqrt(np.asarray(areas_px, np.float64)) if policy.pick == "area" else 1.0
    # The first of exponential clocks with these rates to ring, then the next: drawing without replacement.
    rings = draw.exponential(size=len(areas_px)) / weights
    return sorted(np.argsort(rings, kind="stable")[:most].tolist())


def without_nested(rles: Sequence[str], areas_px: Sequence[int], size_hw: tuple[int, int]) -> list[int]:
    """Returns the positions of masks that do not lie in a larger one, ascending; never none of some.

    A mask lies in another if ``NESTED_SHARE`` of its area does. Of masks of equal area the first counts as
    the larger, so of equal masks one stays.
    """
    if len(rles) < 2:
        return list(range(len(rles)))
    coded = cast(Any, [{"size": list(size_hw), "counts": rle.encode()} for rle in rles])
    inside = np.asarray(coco.iou(coded, coded, [1] * len(rles)))  # crowd: intersection over the first's area
    order = np.lexsort((np.arange(len(rles)), -np.asarray(areas_px)))
    rank = np.empty(len(rles), np.int64)
    rank[order] = np.arange(len(rles))
    is_larger = rank[None, :] < rank[:, None]  # column than row
    return np.flatnonzero(~((inside >= NESTED_SHARE) & is_larger).any(axis=1)).tolist()
