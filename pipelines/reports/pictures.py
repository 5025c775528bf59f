"""Draws images of a corpus of words at random and makes the pictures of its report.

Only the row groups that hold a drawn image are read. An image whose file is gone or broken by now keeps its
words and says why it has no picture.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Int

from pipelines import storage
from pipelines.ingestion.image_source import read_image
from samtok import masks
from samtok.errors import DataError, StorageError
from samtok.masks import RunMask
from samtok.metrics import codebook
from samtok.metrics.codebook import Agreement
from samtok.model.tokenizer import MaskTokenizer
from samtok.plots import pictures as viz

CARD_SIDE, CLOSE_UP_SIDE, SHEET_SIDE = 384, 240, 256
MAX_SHOWN = 24
"""Masks that are drawn per image; of more, this many are drawn at random. SA-1B has about 100."""
MAX_WORST = 8
IOU_TOLERANCE = 0.02
"""Recorded and redrawn IoUs may differ by this much: bfloat16 on a GPU against float32 on a CPU."""
_ALPHA = 0.35
_SCORES = ["masks.list.element.mask_id", "masks.list.element.iou"]
_COLUMNS = ["dataset", "image_id", "image_uri", "height", "width", "masks"]


@dataclass(frozen=True)
class MaskLine:
    """What the report says about one mask."""

    number: int
    mask_id: str
    colour: tuple[int, int, int]
    words: str
    label: str | None
    area_px: int
    iou: float | None
    """The recorded one, or else of the picture; None if neither is known."""


@dataclass(frozen=True)
class Card:
    """One drawn image: its pictures as (caption, JPEG) and its masks, or what was wrong with it."""

    row: Mapping[str, Any]
    pictures: Sequence[tuple[str, bytes]]
    lines: Sequence[MaskLine]
    problem: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class CloseUp:
    """One mask, cropped."""

    row: Mapping[str, Any]
    line: MaskLine
    pictures: Sequence[tuple[str, bytes]]
    panel: viz.Panel


@dataclass
class Gallery:
    """All pictures of a report."""

    max_worst: int = MAX_WORST
    cards: list[Card] = field(default_factory=list)
    worst: list[CloseUp] = field(default_factory=list)
    panels: list[viz.Panel] = field(default_factory=list)
    num_compared: int = 0
    num_differing: int = 0
    """Masks whose recorded IoU is not that of the picture: another tokenizer made the words."""
    recorded: list[np.ndarray] = field(default_factory=list)
    """Codes of drawn masks as they are in the corpus, image by image."""
    made: list[np.ndarray] = field(default_factory=list)
    """Codes that the tokenizer of the report gives them."""

    def agreement(self) -> Agreement | None:
        """Returns how far recorded words are those of the report's tokenizer; None if it made none."""
        if not self.made:
            return None
        return codebook.agreement(np.concatenate(self.recorded), np.concatenate(self.made))

    def contact_sheet(self) -> bytes:
        """Returns all images with pictures as one PNG."""
        return sheet_of(self.panels, SHEET_SIDE)


def sheet_of(panels: Sequence[viz.Panel], side: int, *, heads: str = viz.RECONSTRUCTION) -> bytes:
    """Returns panels as one PNG; of more than six, two in a row."""
    columns = 2 if len(panels) > 6 else 1
    return viz.png_bytes(viz.contact_sheet(panels, side=side, columns=columns, heads=heads))


