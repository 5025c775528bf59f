"""Outlines, shading and backgrounds of the synthetic scenes: plain numpy, about a millisecond an image.

An outline is a level function over the shape's own frame (radius 1, rotated): negative inside, zero on
the border, and close to the distance from the border. One such function gives the mask (its sign), the
smooth edge and the darker rim. Which shapes a scene has, and where, is decided in ``world``.
"""

import functools
import math

import numpy as np
from jaxtyping import Bool, Float, Int16
from PIL import Image

EXTENT = 1.25
"""No outline reaches farther than this many radii from its centre."""

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (214, 36, 40),
    "orange": (246, 140, 20),
    "yellow": (248, 228, 48),
    "green": (36, 156, 52),
    "cyan": (70, 214, 222),
    "blue": (38, 70, 214),
    "purple": (142, 44, 176),
    "white": (242, 242, 242),
}
"""Colour names and their sRGB values; every shape jitters its own a little."""

_BANK_SIDE = 256
_BANK_CELLS = ((8, 32), (16, 64), (4, 128), (32,), (64, 128), (12, 24, 96))  # cells per side, a texture each

Plane = Float[np.ndarray, "height width"]


def _box(u: Plane, v: Plane, half_u: float, half_v: float) -> Plane:
    return np.maximum(np.abs(u) - half_u, np.abs(v) - half_v)


def _triangle(u: Plane, v: Plane) -> Plane:
    slanted = np.abs(u) * math.sin(math.pi / 3) - v * 0.5
    return np.maximum(slanted, v) - 0.6


def _star(u: Plane, v: Plane) -> Plane:
    """Five points: the plane is folded into one half point, whose border is a single line."""
    tip, notch, half = 1.22, 0.55, math.pi / 5
    fold = np.abs(np.mod(np.arctan2(v, u) + half, 2 * half) - half)
    rho = np.hypot(u, v)
    along_u, along_v = notch * math.cos(half) - tip, notch * math.sin(half)
    length = math.hypot(along_u, along_v)
    return ((rho * np.cos(fold) - tip) * along_v - rho * np.sin(fold) * along_u) / length


_LEVELS = {
    "circle": lambda u, v: np.hypot(u, v) - 1.0,
    "square": lambda u, v: _box(u, v, 0.85, 0.85),
    "triangle": _triangle,
    "star": _star,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.75) - 0.3,
    "cross": lambda u, v: np.minimum(_box(u, v, 0.34, 1.1), _box(u, v, 1.1, 0.34)),
    "crescent": lambda u, v: np.maximum(np.hypot(u, v) - 1.08, 0.85 - np.hypot(u - 0.55, v)),
    "ellipse": lambda u, v: (np.hypot(u / 1.2, v / 0.6) - 1.0) * 0.6,
    "rectangle": lambda u, v: _box(u, v, 1.12, 0.5),
    "semicircle": lambda u, v: np.maximum(np.hypot(u, v - 0.45) - 1.15, v - 0.45),
}

KINDS = tuple(_LEVELS)
"""Names of all shapes."""


class Footprint:
    """One shape on the pixel grid, as if nothing hid it.

    Pixel ``i`` spans ``[i, i + 1)``; the angle is in radians, clockwise as seen.
    """

    def __init__(
        self,
        kind: str,
        centre_xy: tuple[float, float],
        radius_px: float,
        angle: float,
        size_hw: tuple[int, int],
    ) -> None:
        self.size_hw = size_hw
        reach = EXTENT * radius_px + 1
        rows, columns = (
            slice(max(0, math.floor(centre - reach)), min(limit, math.ceil(centre + reach)))
            for centre, limit in zip(reversed(centre_xy), size_hw, strict=True)
        )
        self.window = (rows, columns)  # all pixels that the shape can touch
        dx = np.arange(columns.start, columns.stop) + (0.5 - centre_xy[0])
        dy = (np.arange(rows.start, rows.stop) + (0.5 - centre_xy[1]))[:, None]
        cos, sin = math.cos(angle) / radius_px, math.sin(angle) / radius_px
        self.level_px = _LEVELS[kind](dx * cos + dy * sin, dy * cos - dx * sin) * radius_px

    def mask(self) -> Bool[np.ndarray, "height width"]:
        """Returns the pixels whose centre is inside the outline."""
        mask = np.zeros(self.size_hw, dtype=bool)
        mask[self.window] = self.level_px <= 0
        return mask

    def paint(
        self,
        canvas: Float[np.ndarray, "height width 3"],
        rgb: tuple[float, float, float],
        grain: Float[np.ndarray, "height width"],
    ) -> None:
        """Paints the shape over the canvas, in place: smooth edge, darker rim, a little grain.

        The rim keeps two shapes of one colour apart where they overlap.
        """
        alpha = np.clip(0.5 - self.level_px, 0.0, 1.0).astype(np.float32)[..., None]
        shade = np.where(self.level_px > -1.3, 0.72, 1.0) + 0.06 * grain[self.window]
        window = canvas[self.window]
        window += alpha * (shade[..., None] * np.asarray(rgb, np.float32) - window)


