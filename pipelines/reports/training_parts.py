"""What the reports of all training runs share: columns of a history, rejects, lineage."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.reports import html

Row = Mapping[str, Any]


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


def lost(record: Mapping[str, Any], history: Sequence[Row], *, what: str) -> str:
    """Returns a card with skipped steps and rejects; ``what`` is rejected, such as image."""
    steps = skipped_steps(history)
    count = record.get("skipped_steps") or len(steps)
    text = "No step was skipped."
    if count:
        text = f"<span class=bad>{count:,} skipped</span> for a loss or gradient that is no number."
        some = ", ".join(str(step) for step in steps[:12]) + (", ..." if len(steps) > 12 else "")
        text += f" Counting from 0: {some}." if some else ""
    rejects = sorted((record.get("rejects") or {}).items(), key=lambda item: (-item[1], item[0]))
    table = f"<p class=faint>No {what} was rejected.</p>"
    if rejects:
        table = html.grid(["reason", f"{what}s rejected"], [[r, f"{n:,}"] for r, n in rejects], numbers=(1,))
    return html.card(f"<h3>Skipped steps and rejects</h3><p>{text}</p>{table}")


def lineage(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns what the run came from, one line per setting."""
    own = {k: record[k] for k in ("command", "date", "fingerprint", "parameters") if k in record}
    lines = own | dict(record.get("lineage") or {}) | {"versions": record.get("versions")}
    if lines["versions"] is None:
        lines["versions"] = (record.get("lineage") or {}).get("versions")
    return [(name, _text(value)) for name, value in lines.items() if value is not None]


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items() if part is not None)
    return ", ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)
