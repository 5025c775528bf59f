"""Masks at the size that networks work on, computed from their runs and not from pixels.

Every column of a mask is a few vertical segments, and resizing is linear. So a segment adds to an output cell
the product of two weights, one of its column and one of its rows, and only the ends of segments are touched:
the cost follows the outline of a mask, not its pixels or those of its image.

Weights are whole numbers, and all sums stay below 2**53, so float64 holds them exactly: results do not depend
on the order of addition, and so not on how masks are grouped. ``soft`` weighs as PyTorch's ``interpolate``
does (bilinear, antialiased), to 2**-26; ``area`` is ``adaptive_avg_pool2d``, ``nearest`` is nearest sampling.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from samtok.masks import RunMask

_BITS = 26
_ONE = 2.0**_BITS
"""What the weights of a cell add up to along one axis; the product of two fits the 53 bits of a double."""

_CACHED_SIDE = 2**14
"""Longest side, in pixels, whose weights are kept; they take 50 bytes a pixel of it."""


@dataclass(frozen=True)
class SmallMasks:
    """Masks of size x size cells each, of which only the part that is not 0 is held.

    Attributes:
        boxes: x0, y0, x1, y1 in cells of each part; the ends are exclusive.
        values: The parts, row by row, one after the other.
    """

    size: int
    boxes: Int[np.ndarray, "mask 4"]
    values: Float[np.ndarray, " cell"]

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, part: slice) -> "SmallMasks":
        ends = np.append(0, np.cumsum(self._cells))
        start, stop, _ = part.indices(len(self))
        return SmallMasks(self.size, self.boxes[part], self.values[ends[start] : ends[max(start, stop)]])

    def take(self, chosen: Sequence[int]) -> "SmallMasks":
        """Returns some of the masks, in the order given."""
        return SmallMasks.join([self[k : k + 1] for k in chosen], self.size)

    @property
    def _cells(self) -> Int[np.ndarray, " mask"]:
        return np.prod(self.boxes[:, 2:] - self.boxes[:, :2], axis=1, dtype=np.int64)

    def fill(self, out: Float[np.ndarray, "mask size size"]) -> None:
        """Writes the masks into an array of zeros."""
        start = 0
        for whole, (x0, y0, x1, y1), cells in zip(
            out, self.boxes.tolist(), self._cells.tolist(), strict=True
        ):
            whole[y0:y1, x0:x1] = self.values[start : start + cells].reshape(y1 - y0, x1 - x0)
            start += cells

    def dense(self) -> Float[np.ndarray, "mask size size"]:
        """Returns all of them with their zeros."""
        out = np.zeros((len(self), self.size, self.size), np.float32)
        self.fill(out)
        return out

    @classmethod
    def join(cls, parts: Sequence["SmallMasks"], size: int) -> "SmallMasks":
        """Returns masks of one size behind one another."""
        boxes = [np.empty((0, 4), np.int32), *(part.boxes for part in parts)]
        values = [np.empty(0, np.float32), *(part.values for part in parts)]
        return cls(size, np.concatenate(boxes), np.concatenate(values))


def soft(masks: Sequence[RunMask], size: int) -> SmallMasks:
    """Shrinks or enlarges masks of any sizes by antialiased bilinear interpolation; values are in [0, 1]."""
    return _resized(masks, size, _bilinear)


def area(masks: Sequence[RunMask], size: int) -> SmallMasks:
    """Returns the share of every cell that lies inside each mask; pixels on an edge belong to both cells."""
    return _resized(masks, size, _average)


def nearest(masks: Sequence[RunMask], size: int) -> SmallMasks:
    """Returns 1 where the pixel at a cell's upper left corner lies inside, else 0."""
    return _resized(masks, size, _corner)


class _Windows(NamedTuple):
    """The inputs along one axis that each output reads: ``weights[i, k]`` is that of input ``starts[i] + k``.

    They are whole numbers, and those of every output add up to the same."""

    starts: Int[np.ndarray, " out"]
    counts: Int[np.ndarray, " out"]
    weights: Float[np.ndarray, "out tap"]


class _Steps(NamedTuple):
    """What each position along one axis adds to outputs: ``values[p, k]`` to output ``first[p] + k``."""

    first: Int[np.ndarray, " position"]
    values: Float[np.ndarray, "position reach"]


class _Axes(NamedTuple):
    columns: _Steps
    """Of a column of the image: its weight in every output column."""
    rows: _Steps
    """Of an end of a segment: the difference, from each output row to the next, of what lies below it."""
    total: float
    """Sum of the weights of a cell."""


_Rule = Callable[[int, int], _Windows]


def _resized(masks: Sequence[RunMask], size: int, rule: _Rule) -> SmallMasks:
    boxes, values = np.zeros((len(masks), 4), np.int32), [np.empty(0, np.float32)]
    for i, mask in enumerate(masks):
        axes = _axes(rule, mask.height, mask.width, size)
        columns, tops, bottoms = mask.segments()
        if not columns.size:
            continue
        boxes[i], sums = _sums(axes, columns, tops, bottoms, mask.height, size)
        values.append((sums / axes.total).astype(np.float32).ravel())
    return SmallMasks(size, boxes, np.concatenate(values))


