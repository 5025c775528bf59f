"""Pictures of masks and of their reconstructions; plots of numbers are ``samtok.plots.base``.

One style for all: masks take the colours of ``mask_colours`` in their order and carry their number from 1, so
a caption finds its mask without colour too. Differences are ``AGREED`` (sky blue), ``MISSED`` (vermilion) and
``EXTRA`` (yellow) over the grey image: three of the colours that Okabe and Ito chose to stay apart for
colour-blind readers (jfly.uni-koeln.de/color). Pictures are RGB arrays.
"""

import colorsys
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

Picture = UInt8[np.ndarray, "height width 3"]
Fitted = UInt8[np.ndarray, "fitted_h fitted_w 3"]
Masks = Sequence[np.ndarray] | np.ndarray
"""Bool masks of one size: a list of arrays, or one array of mask x height x width."""
Colour = tuple[int, int, int]

AGREED: Colour = (86, 180, 233)
"""Pixels of the mask that the other one has too: sky blue."""
MISSED: Colour = (213, 94, 0)
"""Pixels of the mask that the other one lacks: vermilion."""
EXTRA: Colour = (240, 228, 66)
"""Pixels that only the other one has: yellow."""

_PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (204, 121, 167),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (0, 114, 178),
    (170, 220, 120),
)
_PAPER, _INK, _FAINT = (250, 250, 248), (32, 34, 38), (110, 114, 120)
_GOLDEN = 0.618034  # share of the hue circle: neighbours in the list are far apart, whatever its length
_TEXT_PX, _SMALL_PX = 16, 14
_GAP = 8
_TEXT_WIDTH = 350
_ALPHA = 0.35  # fill in contact sheets: the texture below stays readable


@dataclass(frozen=True)
class Panel:
    """One image of a contact sheet.

    Attributes:
        image: RGB, uint8.
        masks: At the image's size; None where the originals were not kept.
        decoded: Their reconstructions in the same order; None where there are none.
    """

    image: np.ndarray
    masks: Masks | None
    decoded: Masks | None = None
    captions: Sequence[str] = ()
    title: str = ""


def mask_colours(count: int) -> list[Colour]:
    """Returns the colours of masks in order: eight safe for colour-blind readers, then spread hues."""
    spread = [
        colorsys.hsv_to_rgb((index * _GOLDEN) % 1, 0.55 + 0.2 * (index % 3), 0.95)
        for index in range(max(0, count - len(_PALETTE)))
    ]
    more = [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in spread]
    return [*_PALETTE[:count], *more]


def overlay(
    image: Picture,
    masks: Masks,
    colours: Sequence[Colour] | None = None,
    alpha: float = 0.5,
    *,
    numbers: bool = False,
) -> Picture:
    """Returns the image with filled and outlined masks, larger ones painted first, so none is hidden whole.

    Args:
        image: RGB, uint8.
        masks: Bool arrays at the image's size; empty ones leave no trace.
        colours: One per mask; by default ``mask_colours``.
        alpha: Opacity of the fill, in [0, 1]; outlines are opaque.
        numbers: Write the number of each mask, from 1, on it.

    Raises:
        ValueError: If a mask has another size than the image, or the colours are not one per mask.
    """
    _check_masks(image, masks)
    colours = mask_colours(len(masks)) if colours is None else colours
    if len(colours) != len(masks):
        raise ValueError(f"got {len(colours)} colours for {len(masks)} masks, expected one each.")
    painted = image.astype(np.float32)
    width_px = max(1, round(min(image.shape[:2]) / 180))
    for index in sorted(range(len(masks)), key=lambda i: -int(masks[i].sum())):
        mask = masks[index].astype(bool)
        colour = np.asarray(colours[index], np.float32)
        painted[mask] = (1 - alpha) * painted[mask] + alpha * colour
        line = mask & ~_shrink(mask, width_px)
        painted[~_shrink(~mask, 1) & ~mask] *= 0.45  # a dark rim keeps the line visible on its own colour
        painted[line] = colour
    picture = np.clip(np.rint(painted), 0, 255).astype(np.uint8)
    return _number(picture, masks) if numbers else picture


