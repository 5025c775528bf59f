"""One codec for the five ways in which datasets write a mask, and the run arithmetic that goes with it.

Inside samtok a mask travels as the *compressed COCO counts* string of a known size: runs of 0, 1, 0, 1, ...
down column 0, then column 1 (column-major), starting with zeros. The string is canonical: no run but the
first is empty, so equal masks are equal strings. Source: ``pycocotools`` (cocodataset/cocoapi, maskApi).

Everything here treats its input as untrusted. ``pycocotools`` returns uninitialised memory for counts that
are too short, reads boxes out of polygons with four numbers, and walks every polygon edge in steps of a
fifth of a pixel however long it is; so counts are parsed and summed before they are used, and polygons are
measured before they are drawn. Run-length input never becomes a dense mask: the cost follows the number of
runs, not the number of pixels. Image bytes are ``samtok.images``, label maps ``samtok.labelmaps``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Int, Shaped
from pycocotools import mask as coco

from samtok.errors import DataError

MAX_PIXELS = 2**28
"""Largest accepted height x width, 16384 x 16384: runs fit 32 bits, and a dense mask fits 256 MiB."""

MAX_COUNTS_CHARS = 2**22
"""Longest accepted counts string, read in 260 MB. A detailed SA-1B mask has about 10 thousand characters;
only noise over millions of pixels has more than this, and such a mask can be encoded but not read again."""

MAX_BOUNDARY_POINTS = 2**23
"""Most points, five per pixel of outline, that the polygons of one mask may need; 24 bytes of memory each."""

_POINTS_PER_PIXEL = 5  # rleFrPoly in maskApi.c upsamples by this
_MAX_GROUPS = 7  # 35 bits; a run difference needs 30
_MAX_COORDINATE = 2**31 / _POINTS_PER_PIXEL - 1  # beyond this the int in rleFrPoly overflows

Runs = Int[np.ndarray, " _run"]


@dataclass(frozen=True, eq=False)
class RunMask:
    """A mask as its runs of ones, which is what most of the work on masks needs.

    Attributes:
        starts: First pixel of each run, as an index into the column-major pixels; ascending.
        ends: The pixel after its last.
    """

    starts: Runs
    ends: Runs
    height: int
    width: int

    @classmethod
    def of_counts(cls, counts: str | bytes, *, height: int, width: int) -> "RunMask":
        """Returns the mask of compressed counts; raises the errors of ``parse_counts``."""
        return cls(*_spans(parse_counts(counts, height=height, width=width)), height, width)

    @classmethod
    def of_dense(cls, mask: Bool[np.ndarray, "height width"]) -> "RunMask":
        """Returns the runs of a dense mask."""
        flat = mask.ravel(order="F")
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        ends = [[0] if flat[0] else [], changes, [flat.size] if flat[-1] else []]
        edges = np.concatenate([np.asarray(part, np.int64) for part in ends])
        return cls(edges[::2], edges[1::2], *mask.shape)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the image, in pixels."""
        return self.height, self.width

    @property
    def area(self) -> int:
        """Pixels inside."""
        return int((self.ends - self.starts).sum())

    @property
    def box_xyxy(self) -> tuple[int, int, int, int] | None:
        """Returns (x_min, y_min, x_max, y_max) in pixel indices, the largest included; None if empty."""
        if self.starts.size == 0:
            return None
        left, top = np.divmod(self.starts, self.height)
        right, bottom = np.divmod(self.ends - 1, self.height)
        if (left != right).any():  # a run that enters the next column touches the last row and the first
            return int(left[0]), 0, int(right[-1]), self.height - 1
        return int(left[0]), int(top.min()), int(right[-1]), int(bottom.max())

    def segments(self) -> tuple[Runs, Runs, Runs]:
        """Returns the runs cut at the ends of columns: column, first row, and the row after the last."""
        left, top = np.divmod(self.starts, self.height)
        right, bottom = np.divmod(self.ends - 1, self.height)
        counts = right - left + 1
        if self.starts.size == 0 or counts.max() == 1:
            return left, top, bottom + 1
        place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        of_run = np.repeat(np.arange(counts.size), counts)
        tops = np.where(place == 0, top[of_run], 0)
        bottoms = np.where(place == counts[of_run] - 1, bottom[of_run] + 1, self.height)
        return left[of_run] + place, tops, bottoms

    def dense(self) -> Bool[np.ndarray, "height width"]:
        """Returns all pixels, C-contiguous; only the box is worked on."""
        out = np.zeros((self.height, self.width), bool)
        box = self.box_xyxy
        if box is None:
            return out
        x0, y0, x1, y1 = box
        columns, tops, bottoms = self.segments()
        high = y1 - y0 + 2  # with a row below, so that the end of a segment lies inside
        changes = np.zeros((x1 - x0 + 1) * high, np.int8)
        changes[(columns - x0) * high + tops - y0] = 1
        changes[(columns - x0) * high + bottoms - y0] = -1
        inside = np.cumsum(changes, dtype=np.int8).reshape(-1, high)[:, :-1]
        out[y0 : y1 + 1, x0 : x1 + 1] = inside.T
        return out


