"""Synthetic scenes with exact masks: coloured shapes that overlap on a textured background.

A scene is a pure function of (seed, index, config), whatever the order or the process in which scenes are
made, so a corpus needs no storage to be repeated, and disjoint index ranges are disjoint splits. Sentences
about a scene are in ``language``; writing scenes in published formats is left to the pipeline.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from samtok import masks
from samtok.shapes.drawing import KINDS, PALETTE, Footprint, background, grain

MIN_SIDE_PX = 16

WORLD_VERSION = 1
"""Counts up when the same (seed, index, config) gives another scene; written into every stored corpus."""


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Appearance of scenes. Lengths are shares of the image's shorter side."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 an unknown key in a config file is named

    sizes_hw: tuple[tuple[int, int], ...] = ((128, 128),)
    """Image sizes (height, width) in pixels; every image takes one of them at random."""
    min_objects: int = 1
    """Fewest shapes that are tried per image."""
    max_objects: int = 6
    """Most shapes that are tried per image; those that others hide are left out."""
    small_radius: tuple[float, float] = (0.06, 0.12)
    """Range of the radius of small shapes."""
    large_radius: tuple[float, float] = (0.15, 0.24)
    """Range of the radius of large shapes; the gap to the small ones keeps the two words clear."""
    large_share: float = 0.6
    """Share of shapes that are large."""
    kinds: tuple[str, ...] = KINDS
    """Shapes that may appear."""
    colours: tuple[str, ...] = tuple(PALETTE)
    """Colours that may appear."""
    colour_jitter: int = 12
    """Largest change of a colour channel, in 0..255."""
    texture: float = 1.0
    """Contrast of the background; 0 makes it flat."""
    min_visible_px: int = 20
    """Fewest visible pixels of a shape in an image of side 128; scaled with the area for other sizes."""
    min_visible_share: float = 0.45
    """Least share of a shape that must stay visible."""
    grid: int = 0
    """Cells per side, each with one shape at most; 0 puts shapes anywhere, also over each other."""
    grid_jitter: float = 0.0
    """grid: largest distance of a shape from the middle of its cell along either side."""

    def __post_init__(self) -> None:
        for problem in self._problems():
            raise ValueError(f"world: {problem}.")

    def _problems(self) -> list[str]:
        radii = (*self.small_radius, *self.large_radius)
        shares = {"large_share": self.large_share, "min_visible_share": self.min_visible_share}
        checks: list[tuple[object, str]] = [
            (self.sizes_hw, "sizes_hw needs at least one (height, width)"),
            (
                all(min(size) >= MIN_SIDE_PX for size in self.sizes_hw),
                f"sizes_hw must be >= {MIN_SIDE_PX} pixels a side, got {self.sizes_hw}",
            ),
            (
                1 <= self.min_objects <= self.max_objects <= 99,
                f"objects must be 1 <= min <= max <= 99, got {self.min_objects}..{self.max_objects}",
            ),
            (
                0 < radii[0] <= radii[1] < radii[2] <= radii[3] <= 0.5,
                f"radii must grow within (0, 0.5] and leave a gap between small and large, got {radii}",
            ),
            *((0 <= share <= 1, f"{name} must be in [0, 1], got {share}") for name, share in shares.items()),
            (self.min_visible_px >= 1, f"min_visible_px must be >= 1, got {self.min_visible_px}"),
            (0 <= self.texture <= 3, f"texture must be in [0, 3], got {self.texture}"),
            (0 <= self.colour_jitter <= 40, f"colour_jitter must be in [0, 40], got {self.colour_jitter}"),
            (
                self.grid == 0 or self.max_objects <= self.grid**2,
                f"grid must be 0, or have cells for max_objects {self.max_objects}, got {self.grid}",
            ),
            (0 <= self.grid_jitter <= 0.1, f"grid_jitter must be in [0, 0.1], got {self.grid_jitter}"),
            *_known("kinds", self.kinds, KINDS),
            *_known("colours", self.colours, tuple(PALETTE)),
        ]
        return [problem for fine, problem in checks if not fine]

    @classmethod
    def square(cls, side: int, **changes: object) -> WorldConfig:
        """Returns a world of square images of ``side`` pixels, with other fields changed by name."""
        return cls(sizes_hw=((side, side),), **changes)  # type: ignore[arg-type]


def _known(field: str, chosen: tuple[str, ...], known: tuple[str, ...]) -> list[tuple[object, str]]:
    unknown = sorted(set(chosen) - set(known))
    return [
        (chosen, f"{field} must not be empty; known are {', '.join(known)}"),
        (not unknown, f"{field} has unknown {', '.join(unknown)}; known are {', '.join(known)}"),
    ]


@dataclass(frozen=True, kw_only=True, eq=False)
class ShapeObject:
    """One visible shape of a scene.

    Attributes:
        colour: Colour name.
        size: ``small`` or ``large``, by the radius.
        centre_xy: Centre of the whole shape in pixels, also where a part of it is hidden.
        radius_px: Radius of the whole shape in pixels.
        angle: Rotation in radians.
        mask: Visible pixels only; may have holes and several parts, never empty.
    """

    kind: str
    colour: str
    size: str
    centre_xy: tuple[float, float]
    radius_px: float
    angle: float
    mask: Bool[np.ndarray, "height width"]

    @functools.cached_property
    def box_xyxy(self) -> tuple[int, int, int, int]:
        """First and last pixel indices (x, y, x, y) of the visible part, as ``samtok.masks.box_of``."""
        box = masks.box_of(self.mask)
        assert box is not None
        return box

    @property
    def visible_centre_xy(self) -> tuple[float, float]:
        """Centre of the visible part's box in pixels; position words and relations go by it."""
        left, top, right, bottom = self.box_xyxy
        return (left + right + 1) / 2, (top + bottom + 1) / 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """An image with all its shapes.

    Attributes:
        image: RGB.
        objects: Shapes in painting order: a later one hides an earlier one. At least one.
        in_front: Pairs ``(i, j)``: the visible part of object ``i`` hides a clear piece of object ``j``.
    """

    seed: int
    index: int
    config: WorldConfig
    image: UInt8[np.ndarray, "height width 3"]
    objects: tuple[ShapeObject, ...]
    in_front: tuple[tuple[int, int], ...]

    @property
    def size_hw(self) -> tuple[int, int]:
        """Image size in pixels."""
        return self.image.shape[0], self.image.shape[1]