def difference(a: np.ndarray, b: np.ndarray, image: Picture | None = None) -> Picture:
    """Returns where masks agree: ``AGREED`` in both, ``MISSED`` only in ``a``, ``EXTRA`` only in ``b``.

    Args:
        a: The original: one mask, or mask x height x width. Where pairs disagree differently about a pixel,
            missed wins over extra, and extra over agreed.
        b: What is compared with it, of the same shape.
        image: Shown grey and dim around the masks; by default a plain dark ground.

    Raises:
        ValueError: If the shapes differ, or the image has another size.
    """
    if a.shape != b.shape or a.ndim not in (2, 3):
        raise ValueError(f"expected two masks or stacks of masks of one shape, got {a.shape} and {b.shape}.")
    first, second = (stack.astype(bool).reshape(-1, *a.shape[-2:]) for stack in (a, b))
    grey = np.full(a.shape[-2:], 46, np.float32)
    if image is not None:
        _check_masks(image, first)
        grey = 20 + 0.4 * image.astype(np.float32).mean(axis=-1)
    painted = np.repeat(grey[..., None], 3, axis=-1)
    for colour, part in ((AGREED, first & second), (EXTRA, second & ~first), (MISSED, first & ~second)):
        where = part.any(axis=0)
        painted[where] = 0.2 * grey[where][:, None] + 0.8 * np.asarray(colour, np.float32)
    return np.clip(np.rint(painted), 0, 255).astype(np.uint8)


def fit(image: Picture, side: int) -> Fitted:
    """Resizes an image for display so that its longer side is about ``side`` pixels.

    Small images grow by a whole factor without smoothing, so every pixel is seen as it is; large ones shrink
    with smoothing. Resize before drawing, so that lines keep their width.
    """
    return _fitted(image, side, Image.Resampling.LANCZOS)


def fit_mask(mask: Bool[np.ndarray, "height width"], side: int) -> Bool[np.ndarray, "fitted_h fitted_w"]:
    """Resizes a mask as ``fit`` resizes its image; a pixel belongs to it if at least half of it does."""
    return _fitted(mask.astype(np.uint8) * 255, side, Image.Resampling.BOX) >= 128


RECONSTRUCTION = "original, reconstruction, difference"
ANSWER = "truth, answer, difference"
REGION = "what is asked about"
"""What the pictures of a panel are: three, or one whose captions are texts and do not name masks."""


def contact_sheet(
    items: Sequence[Panel], *, side: int = 256, columns: int = 1, heads: str = RECONSTRUCTION
) -> Picture:
    """Returns one picture of many images, each with its pictures (``heads``), captions beside them.

    The longer side of each picture has ``side`` pixels.

    Raises:
        ValueError: For ``columns`` below 1, or masks that do not fit their image.
    """
    if columns < 1:
        raise ValueError(f"columns must be >= 1, got {columns}.")
    count = len(heads.split(", "))
    drawn = [_draw_panel(item, side, count) for item in items]
    cell_width = count * (side + _GAP) + _TEXT_WIDTH + 2 * _GAP
    rows = [drawn[start : start + columns] for start in range(0, len(drawn), columns)]
    heights = [max(cell.height for cell in row) + 2 * _GAP for row in rows]
    top = 2 * _GAP + _TEXT_PX + 6
    sheet = Image.new("RGB", (columns * cell_width + _GAP, top + sum(heights) + _GAP), _PAPER)
    _draw_legend(ImageDraw.Draw(sheet), heads, with_colours=count > 1)
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (_GAP + column * cell_width, top))
        top += height
    return np.asarray(sheet)


def png_bytes(picture: Picture) -> bytes:
    """Returns a picture as a PNG file."""
    return _file_bytes(picture, "PNG")


def jpeg_bytes(picture: Picture) -> bytes:
    """Returns a picture as a JPEG file with full colour resolution, which thin coloured lines need."""
    return _file_bytes(picture, "JPEG", quality=88, subsampling=0)


def _check_masks(image: np.ndarray, masks: Masks) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"the image must be RGB uint8 of height x width x 3, got {image.dtype} {image.shape}."
        )
    for index, mask in enumerate(masks):
        if mask.shape != image.shape[:2]:
            raise ValueError(f"mask {index} is {mask.shape}, its image {image.shape[:2]}.")


def _shrink(mask: np.ndarray, steps: int) -> np.ndarray:
    """Erodes by the four neighbours; outside of the image counts as mask, so borders get no line there."""
    return ndimage.binary_erosion(mask, iterations=steps, border_value=1)


def _number(picture: np.ndarray, masks: Masks) -> np.ndarray:
    image = Image.fromarray(picture)
    height, width = picture.shape[:2]
    size_px = 12 if len(masks) > 8 else max(_SMALL_PX, round(min(height, width) / 20))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size_px)
    for number, mask in enumerate(masks, start=1):
        if not mask.any():
            continue
        text = str(number)
        half_w, half_h = int(draw.textlength(text, font=font)) // 2 + 5, size_px // 2 + 2
        x, y = _place_of_number(mask, half_w, half_h)
        x = min(max(x, half_w), max(half_w, width - 1 - half_w))
        y = min(max(y, half_h), max(half_h, height - 1 - half_h))
        draw.rounded_rectangle((x - half_w, y - half_h, x + half_w, y + half_h), 4, fill=_INK)
        draw.text((x, y), text, font=font, fill="white", anchor="mm")
    return np.asarray(image)