def to_counts(segmentation: object, *, height: int, width: int, max_pixels: int = MAX_PIXELS) -> str | None:
    """Turns a mask in any of the five published forms into canonical compressed counts.

    Args:
        segmentation: Polygons ``[[x1, y1, x2, y2, ...], ...]`` in pixels (their union is the mask; those
            with an odd length or fewer than 6 numbers are dropped), ``{"size": [h, w], "counts": [...]}``,
            ``{"size": [h, w], "counts": "..."}`` (str or bytes), a list of such dicts (union), or
            nothing: ``None``, ``[]``, ``{}``.
        height, width: Of the image in pixels; the size in the segmentation must be equal.
        max_pixels: Largest accepted height x width, at most ``MAX_PIXELS``.

    Returns:
        The counts, or None where no mask is given. A mask without pixels (an RLE of zeros, a polygon outside
        the image) is a mask: it gives counts whose ``area`` is 0.

    Raises:
        DataError: With the reason ``size_invalid``, ``too_large``, ``segmentation_type``, ``rle_size``,
            ``rle_counts``, ``rle_sum`` or ``polygon_invalid`` (also if all polygons had to be dropped).
    """
    _check_image_size(height, width, max_pixels)
    if segmentation is None or (isinstance(segmentation, dict | list | tuple) and not segmentation):
        return None
    if isinstance(segmentation, dict):
        return _write(_runs_of_dict(segmentation, height, width), height, width)
    if isinstance(segmentation, list | tuple):
        if isinstance(segmentation[0], dict):
            parts = [_runs_of_dict(part, height, width) for part in segmentation]
        elif isinstance(segmentation[0], list | tuple | np.ndarray):
            parts = _runs_of_polygons(segmentation, height, width)
        else:
            raise _type_error(f"a list of {type(segmentation[0]).__name__}")
        return _write(_union(parts, height * width), height, width)
    raise _type_error(f"a {type(segmentation).__name__}")


def encode(mask: np.ndarray) -> str:
    """Returns the canonical counts of a dense mask, bool or integer; every value but 0 is inside.

    Raises:
        ValueError: For another dtype, a shape other than (height, width), or no pixels.
    """
    if mask.ndim != 2 or mask.size == 0 or mask.dtype.kind not in "biu":
        raise ValueError(
            f"a mask must be a non-empty (height, width) array of bool or integers, got shape {mask.shape} "
            f"and dtype {mask.dtype}; threshold logits and probabilities first."
        )
    flat = (mask != 0).ravel(order="F")
    return from_edges(np.flatnonzero(np.diff(flat, prepend=False)), height=mask.shape[0], width=mask.shape[1])


def from_edges(edges: Int[np.ndarray, " _edge"], *, height: int, width: int) -> str:
    """Returns the counts of the mask that begins outside and changes side at each edge.

    Edges are strictly increasing indices in ``[0, height * width]`` into the column-major pixels.
    """
    _check_image_size(height, width, MAX_PIXELS)
    return _write(_runs_between(edges, height * width), height, width)