def _sums(
    axes: _Axes,
    columns: Int[np.ndarray, " segment"],
    tops: Int[np.ndarray, " segment"],
    bottoms: Int[np.ndarray, " segment"],
    height: int,
    size: int,
) -> tuple[tuple[int, int, int, int], Float[np.ndarray, "y x"]]:
    """Returns the cells that segments reach, and the weighted sum of pixels in each of them."""
    ends = bottoms < height  # what reaches the last row goes on below it
    x = np.concatenate([columns, columns[ends]])
    y = np.concatenate([tops, bottoms[ends]])
    sign = np.ones(x.size)
    sign[columns.size :] = -1.0
    left, across = axes.columns.first[x], axes.columns.values[x]
    upper, down = axes.rows.first[y], axes.rows.values[y] * sign[:, None]
    x0, x1 = int(left.min()), min(size, int(left.max()) + across.shape[1])
    y0 = int(upper.min())
    y1 = min(size, int(upper.max()) + down.shape[1]) if ends.all() else size
    wide, high = x1 - x0 + across.shape[1], y1 - y0 + down.shape[1]  # with room for weights of 0
    cells = ((left - x0) * high + (upper - y0))[:, None, None]
    cells = cells + np.arange(across.shape[1])[:, None] * high + np.arange(down.shape[1])
    added = across[:, :, None] * down[:, None, :]
    found = np.bincount(cells.ravel(), added.ravel(), minlength=wide * high).reshape(wide, high)
    return (x0, y0, x1, y1), np.cumsum(found, axis=1)[: x1 - x0, : y1 - y0].T


def _axes(rule: _Rule, height: int, width: int, size: int) -> _Axes:
    made = _cached_steps if max(height, width) <= _CACHED_SIDE else _steps
    across, _, total_across = made(rule, width, size)
    _, down, total_down = made(rule, height, size)
    return _Axes(across, down, total_across * total_down)


def _steps(rule: _Rule, length: int, size: int) -> tuple[_Steps, _Steps, float]:
    """Returns weights by input, differences of what lies at or behind an input, and the sum of a cell's."""
    windows = rule(length, size)
    starts, counts, weights = windows
    stops = starts + counts
    inputs = np.arange(length)
    first = np.searchsorted(stops, inputs, side="right")  # the first output that reads this input or a later
    past = np.searchsorted(starts, inputs, side="right")  # the first whose inputs are all later
    reach = int((past - first).max(initial=0)) + 1
    suffix = np.zeros((size + 1, weights.shape[1] + 1))
    suffix[:size, :-1] = np.cumsum(weights[:, ::-1], axis=1)[:, ::-1]
    behind = np.zeros((length, reach + 1))  # of output first - 1 it is 0
    for k in range(reach):
        output = np.minimum(first + k, size)
        start = np.append(starts, length)[output]
        behind[:, k + 1] = suffix[output, np.clip(inputs - start, 0, weights.shape[1])]
    down = np.diff(behind, axis=1)
    later = np.concatenate([behind[1:], np.zeros((1, reach + 1))])
    shift = np.append(first[1:], size) - first  # outputs that have no input left
    place = np.arange(1, reach + 1) - shift[:, None]
    after = np.where(place > 0, np.take_along_axis(later, np.clip(place, 0, reach), axis=1), 0.0)
    beyond = first[:, None] + np.arange(reach) >= size
    across = _Steps(first, behind[:, 1:] - after)
    return across, _Steps(first, np.where(beyond, 0.0, down)), float(weights[0].sum())


_cached_steps = functools.lru_cache(maxsize=512)(_steps)


def _bilinear(length: int, size: int) -> _Windows:
    """As PyTorch on a CPU (aten/src/ATen/native/cpu/UpSampleKernel.cpp), in float32; then whole numbers."""
    f = np.float32
    scale = f(length) / f(size)
    support, inverse = max(scale, f(1)), min(f(1) / scale, f(1))
    centers = (np.float64(scale) * (np.arange(size) + 0.5)).astype(f)
    starts = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    counts = np.minimum((centers + support + 0.5).astype(np.int64), length) - starts
    taps = np.arange(counts.max())
    distances = ((taps + starts[:, None]).astype(f) - centers[:, None] + 0.5).astype(f) * inverse
    weights = np.maximum(1 - np.abs(distances), 0) * (taps < counts[:, None])
    totals = np.cumsum(weights, axis=1, dtype=f)[:, -1:]
    whole = np.rint((weights / totals).astype(np.float64) * _ONE)
    rows = np.arange(size)
    whole[rows, whole.argmax(axis=1)] += _ONE - whole.sum(axis=1)  # so that a mask of all pixels gives 1
    return _Windows(starts, counts, whole)


def _average(length: int, size: int) -> _Windows:
    starts = np.arange(size) * length // size
    counts = -(-(np.arange(size) + 1) * length // size) - starts
    weights = np.lcm.reduce(np.unique(counts)) / counts  # whole numbers
    return _Windows(starts, counts, weights[:, None] * (np.arange(counts.max()) < counts[:, None]))


def _corner(length: int, size: int) -> _Windows:
    starts = (np.arange(size) * (np.float32(length) / np.float32(size))).astype(np.int64)
    return _Windows(np.minimum(starts, length - 1), np.ones(size, np.int64), np.ones((size, 1)))