def _wrapped_noise(rng: np.random.Generator, cells: int) -> Image.Image:
    """Returns smooth value noise that continues over its borders; Pillow resizes in integers."""
    small = rng.integers(0, 256, (cells, cells), dtype=np.uint8)
    pad = min(cells, 4)
    side = _BANK_SIDE * (cells + 2 * pad) // cells
    image = Image.fromarray(np.pad(small, pad, mode="wrap")).resize((side, side), Image.Resampling.BICUBIC)
    start = pad * _BANK_SIDE // cells
    return image.crop((start, start, start + _BANK_SIDE, start + _BANK_SIDE))


@functools.cache
def _noise_bank() -> Int16[np.ndarray, "texture side side"]:
    """Builds the textures once per process; drawing normal noise per image would double its cost."""
    rng = np.random.default_rng(20260101)
    textures = [
        sum(np.asarray(_wrapped_noise(rng, cells), np.int16) - 128 for cells in octaves) // len(octaves)
        for octaves in _BANK_CELLS
    ]
    return np.stack(textures).astype(np.int16)


def grain(rng: np.random.Generator, size_hw: tuple[int, int]) -> Float[np.ndarray, "height width"]:
    """Cuts a random window, float32 in [-1, 1], out of the noise bank; large images repeat it."""
    bank = _noise_bank()
    texture = bank[int(rng.integers(len(bank)))]
    rows, columns = ((int(rng.integers(_BANK_SIDE)) + np.arange(length)) % _BANK_SIDE for length in size_hw)
    return texture[np.ix_(rows, columns)].astype(np.float32) / 128.0


def _pattern(rng: np.random.Generator, size_hw: tuple[int, int]) -> Plane:
    """Returns a gradient, stripes, or blobs over the image, float32 in about [0, 1]."""
    style = int(rng.integers(3))
    if style == 0:
        return 0.5 + grain(rng, size_hw)
    angle = rng.uniform(0, 2 * math.pi)
    side = min(size_hw)
    x = np.arange(size_hw[1], dtype=np.float32) * np.float32(math.cos(angle) / side)
    y = np.arange(size_hw[0], dtype=np.float32) * np.float32(math.sin(angle) / side)
    ramp = y[:, None] + x
    if style == 1:
        return (ramp - ramp.min()) / np.float32(max(float(np.ptp(ramp)), 1e-6))
    return np.float32(0.5) + np.float32(0.5) * np.sin(ramp * np.float32(2 * math.pi * rng.uniform(3, 9)))


def background(
    rng: np.random.Generator, size_hw: tuple[int, int], texture: float
) -> Float[np.ndarray, "height width 3"]:
    """Paints a dull textured background, float32 in [0, 255].

    Its colours are greyish and of middle brightness, so every palette colour stands out from it.
    ``texture`` scales the contrast; 0 gives one flat colour.
    """
    tone = rng.uniform(75, 150) + rng.uniform(-14, 14, 3)
    change = texture * (rng.choice((-1.0, 1.0)) * rng.uniform(10, 35) + rng.uniform(-8, 8, 3))
    field = _pattern(rng, size_hw)[..., None] - np.float32(0.5)
    rough = np.float32(texture * rng.uniform(8, 26)) * grain(rng, size_hw)[..., None]
    return np.clip(tone.astype(np.float32) + change.astype(np.float32) * field + rough, 0, 255)
