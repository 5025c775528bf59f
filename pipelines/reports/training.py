"""What the reports of all training runs share: their page, columns of a history, rejects, lineage."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pipelines import storage
from pipelines.reports import html

Row = Mapping[str, Any]

FOLDER = "report"
MAX_VALIDATIONS = 20
"""Validations that a table shows; of more, so many at even distances, and the best one."""


def write_page(out: str, page: str, pictures: Mapping[str, bytes]) -> None:
    """Writes ``OUT/report/index.html`` and the pictures beside it.

    Raises:
        StorageError: If the folder cannot be written.
    """
    for name, data in {**pictures, "index.html": page.encode()}.items():
        storage.write_bytes(storage.join(out, FOLDER, name), data)


def ending(record: Row, history: Sequence[Row], config: Row, *more: str, what: str) -> list[html.Block]:
    """Returns the last sections of a run's page: ``more`` cards, skipped steps, rejects, lineage, config."""
    cards = [*more, lost(record, history, what=what)]
    return [
        html.section("At the end", html.beside(*cards) if more else cards[0]),
        html.section("Lineage", html.card(html.settings(lineage(record)))),
        html.folded_config(config),
    ]


def took(record: Row) -> str:
    """Returns how long training took on how many workers."""
    workers = record.get("workers") or 1
    seconds = (record.get("times") or {}).get("training_s")
    return f"{html.duration(seconds)} on {workers} worker{'s' if workers != 1 else ''}"


def validations_shown(rows: Sequence[Row], best: int | None) -> tuple[list[tuple[Row, str]], str]:
    """Returns rows of a table, each with ``best`` or nothing, and a note if some are left out."""
    places = spread(len(rows), MAX_VALIDATIONS, best)
    note = f"{len(places)} of {len(rows):,} validations." if len(places) < len(rows) else ""
    return [(rows[place], "best" if place == best else "") for place in places], note


def place_of_best(rows: Sequence[Row]) -> int | None:
    """Returns where the last validation is that was the best so far."""
    return max((place for place, row in enumerate(rows) if row.get("best")), default=None)


def skipped_steps(history: Sequence[Row]) -> list[int]:
    """Returns the steps of a history that were skipped, counted from 0."""
    return [int(row["step"]) for row in history if row.get("skipped")]


def column(rows: Sequence[Row], name: str) -> np.ndarray:
    """Returns a column as float64, with NaN where it is missing."""
    values = (row.get(name) for row in rows)
    return np.array([np.nan if value is None else value for value in values], np.float64)


def names_of(rows: Iterable[Row], prefix: str) -> list[str]:
    """Returns the columns with a prefix in the order in which they come up, numbered ones by number."""
    names = dict.fromkeys(name for row in rows for name in row if name.startswith(prefix))
    return sorted(names, key=lambda name: int(end) if (end := name.removeprefix(prefix)).isdigit() else -1)


def spread(count: int, most: int, best: int | None) -> list[int]:
    """Returns at most ``most`` places at even distances, the first, the last and the best among them."""
    if count <= most:
        return list(range(count))
    places = np.linspace(0, count - 1, most).round().astype(int)
    if best is not None and best not in places:
        places[1 + np.abs(places[1:-1] - best).argmin()] = best
    return places.tolist()


def lost(record: Row, history: Sequence[Row], *, what: str) -> html.Block:
    """Returns a card with skipped steps and rejects; ``what`` is rejected, such as image."""
    steps = skipped_steps(history)
    count = record.get("skipped_steps") or len(steps)
    text = ["No step was skipped."]
    if count:
        some = ", ".join(map(str, steps[:12])) + (", ..." if len(steps) > 12 else "")
        text = [html.bad(f"{count:,} skipped"), " for a loss or gradient that is not finite."]
        text += [f" Counting from 0: {some}."] if some else []
    rejects = sorted((record.get("rejects") or {}).items(), key=lambda item: (-item[1], item[0]))
    table = html.grid(
        ["reason", f"{what}s rejected"],
        [[reason, f"{number:,}"] for reason, number in rejects],
        numbers=[1],
        empty=f"No {what} was rejected.",
    )
    return html.card(html.paragraph(*text), table, title="Skipped steps and rejects")


def lineage(record: Row) -> list[tuple[str, str]]:
    """Returns what the run came from, one line per setting."""
    own = {name: record.get(name) for name in ("command", "date", "fingerprint", "parameters")}
    inherited = dict(record.get("lineage") or {})
    versions = record.get("versions") or inherited.get("versions")
    lines = {**own, **inherited, "versions": versions}
    return [(name, _text(value)) for name, value in lines.items() if value is not None]


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items() if part is not None)
    return ", ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)
