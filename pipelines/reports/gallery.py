"""Masks on report pages: images with their masks listed, and close-ups of single masks."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.reports import html
from pipelines.reports.pictures import Card, CloseUp, Gallery, MaskLine, short_words

BESIDE = 8
"""Masks whose table fits beside the pictures; a longer one goes below them, in three columns."""


def close_ups(worst: Iterable[CloseUp], *, numbered: bool = True) -> html.Block:
    """Returns cropped masks, two in a row, called by number in the page or by id in the dataset."""
    cards = []
    for close_up in worst:
        line = close_up.line
        name = f"mask {line.number if numbered else line.mask_id}, {line.area_px:,} px"
        text = html.join(html.bold(f"IoU {html.decimal(line.iou, 2)}"), " ", _words(line), " ", _label(line))
        where = html.faint(f"{_name(close_up.row)}, {name}")
        cards.append(html.card(html.paragraph(text, html.BREAK, where), html.figures(close_up.pictures)))
    return html.beside(*cards)


def images(gallery: Gallery) -> html.Block:
    """Returns the images of a gallery, below a warning if their masks are not those that were recorded."""
    cards = [_image(card) for card in gallery.cards]
    if gallery.num_differing:
        text = (
            f"{gallery.num_differing} of {gallery.num_compared} recorded IoUs are not those of the pictures. "
            "The tokenizer is not the one that made these words, or it computes differently here."
        )
        cards.insert(0, html.banner(text))
    return html.join(*cards)


def _image(card: Card) -> html.Block:
    row, lines = card.row, card.lines
    size = html.faint(f"{row['width']} x {row['height']} px, {len(row['masks'])} masks")
    step = len(lines) if len(lines) <= BESIDE else -(-len(lines) // 3)
    tables = [_masks(lines[start : start + step]) for start in range(0, len(lines), step or 1)]
    shown = html.figures(card.pictures, card.problem)
    return html.card(
        html.image_and_lists(shown, tables),
        title=html.join(_name(row), " ", size),
        note=card.note or ("" if lines else "No masks."),
    )


def _masks(lines: Sequence[MaskLine]) -> html.Block:
    if not any(line.words for line in lines):
        plain = [[html.chip(line.number, line.colour), _label(line), f"{line.area_px:,}"] for line in lines]
        return html.grid(["", "label", "pixels"], plain, numbers=[2], kind="masks")
    rows = [
        [html.chip(line.number, line.colour), html.decimal(line.iou, 2), _words(line), _label(line)]
        for line in lines
    ]
    return html.grid(["", "IoU", "words", "label"], rows, numbers=[1], kind="masks")


def _words(line: MaskLine) -> html.Block:
    return html.code(short_words(line.words))


def _label(line: MaskLine) -> str:
    return html.shortened(line.label or "", 60)


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['dataset']} {row['image_id']}"