def decode(counts: str, *, height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """Returns the dense mask, C-contiguous; raises the errors of ``parse_counts``."""
    return RunMask.of_counts(counts, height=height, width=width).dense()


def parse_counts(counts: str | bytes, *, height: int, width: int) -> Runs:
    """Returns the length of each run in pixels, starting with zeros, checked to fill height x width exactly.

    Raises:
        DataError: ``rle_counts`` for characters outside codes 48 to 111, a number cut short or a negative
            run, ``rle_sum`` if the runs do not add up, ``too_large`` for a string too long to be right.
    """
    _check_image_size(height, width, MAX_PIXELS)
    limit = min(6 * (height * width + 1), MAX_COUNTS_CHARS)
    if len(counts) > limit:
        raise DataError(
            f"counts of a {height}x{width} mask have {len(counts)} characters, expected at most {limit}.",
            reason="too_large",
        )
    return _check_runs(_undo_differences(_parse_numbers(counts, height * width)), height, width)


def area(counts: str, *, height: int, width: int) -> int:
    """Returns the number of pixels inside the mask."""
    return int(parse_counts(counts, height=height, width=width)[1::2].sum())


def box_xyxy(counts: str, *, height: int, width: int) -> tuple[int, int, int, int] | None:
    """Returns ``RunMask.box_xyxy`` of counts."""
    return RunMask.of_counts(counts, height=height, width=width).box_xyxy


def union(parts: Sequence[str], *, height: int, width: int) -> str:
    """Returns the counts of the pixels inside any of the masks; no masks give the empty mask."""
    _check_image_size(height, width, MAX_PIXELS)
    runs = [parse_counts(part, height=height, width=width) for part in parts]
    return _write(_union(runs, height * width), height, width)


def box_of(mask: Shaped[np.ndarray, "height width"]) -> tuple[int, int, int, int] | None:
    """Returns ``box_xyxy`` of a dense mask: inclusive pixel indices, None if the mask is empty."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if columns.size == 0:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def iou(a: Bool[np.ndarray, "height width"], b: Bool[np.ndarray, "height width"]) -> float:
    """Returns intersection over union in [0, 1]; two empty masks agree, so they give 1."""
    if a.shape != b.shape:
        raise ValueError(f"masks must have the same size, got {a.shape} and {b.shape}.")
    either = int(np.count_nonzero(a | b))
    return int(np.count_nonzero(a & b)) / either if either else 1.0


def _runs_of_dict(segmentation: object, height: int, width: int) -> Runs:
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        raise _type_error(f"{type(segmentation).__name__} where a dict with size and counts belongs")
    _check_stated_size(segmentation.get("size"), height, width)
    counts = segmentation["counts"]
    if isinstance(counts, str | bytes):
        return parse_counts(counts, height=height, width=width)
    if isinstance(counts, list | tuple | np.ndarray):
        return _runs_of_list(counts, height, width)
    raise _type_error(f"a dict whose counts are a {type(counts).__name__}")


def _runs_of_list(counts: Sequence[Any] | np.ndarray, height: int, width: int) -> Runs:
    limit = min(height * width + 1, MAX_COUNTS_CHARS)
    if len(counts) > limit:
        raise DataError(
            f"a {height}x{width} mask has {len(counts)} runs, expected at most {limit}.", reason="too_large"
        )
    try:
        runs = np.asarray(counts)
    except (ValueError, OverflowError) as error:  # ragged lists, integers beyond any type
        raise DataError(
            f"runs of a mask are not a list of integers: {error}.", reason="rle_counts"
        ) from error
    if runs.ndim != 1 or (runs.size and runs.dtype.kind not in "iu"):
        raise DataError(
            f"runs of a mask must be a flat list of integers, got {runs.ndim} dimensions of {runs.dtype}.",
            reason="rle_counts",
        )
    if runs.size and runs.max() > height * width:  # before the cast: an unsigned 64-bit number may not fit
        raise DataError(
            f"a run of {runs.max()} pixels in a mask of {height}x{width} = {height * width}.",
            reason="rle_sum",
        )
    return _check_runs(runs.astype(np.int64), height, width)


def _runs_of_polygons(polygons: Sequence[Any], height: int, width: int) -> list[Runs]:
    arrays = [_polygon_array(polygon) for polygon in polygons]
    kept = [array for array in arrays if array.size >= 6 and array.size % 2 == 0]
    if not kept:
        sizes = [array.size for array in arrays[:10]]
        raise DataError(
            f"none of {len(arrays)} polygons can be drawn: they have {sizes} numbers, expected an even "
            "number of at least 6 (x, y of three corners).",
            reason="polygon_invalid",
        )
    _check_outline(kept)
    # frPyObjects takes a list whose first polygon has 4 numbers for boxes; the filter has removed those.
    drawn = coco.frPyObjects(cast(Any, kept), height, width)
    return [_undo_differences(_parse_numbers(rle["counts"], height * width)) for rle in cast(Any, drawn)]


def _polygon_array(polygon: object) -> np.ndarray:
    try:
        array = np.asarray(polygon)
    except (ValueError, OverflowError) as error:
        raise DataError(f"a polygon is not a list of numbers: {error}.", reason="polygon_invalid") from error
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iuf"):
        raise DataError(
            f"a polygon must be a flat list of numbers x1, y1, x2, y2, ..., got {array.ndim} dimensions "
            f"of {array.dtype}.",
            reason="polygon_invalid",
        )
    if not np.isfinite(array).all():
        raise DataError("a polygon has a coordinate that is not finite.", reason="polygon_invalid")
    return array.astype(np.float64)


def _check_outline(polygons: Sequence[np.ndarray]) -> None:
    points = 0.0
    for polygon in polygons:
        farthest = float(np.abs(polygon).max())
        if farthest > _MAX_COORDINATE:
            raise DataError(
                f"a polygon has a coordinate of {farthest:g} px, expected at most {_MAX_COORDINATE:g}.",
                reason="too_large",
            )
        corners = polygon.reshape(-1, 2)
        steps = np.abs(corners - np.roll(corners, -1, axis=0)).max(axis=1)
        points += float(steps.sum()) * _POINTS_PER_PIXEL + 2 * len(corners)
    if points > MAX_BOUNDARY_POINTS:
        raise DataError(
            f"the outline of {len(polygons)} polygons is {points / _POINTS_PER_PIXEL:.0f} px long, expected "
            f"at most {MAX_BOUNDARY_POINTS // _POINTS_PER_PIXEL}; are the coordinates in pixels?",
            reason="too_large",
        )


def _parse_numbers(counts: str | bytes, num_pixels: int) -> Int[np.ndarray, " _number"]:
    """Reads numbers in groups of five bits, lowest first; bit 5 is set if more follow, bit 4 is the sign."""
    try:
        raw = counts.encode("ascii") if isinstance(counts, str) else counts
    except UnicodeEncodeError as error:
        raise DataError(f"counts of a mask are not ASCII: {error}.", reason="rle_counts") from error
    groups = np.frombuffer(raw, np.uint8) - np.uint8(48)  # characters below 48 wrap to values above 63
    if groups.size == 0:
        return np.zeros(0, np.int64)
    ends = np.flatnonzero((groups & 0x20) == 0)
    if groups.max() > 63 or ends.size == 0 or ends[-1] != groups.size - 1:
        raise DataError(
            "counts of a mask have a character outside codes 48 to 111 or end inside a number.",
            reason="rle_counts",
        )
    lengths = np.diff(ends, prepend=-1)
    if lengths.max() > _MAX_GROUPS:
        raise DataError(f"counts of a mask have a number of {lengths.max()} digits.", reason="rle_counts")
    starts = ends - lengths + 1
    shifts = 5 * (np.arange(groups.size) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((groups & 0x1F).astype(np.int64) << shifts, starts)
    numbers -= np.where(groups[ends] & 0x10, np.int64(1) << (5 * lengths), 0)
    if np.abs(numbers).max() > num_pixels:  # also keeps the sums that follow inside 64 bits
        raise DataError(f"counts of a mask of {num_pixels} pixels have a larger step.", reason="rle_sum")
    return numbers


def _undo_differences(numbers: Int[np.ndarray, " _number"]) -> Runs:
    """From the fourth run on, a number is the difference to the run two places before."""
    runs = numbers.copy()
    runs[1::2] = np.cumsum(numbers[1::2])
    runs[2::2] = np.cumsum(numbers[2::2])
    return runs


def _check_runs(runs: Runs, height: int, width: int) -> Runs:
    if runs.size and runs.min() < 0:
        raise DataError(f"a mask has a run of {runs.min()} pixels, expected 0 or more.", reason="rle_counts")
    if runs.size > height * width + 1:
        raise DataError(f"a {height}x{width} mask has {runs.size} runs.", reason="too_large")
    total = int(runs.sum())
    if total != height * width:
        raise DataError(
            f"runs of a mask add up to {total} pixels, expected {height}x{width} = {height * width}; the "
            "counts are cut off or belong to another image.",
            reason="rle_sum",
        )
    return runs


def _spans(runs: Runs) -> tuple[Runs, Runs]:
    """Returns the first pixel of every non-empty run of ones and the pixel after its last."""
    ends = np.cumsum(runs)[1::2]
    ones = runs[1::2]
    return (ends - ones)[ones > 0], ends[ones > 0]


def _union(parts: Sequence[Runs], num_pixels: int) -> Runs:
    """Merges runs by sweeping over their ends; the result is canonical, also for a single part."""
    spans = [_spans(part) for part in parts]
    starts = np.concatenate([np.zeros(0, np.int64), *(span[0] for span in spans)])
    ends = np.concatenate([np.zeros(0, np.int64), *(span[1] for span in spans)])
    positions = np.concatenate([starts, ends])
    order = np.argsort(positions, kind="stable")
    positions = positions[order]
    depth = np.cumsum(np.where(order < starts.size, 1, -1))
    last = np.append(positions[1:] != positions[:-1], True)[: positions.size]
    inside, positions = depth[last] > 0, positions[last]
    changes = positions[np.diff(inside, prepend=False)]
    return _runs_between(changes, num_pixels)


def _runs_between(edges: Int[np.ndarray, " _edge"], num_pixels: int) -> Runs:
    runs = np.diff(edges, prepend=0, append=num_pixels)
    return runs if runs[-1] else runs[:-1]  # ones that reach the last pixel leave no zeros behind them


def _write(runs: Runs, height: int, width: int) -> str:
    if (runs[1:] == 0).any():
        runs = _union([runs], height * width)
    rle: Any = coco.frPyObjects(cast(Any, {"size": [height, width], "counts": runs}), height, width)
    return rle["counts"].decode("ascii")


def _check_image_size(height: int, width: int, max_pixels: int) -> None:
    if height < 1 or width < 1:
        raise DataError(f"an image of {height}x{width} pixels cannot have masks.", reason="size_invalid")
    if height * width > max_pixels:
        raise DataError(
            f"a mask of {height}x{width} pixels, expected at most {max_pixels} in all.", reason="too_large"
        )


def _check_stated_size(size: object, height: int, width: int) -> None:
    stated = size.tolist() if isinstance(size, np.ndarray) else size
    if not isinstance(stated, list | tuple) or len(stated) != 2:
        raise DataError(
            f"an RLE must state its size as [height, width], got {size!r:.80}.", reason="rle_size"
        )
    if list(stated) != [height, width]:
        swapped = "; height and width are swapped" if list(stated) == [width, height] else ""
        raise DataError(
            f"an RLE states the size {stated!r:.80}, the image has [{height}, {width}]{swapped}.",
            reason="rle_size",
        )


def _type_error(got: str) -> DataError:
    return DataError(
        f"a segmentation is {got}, expected polygons, an RLE dict, a list of RLE dicts, or null.",
        reason="segmentation_type",
    )
