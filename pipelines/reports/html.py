"""Parts of report pages: one HTML file each, without scripts and without anything outside of it.

Texts may come from anywhere: ``escape`` every value. The page's own policy forbids scripts and foreign
resources besides.
"""

import base64
import html
from collections.abc import Iterable, Sequence
from typing import Any

from pipelines.reports.style import STYLE
from samtok.plots import pictures as viz

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, body: Iterable[str]) -> str:
    """Returns a whole page; ``title`` is text, ``body`` is HTML."""
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def escape(value: Any) -> str:
    """Returns a value as text that is safe between tags and in attributes."""
    return html.escape(str(value), quote=True)


def heading(title: str, where: str) -> str:
    """Returns the head of a page: what it is about, and the place of its data."""
    return f"<h1>{escape(title)}</h1><p class=faint><code>{escape(where)}</code></p>"


def tiles(numbers: Iterable[tuple[str, str]]) -> str:
    """Returns large numbers, each with what it is; both are text."""
    inside = "".join(f"<div class=tile><b>{escape(b)}</b>{escape(t)}</div>" for b, t in numbers)
    return f"<div class=tiles>{inside}</div>"


def card(inside: str) -> str:
    """Returns HTML in a frame."""
    return f"<div class=card>{inside}</div>"


def table(head: str, lines: Iterable[str], kind: str = "") -> str:
    """Returns a table from the cells of its head and its whole rows; ``kind`` is a class of the style."""
    return f"<div class=scroll><table class='{kind}'><tr>{head}</tr>{''.join(lines)}</table></div>"


def grid(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = (), kind: str = ""
) -> str:
    """Returns a table of texts.

    Args:
        heads: Names of the columns.
        rows: One text per column.
        numbers: Columns that are set to the right.
        kind: Class of the table; ``dense`` is small and has one line per row.
    """

    def cells(tag: str, texts: Sequence[str]) -> str:
        sides = ["num" if place in numbers else "text" for place in range(len(heads))]
        return "".join(
            f"<{tag} class={side}>{escape(text)}</{tag}>" for side, text in zip(sides, texts, strict=True)
        )

    return table(cells("th", heads), [f"<tr>{cells('td', row)}</tr>" for row in rows], kind)


def settings(values: Iterable[tuple[str, Any]]) -> str:
    """Returns a table of names and values."""
    lines = [
        f"<tr><td>{escape(name)}</td><td class='text mono'>{escape(value)}</td></tr>"
        for name, value in values
    ]
    return table("<th>setting</th><th>value</th>", lines)


def image(data: bytes, alt: str, *, kind: str = "", media: str = "png") -> str:
    """Returns a picture that is part of the page.

    Args:
        data: The file.
        alt: What it shows, as text.
        kind: Classes of the style: ``plot`` turns dark with the page, ``plot wide`` takes all of its width.
        media: ``png`` or ``jpeg``.
    """
    source = f"data:image/{media};base64,{base64.b64encode(data).decode()}"
    return f"<img loading=lazy class='{kind}' alt='{escape(alt)}' src='{source}'>"


def folded(title: str, inside: str) -> str:
    """Returns HTML that is shown when its title is clicked."""
    return f"<details><summary>{escape(title)}</summary>{inside}</details>"


def legend() -> str:
    """Returns the colours of differences between masks."""
    names = ((viz.AGREED, "agreed"), (viz.MISSED, "missed"), (viz.EXTRA, "extra"))
    return "".join(
        f"<span class=key style='background:{css(colour)}'></span>{name}" for colour, name in names
    )


def css(colour: viz.Colour) -> str:
    """Returns a colour as style sheets write it."""
    return "rgb({}, {}, {})".format(*colour)


def share_of(part: float, whole: float) -> str:
    """Returns a percentage as text; nothing out of nothing is ``-``."""
    return f"{part / whole:.1%}" if whole else "-"


def decimal(value: float | None, digits: int = 3) -> str:
    """Returns a number as text; what is missing or no number is ``-``."""
    return "-" if value is None or value != value else f"{value:,.{digits}f}"


def duration(seconds: float | None) -> str:
    """Returns a time as text with two units, such as ``2 h 05 min``; a missing one is ``-``."""
    if seconds is None or seconds != seconds:
        return "-"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"