def _place_of_number(mask: np.ndarray, half_w: int, half_h: int) -> tuple[int, int]:
    """Returns x and y: a pixel of the mask near its centre, or beside it if the number would cover it."""
    ys, xs = np.nonzero(mask)
    if len(ys) < 16 * half_w * half_h:
        return int(xs.max()) + half_w + 2, int(ys.min()) - half_h // 2
    nearest = int(np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2))  # a ring's centre is not in it
    return int(xs[nearest]), int(ys[nearest])


def _fitted(image: np.ndarray, side: int, smoothing: Image.Resampling) -> np.ndarray:
    height, width = image.shape[:2]
    longer = max(height, width)
    if longer <= side:
        return image.repeat(side // longer, axis=0).repeat(side // longer, axis=1)
    size = max(1, round(width * (side / longer))), max(1, round(height * (side / longer)))
    return np.array(Image.fromarray(image).resize(size, smoothing))


def _draw_panel(item: Panel, side: int, count: int) -> Image.Image:
    for stack in (item.masks, item.decoded):
        _check_masks(item.image, () if stack is None else stack)
    image = fit(item.image, side)
    pictures = []
    wanted = [fit_mask(mask, side) for mask in item.masks] if item.masks is not None else None
    decoded = [fit_mask(mask, side) for mask in item.decoded] if item.decoded is not None else None
    for stack in (wanted, decoded):
        shown = image if stack is None else overlay(image, stack, alpha=_ALPHA, numbers=count > 1)
        pictures.append((shown, "not available" if stack is None else None))
    both = wanted is not None and decoded is not None and len(wanted) == len(decoded) > 0
    last = difference(np.stack(wanted), np.stack(decoded), image) if both else image  # type: ignore[arg-type]
    pictures.append((last, None if both else "not available"))
    head = _TEXT_PX + 8
    right = count * (side + _GAP)
    cell = Image.new("RGB", (right + _TEXT_WIDTH, head + image.shape[0]), _PAPER)
    draw = ImageDraw.Draw(cell)
    title = _trim(item.title, right + _TEXT_WIDTH - side, _TEXT_PX)
    draw.text((0, 0), title, font=ImageFont.load_default(_TEXT_PX), fill=_INK)
    for place, (picture, note) in enumerate(pictures[:count]):
        cell.paste(Image.fromarray(picture), (place * (side + _GAP), head))
        if note:
            corner, font = (place * (side + _GAP) + 6, head + 4), ImageFont.load_default(_SMALL_PX)
            draw.text(corner, note, font=font, fill="white", stroke_width=2, stroke_fill=_INK)
    _draw_captions(draw, item.captions, (right, head), image.shape[0], with_colours=count > 1)
    return cell


def _draw_captions(
    draw: ImageDraw.ImageDraw,
    captions: Sequence[str],
    corner: tuple[int, int],
    height: int,
    *,
    with_colours: bool,
) -> None:
    font, step = ImageFont.load_default(_SMALL_PX), _SMALL_PX + 7
    room = max(1, height // step)
    shown = len(captions) if len(captions) <= room else room - 1
    x, y = corner
    for number, (caption, colour) in enumerate(zip(captions, mask_colours(shown), strict=False), start=1):
        if with_colours:
            draw.rounded_rectangle((x, y + 1, x + 24, y + step - 4), 3, fill=colour)
            draw.text((x + 12, y + step // 2 - 1), str(number), font=font, fill="black", anchor="mm")
        indent = 32 if with_colours else 0
        text = _trim(caption, _TEXT_WIDTH - 8 - indent, _SMALL_PX)
        draw.text((x + indent, y + 1), text, font=font, fill=_INK)
        y += step
    if shown < len(captions):
        draw.text((x, y), f"and {len(captions) - shown} more masks", font=font, fill=_FAINT)


def _draw_legend(draw: ImageDraw.ImageDraw, heads: str, *, with_colours: bool) -> None:
    font, x = ImageFont.load_default(_TEXT_PX), _GAP
    if not with_colours:
        draw.text((x, _GAP), heads, font=font, fill=_FAINT)
        return
    draw.text((x, _GAP), f"{heads}:", font=font, fill=_FAINT)
    x += int(draw.textlength(f"{heads}:", font=font)) + 14
    for colour, name in ((AGREED, "agreed"), (MISSED, "missed"), (EXTRA, "extra")):
        draw.rectangle((x, _GAP + 2, x + 16, _GAP + 18), fill=colour)
        draw.text((x + 22, _GAP), name, font=font, fill=_INK)
        x += int(draw.textlength(name, font=font)) + 40


def _trim(text: str, width_px: int, size_px: int) -> str:
    font = ImageFont.load_default(size_px)
    line = " ".join(text.split())
    if font.getlength(line) <= width_px:
        return line
    while line and font.getlength(line + "...") > width_px:
        line = line[:-1]
    return line + "..."


def _file_bytes(picture: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return buffer.getvalue()