def draw_rows(
    out: str, records: Iterable[Mapping[str, Any]], max_images: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Draws rows of committed shards, every row alike, in the order of the corpus; all if there are fewer."""
    records = list(records)
    total = sum(record["counts"]["rows_out"] for record in records)
    return rows_at(out, records, np.sort(rng.choice(total, min(max_images, total), replace=False)))


def rows_at(
    out: str,
    records: Iterable[Mapping[str, Any]],
    chosen: Int[np.ndarray, " row"],
    *,
    count: str = "rows_out",
    columns: list[str] | None = _COLUMNS,
) -> list[dict[str, Any]]:
    """Reads rows of committed shards by their rising places in the corpus; no other row groups are read.

    ``count`` names the count of a shard's rows in its record; no ``columns`` are all of them.
    """
    records = list(records)
    rows: list[dict[str, Any]] = []
    for shard, places in _by_part([record["counts"][count] for record in records], chosen):
        with storage.open_input(storage.join(out, records[shard]["data"]["file"])) as stream:
            file = pq.ParquetFile(stream)
            groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
            for group, within in _by_part([group.num_rows for group in groups], places):
                rows += file.read_row_group(group, columns=columns).take(within).to_pylist()
    return rows


def rows_of_masks(
    out: str, records: Iterable[Mapping[str, Any]], wanted: Mapping[int, set[str]]
) -> list[dict[str, Any]]:
    """Reads the rows at some places of the corpus, each with its wanted masks alone, named by their ids."""
    places = np.array(sorted(wanted), np.int64)
    rows = rows_at(out, records, places)
    return [
        {**row, "masks": [mask for mask in row["masks"] if mask["mask_id"] in wanted[place]]}
        for place, row in zip(places.tolist(), rows, strict=True)
    ]


def rows_of_worst(out: str, records: Iterable[Mapping[str, Any]], count: int) -> list[dict[str, Any]]:
    """Reads the rows of the masks with the lowest recorded IoUs of the whole corpus, without other masks.

    Of all shards that have some the IoUs are read, and no other columns.
    """
    records, first = list(records), 0
    lowest: list[tuple[float, int, str]] = []
    for record in records:
        if record.get("iou_count", 1):
            with storage.open_input(storage.join(out, record["data"]["file"])) as stream:
                table = pq.ParquetFile(stream).read(columns=_SCORES)
            for place, masks_of in enumerate(table["masks"].to_pylist(), start=first):
                scored = ((one["iou"], place, one["mask_id"]) for one in masks_of if one["iou"] is not None)
                lowest = heapq.nsmallest(count, [*lowest, *scored])
        first += record["counts"]["rows_out"]
    wanted: dict[int, set[str]] = {}
    for _, place, mask_id in lowest:
        wanted.setdefault(place, set()).add(mask_id)
    return rows_of_masks(out, records, wanted)


def _by_part(sizes: Sequence[int], places: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the parts of a whole that have some of the places, each with its places within it."""
    ends = np.cumsum([0, *sizes])
    parts = np.searchsorted(ends, places, side="right") - 1
    for part in np.unique(parts):
        yield int(part), places[parts == part] - ends[part]


def image_of(uri: str, height: int, width: int) -> np.ndarray:
    """Reads an image as RGB.

    Raises:
        DataError: If it is no image by now, or of another size.
        StorageError: If it cannot be read.
    """
    return read_image(uri, expected_hw=(height, width))


def make_gallery(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: MaskTokenizer | None,
    *,
    threshold: float,
    rng: np.random.Generator,
    max_worst: int = MAX_WORST,
    box_prompt: bool | None = None,
) -> Gallery:
    """Makes the pictures of code rows, one image at a time; without a tokenizer only of original masks.

    Args:
        rows: Code rows.
        tokenizer: Decodes the words.
        threshold: On the logits, as the corpus was made with.
        rng: Decides which masks are drawn of an image with very many.
        max_worst: Close-ups to make, of the masks with the lowest IoUs.
        box_prompt: How words were made, if the tokenizer is to make them once more, to compare them.
    """
    gallery = Gallery(max_worst)
    for row in rows:
        shown = row["masks"]
        note = None
        if len(shown) > MAX_SHOWN:
            kept = np.sort(rng.choice(len(shown), MAX_SHOWN, replace=False))
            note = f"{MAX_SHOWN} of {len(shown)} masks, drawn at random"
            shown = [shown[index] for index in kept]
        try:
            _add_picture(gallery, row, shown, note, tokenizer, threshold, box_prompt)
        except (DataError, StorageError) as error:
            lines = _lines(shown, [mask["iou"] for mask in shown])
            gallery.cards.append(Card(row, (), lines, problem=str(error), note=note))
    return gallery


def _add_picture(
    gallery: Gallery,
    row: Mapping[str, Any],
    shown: Sequence[Mapping[str, Any]],
    note: str | None,
    tokenizer: MaskTokenizer | None,
    threshold: float,
    box_prompt: bool | None,
) -> None:
    height, width = row["height"], row["width"]
    image = image_of(row["image_uri"], height, width)
    wanted = None
    if all(mask["rle"] is not None for mask in shown):
        wanted = [masks.decode(mask["rle"], height=height, width=width) for mask in shown]
    decoded = None
    if tokenizer is not None and shown:
        codes = np.array([mask["codes"] for mask in shown], np.int64)
        features = tokenizer.features_of([image])
        decoded = list(tokenizer.masks_of(features, codes, (height, width), threshold))
        if wanted is not None and box_prompt is not None:
            runs = [RunMask.of_counts(mask["rle"], height=height, width=width) for mask in shown]
            gallery.recorded.append(codes)
            gallery.made.append(tokenizer.codes_of(features, runs, [0] * len(runs), box_prompt=box_prompt))
    ious: list[float | None] = [mask["iou"] for mask in shown]
    if wanted is not None and decoded is not None:
        ious = _compare(gallery, ious, [masks.iou(a, b) for a, b in zip(wanted, decoded, strict=True)])
    lines = _lines(shown, ious)
    first, second = _fitted(wanted, CARD_SIDE), _fitted(decoded, CARD_SIDE)
    pictures = compared(viz.fit(image, CARD_SIDE), first, second)
    gallery.cards.append(Card(row, pictures, lines, note=note))
    # shrunk at once, so that the sheet does not keep whole images in memory
    first, second = _fitted(wanted, SHEET_SIDE), _fitted(decoded, SHEET_SIDE)
    captions, title = [_caption(line) for line in lines], f"{row['dataset']} {row['image_id']}"
    gallery.panels.append(
        viz.Panel(viz.fit(image, SHEET_SIDE), first, second, captions=captions, title=title)
    )
    for line, mask, other in zip(lines, wanted or (), decoded or (), strict=False):
        assert line.iou is not None
        worst = [close_up.line.iou or 0.0 for close_up in gallery.worst]
        if len(worst) == gallery.max_worst and line.iou >= max(worst, default=0.0):
            continue
        view = _view(mask | other)
        first, second = (_fitted([np.ascontiguousarray(part[view])], CLOSE_UP_SIDE) for part in (mask, other))
        picture = viz.fit(np.ascontiguousarray(image[view]), CLOSE_UP_SIDE)
        title = f"{row['dataset']} {row['image_id']} mask {line.mask_id}, {line.area_px} px"
        panel = viz.Panel(picture, first, second, captions=[_caption(line)], title=title)
        gallery.worst.append(CloseUp(row, line, compared(picture, first, second, [line.colour]), panel))
        gallery.worst.sort(key=lambda close_up: close_up.line.iou or 0.0)
        del gallery.worst[gallery.max_worst :]


def _compare(
    gallery: Gallery, recorded: Sequence[float | None], redrawn: Sequence[float]
) -> list[float | None]:
    known = [(old, new) for old, new in zip(recorded, redrawn, strict=True) if old is not None]
    gallery.num_compared += len(known)
    gallery.num_differing += sum(abs(old - new) > IOU_TOLERANCE for old, new in known)
    return [new if old is None else old for old, new in zip(recorded, redrawn, strict=True)]


def _lines(shown: Sequence[Mapping[str, Any]], ious: Sequence[float | None]) -> list[MaskLine]:
    colours = viz.mask_colours(len(shown))
    return [
        MaskLine(number, mask["mask_id"], colour, mask["words"], mask["label"], mask["area_px"], iou)
        for number, (mask, colour, iou) in enumerate(zip(shown, colours, ious, strict=True), start=1)
    ]


def compared(
    image: np.ndarray,
    wanted: Sequence[np.ndarray] | None,
    decoded: Sequence[np.ndarray] | None,
    colours: Sequence[viz.Colour] | None = None,
    titles: tuple[str, str] = ("masks", "from words"),
) -> list[tuple[str, bytes]]:
    """Returns what can be shown, each with its title as a JPEG file: masks, reconstructions, difference.

    Args:
        image: RGB, as large as it is shown.
        wanted: True masks at its size; None where they were not kept.
        decoded: What is compared with them; None where there is nothing.
        colours: One per mask, which then has no number on it.
        titles: Of the two sets of masks.
    """
    made: list[tuple[str, np.ndarray]] = [("image", image)] if wanted is None else []
    for title, stack in zip(titles, (wanted, decoded), strict=True):
        if stack is not None:
            made.append((title, viz.overlay(image, stack, colours, _ALPHA, numbers=colours is None)))
    if wanted and decoded:
        made.append(("difference", viz.difference(np.stack(wanted), np.stack(decoded), image)))
    return [(title, viz.jpeg_bytes(picture)) for title, picture in made]


def _caption(line: MaskLine) -> str:
    if not line.words:
        return line.label or ""
    iou = "-" if line.iou is None else f"{line.iou:.2f}"
    return f"{iou}  {short_words(line.words)}  {line.label or ''}"


def _fitted(stack: Sequence[np.ndarray] | None, side: int) -> list[np.ndarray] | None:
    return None if stack is None else [viz.fit_mask(mask, side) for mask in stack]


def short_words(words: str) -> str:
    """Returns the words of a mask without their start and end."""
    return words.removeprefix("<|mt_start|>").removesuffix("<|mt_end|>")


def _view(mask: np.ndarray) -> tuple[slice, slice]:
    """Returns a square window around a mask with a quarter of margin, moved into the image."""
    x0, y0, x1, y1 = masks.box_of(mask) or (0, 0, mask.shape[1] - 1, mask.shape[0] - 1)
    side = max(48, round(1.5 * max(x1 - x0 + 1, y1 - y0 + 1)))
    parts = []
    for low, high, limit in ((y0, y1, mask.shape[0]), (x0, x1, mask.shape[1])):
        start = max(0, min((low + high + 1 - side) // 2, limit - side))
        parts.append(slice(start, min(limit, start + side)))
    return parts[0], parts[1]
