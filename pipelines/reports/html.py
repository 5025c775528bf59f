"""Builds report pages: blocks of HTML from the templates beside this file, joined into one page.

Texts may come from anywhere: a template escapes every value that is not a block itself (jinja2's autoescape),
and the page's own policy forbids scripts and foreign resources besides. A page needs nothing outside of it,
unless its pictures are too many and lie beside it.
"""

import base64
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipelines import rejects
from samtok.plots import pictures as viz

Block = Markup
"""HTML that was made here, so it is not escaped again; every other string is text."""

BREAK = Markup("<br>\n")

# Files beside the page: browsers ask for file: where it was opened from a disk, and for 'self' where served.
_POLICY = "default-src 'none'; img-src {}; style-src 'unsafe-inline'"
_INSIDE, _BESIDE = "data:", "'self' file:"


def page(title: str, where: str, *blocks: str, pictures_beside: bool = False) -> str:
    """Returns a whole page about the data at ``where``; its pictures may be files beside it, not in it."""
    policy = _POLICY.format(_BESIDE if pictures_beside else _INSIDE)
    template = _templates().get_template("page.html.j2")
    text = template.render(title=title, where=where, policy=policy, blocks=blocks)
    return rejects.printable(text) + "\n"


@functools.cache
def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )


def _block(name: str, *values: Any) -> Block:
    return getattr(_templates().get_template("blocks.html.j2").module, name)(*values)


# ---------------------------------------------------------------- blocks


def section(title: str, *blocks: str, note: str = "") -> Block:
    """Returns blocks below a heading; ``note`` is a faint line between them."""
    return _block("section", title, note, blocks)


def subsection(title: str, *blocks: str) -> Block:
    """Returns blocks below a heading within a section."""
    return join(_block("inline", "h3", "", title), *blocks)


def tiles(numbers: Iterable[tuple[str, str]]) -> Block:
    """Returns large numbers, each with what it is; unknown ones (``-``) are left out."""
    return _block("tiles", [(number, text) for number, text in numbers if number != "-"])


def card(*blocks: str, title: str = "", note: str = "") -> Block:
    """Returns blocks in a frame; ``note`` is a faint line at its foot."""
    return _block("card", title, note, blocks)


def beside(*blocks: str) -> Block:
    """Returns blocks two in a row where there is room."""
    return _block("group", "two", blocks)


def image_and_lists(pictures: str, lists: Sequence[str]) -> Block:
    """Returns pictures with one list beside them, or several below them."""
    kind = "beside" if len(lists) < 2 else "below"
    return _block("group", f"image {kind}", [pictures, _block("group", "lists", lists)])


def grid(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Sequence[int] = (),
    kind: str = "",
    empty: str = "None.",
) -> Block:
    """Returns a table of texts and blocks, or what stands in place of one without rows.

    Columns of ``numbers`` are set to the right. Of kind ``dense`` it is small and has one line per row.
    """
    rows = list(rows)
    return _block("grid", heads, rows, numbers, kind) if rows else paragraph(faint(empty))


def settings(values: Iterable[tuple[str, Any]]) -> Block:
    """Returns a table of names and values."""
    rows = [[name, code(value)] for name, value in values]
    return grid(["setting", "value"], rows, empty="Not recorded.")


def plot(data: bytes, alt: str, *, wide: bool = True) -> Block:
    """Returns a plot, which turns dark with the page; a wide one takes all of its width."""
    return _block("image", _source(data), alt, "plot wide" if wide else "plot")


def picture(data: bytes, alt: str) -> Block:
    """Returns a picture at its own size."""
    return _block("image", _source(data), alt, "")


def figures(pictures: Iterable[tuple], missing: str | None = None) -> Block:
    """Returns pictures in a row, each as (title, picture) or (title, picture, caption), and what is missing.

    A picture is the content of a file, the place of one beside the page, or None.
    """
    shown = [(title, _source(data), *caption, "")[:3] for title, data, *caption in pictures]
    reason = "" if missing is None else problem(f"The image cannot be shown: {missing}")
    return join(reason, _block("figures", shown) if shown else "")


def _source(data: bytes | str | None) -> str:
    if data is None or isinstance(data, str):
        return data or ""
    media = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{media};base64,{base64.b64encode(data).decode()}"


def banner(text: str, title: str = "") -> Block:
    """Returns a warning; ``title`` is set bold before it."""
    return _block("inline", "p", "banner", join(bold(title), " ", text) if title else text)


def problem(text: str) -> Block:
    """Returns why something is missing, in its place."""
    return _block("inline", "div", "problem", text)


def paragraph(*parts: str) -> Block:
    """Returns a paragraph."""
    return _block("inline", "p", "text", join(*parts))


def message(role: str, *parts: str) -> Block:
    """Returns one turn of a chat with its own line breaks."""
    return _block("inline", "p", "text message", join(faint(role), "  ", *parts))


def folded(title: str, *blocks: str) -> Block:
    """Returns blocks that are shown when their title is clicked."""
    return _block("folded", title, blocks)


def folded_config(config: Mapping[str, Any]) -> Block:
    """Returns a card with a whole config, shown when it is clicked."""
    text = json.dumps(config, indent=2, default=str)
    return card(folded("The whole config", _block("inline", "pre", "mono", text)))


# ---------------------------------------------------------------- within a line


def join(*parts: str) -> Block:
    """Returns texts and blocks, one after the other."""
    return Markup("").join(parts)


def bold(text: str) -> Block:
    """Returns bold text."""
    return _block("inline", "b", "", text)


def faint(text: str) -> Block:
    """Returns text of less weight."""
    return _block("inline", "span", "faint", text)


def bad(text: str) -> Block:
    """Returns text that says that something is wrong."""
    return _block("inline", "span", "bad", text)


def code(text: Any) -> Block:
    """Returns a value as it stands in a file or on a terminal."""
    return _block("inline", "code", "", text)


def link(target: str, text: str) -> Block:
    """Returns a link to a file beside the page."""
    return _block("link", target, text)


def chip(text: Any, colour: viz.Colour) -> Block:
    """Returns a short text, such as the number of a mask, on a colour."""
    return _block("chip", _css(colour), text)


def legend() -> Block:
    """Returns the colours of differences between masks."""
    names = ((viz.AGREED, "agreed"), (viz.MISSED, "missed"), (viz.EXTRA, "extra"))
    return _block("legend", [(_css(colour), name) for colour, name in names])


def _css(colour: viz.Colour) -> str:
    return "rgb({}, {}, {})".format(*colour)


# ---------------------------------------------------------------- numbers as text


def shortened(text: str, most: int = 400) -> str:
    """Returns a text of at most so many characters; a longer one loses its end."""
    return text if len(text) <= most else text[: most - 3] + "..."


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