class _Draft(NamedTuple):
    """A shape before it is known how much of it stays visible."""

    whole: ShapeObject
    rgb: tuple[float, float, float]
    footprint: Footprint


def _draft(
    rng: np.random.Generator, size_hw: tuple[int, int], config: WorldConfig, cell: int | None
) -> _Draft:
    kind = config.kinds[int(rng.integers(len(config.kinds)))]
    colour = config.colours[int(rng.integers(len(config.colours)))]
    large = bool(rng.random() < config.large_share)
    radius_px = float(rng.uniform(*(config.large_radius if large else config.small_radius))) * min(size_hw)
    if cell is None:
        inset = 0.8 * radius_px  # a shape may stick out of the image, but not by much
        centre_y, centre_x = (float(rng.uniform(inset, length - inset)) for length in size_hw)
    else:
        middles = ((place + 0.5) / config.grid for place in divmod(cell, config.grid))
        shares = [middle + rng.uniform(-config.grid_jitter, config.grid_jitter) for middle in middles]
        centre_y, centre_x = (float(share * side) for share, side in zip(shares, size_hw, strict=True))
    angle = float(rng.uniform(0, 2 * math.pi))
    jitter = rng.integers(-config.colour_jitter, config.colour_jitter + 1, 3)
    red, green, blue = (float(value) for value in np.clip(PALETTE[colour] + jitter, 0, 255))
    footprint = Footprint(kind, (centre_x, centre_y), radius_px, angle, size_hw)
    whole = ShapeObject(
        kind=kind,
        colour=colour,
        size="large" if large else "small",
        centre_xy=(centre_x, centre_y),
        radius_px=radius_px,
        angle=angle,
        mask=footprint.mask(),
    )
    return _Draft(whole, (red, green, blue), footprint)


def _visible(drafts: list[_Draft], min_px: float, min_share: float) -> list[tuple[_Draft, ShapeObject]]:
    """Returns the drafts that stay visible, each with its visible part, in painting order.

    Goes from the front to the back, so a shape that is left out hides nothing. The front one always stays.
    """
    kept, covered = [], np.zeros_like(drafts[0].whole.mask)
    for draft in reversed(drafts):
        whole = draft.whole.mask
        mask = whole & ~covered
        area = mask.sum()
        if not kept or (area >= min_px and area >= min_share * whole.sum()):
            kept.append((draft, replace(draft.whole, mask=mask)))
            covered |= whole
    return kept[::-1]


def make_scene(seed: int, index: int, config: WorldConfig) -> Scene:
    """Makes scene ``index`` of the corpus ``seed``; both are not negative."""
    rng = np.random.default_rng([seed, index])
    size_hw = config.sizes_hw[int(rng.integers(len(config.sizes_hw)))]
    count = int(rng.integers(config.min_objects, config.max_objects + 1))
    cells = rng.permutation(config.grid**2)[:count].tolist() if config.grid else [None] * count
    drafts = [_draft(rng, size_hw, config, cell) for cell in cells]
    min_px = config.min_visible_px * (min(size_hw) / 128) ** 2
    kept = _visible(drafts, min_px, config.min_visible_share)
    canvas, fabric = background(rng, size_hw, config.texture), grain(rng, size_hw)
    for draft, _ in kept:
        draft.footprint.paint(canvas, draft.rgb, fabric)
    return Scene(
        seed=seed,
        index=index,
        config=config,
        image=np.clip(canvas + np.float32(0.5), 0, 255).astype(np.uint8),
        objects=tuple(shape for _, shape in kept),
        in_front=tuple(
            (front, back)
            for front, (_, shape) in enumerate(kept)
            for back, (hidden, _) in enumerate(kept[:front])
            if (shape.mask & hidden.whole.mask).sum() >= min_px
        ),
    )


TOUR_WORLD = WorldConfig(
    kinds=("circle", "triangle", "ring", "cross"),
    colours=("red", "yellow", "green", "blue"),
    min_objects=2,
    max_objects=6,
    small_radius=(0.06, 0.08),
    large_radius=(0.1, 0.12),
    large_share=1.0,
    grid=4,
    grid_jitter=0.01,
)
"""Scenes of ``make tour``: four kinds and four colours in sixteen cells. Each shape has one of few places, so
a tiny model can learn words exactly, and to name the right one it must recognise colours and kinds."""
