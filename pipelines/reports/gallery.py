"""Pictures of masks on report pages: images with their masks listed, and close-ups of single masks."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.reports import html
from pipelines.reports.pictures import Card, CloseUp, Gallery, MaskLine, short_words

BESIDE = 8
"""Masks whose table fits beside the pictures; a longer one goes below them, in three columns."""
_LABEL_LENGTH = 60


def close_ups(worst: Sequence[CloseUp], *, numbered: bool = True) -> str:
    """Returns cropped masks, two in a row.

    Args:
        worst: What to show, in this order.
        numbered: Call masks by their number in an image of the page; else by their id in the dataset.
    """
    cards = []
    for close_up in worst:
        line, row = close_up.line, close_up.row
        text = f"<b>IoU {_iou(line)}</b> <code>{html.escape(short_words(line.words))}</code> {_label(line)}"
        name = line.number if numbered else html.escape(line.mask_id)
        where = f"{_name(row)}, mask {name}, {line.area_px:,} px"
        cards.append(
            f"<div class=card><p class=text>{text}<br><span class=faint>{where}</span></p>"
            f"{_shots(close_up.pictures)}</div>"
        )
    return f"<div class=two>{''.join(cards)}</div>"


def images(gallery: Gallery) -> str:
    """Returns the images of a gallery, below a warning if their masks are not those that were recorded."""
    warning = ""
    if gallery.num_differing:
        warning = (
            f"<p class=banner>{gallery.num_differing} of {gallery.num_compared} recorded IoUs are not those "
            "of the pictures. The tokenizer is not the one that made these words, or it computes "
            "differently here.</p>"
        )
    return warning + "".join(map(_image, gallery.cards))


def _image(card: Card) -> str:
    row = card.row
    size = f"{row['width']} x {row['height']} px, {len(row['masks'])} masks"
    head = f"<h3 class=text>{_name(row)} <span class=faint>{size}</span></h3>"
    shots = _shots(card.pictures)
    if card.problem is not None:
        shots = f"<div class=problem>The image cannot be shown: {html.escape(card.problem)}</div>"
    step = len(card.lines) if len(card.lines) <= BESIDE else -(-len(card.lines) // 3)
    tables = [_masks(card.lines[start : start + step]) for start in range(0, len(card.lines), step or 1)]
    note = f"<p class=faint>{html.escape(card.note)}</p>" if card.note else ""
    if not tables:
        note = "<p class=faint>No masks.</p>"
    kind = "beside" if len(tables) < 2 else "below"
    return (
        f"<div class=card>{head}<div class='image {kind}'>{shots}"
        f"<div class=lists>{''.join(tables)}</div></div>{note}</div>"
    )


def _masks(lines: Iterable[MaskLine]) -> str:
    rows = [
        f"<tr><td>{_chip(line)}</td><td class=num>{_iou(line)}</td>"
        f"<td><code>{html.escape(short_words(line.words))}</code></td><td class=text>{_label(line)}</td></tr>"
        for line in lines
    ]
    return html.table("<th></th><th class=num>IoU</th><th>words</th><th>label</th>", rows, "masks")


def _shots(pictures: Iterable[tuple[str, bytes]]) -> str:
    figures = [
        f"<figure>{html.image(data, caption, media='jpeg')}"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, data in pictures
    ]
    return f"<div class=shots>{''.join(figures)}</div>"


def _chip(line: MaskLine) -> str:
    return f"<span class=chip style='background:{html.css(line.colour)}'>{line.number}</span>"


def _label(line: MaskLine) -> str:
    label = line.label or ""
    return html.escape(label if len(label) <= _LABEL_LENGTH else label[: _LABEL_LENGTH - 3] + "...")


def _name(row: Mapping[str, Any]) -> str:
    return f"{html.escape(row['dataset'])} {html.escape(row['image_id'])}"


def _iou(line: MaskLine) -> str:
    return "-" if line.iou is None else f"{line.iou:.2f}"
