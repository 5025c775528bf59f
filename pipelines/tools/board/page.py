"""The page of a board: the tables of the terminal and more, plots of intervals, pictures of answers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.reports import html
from pipelines.reports.answers import Beside, iou_of
from pipelines.tools.board import pictures, tables
from pipelines.tools.board.numbers import Column, Measured
from pipelines.tools.board.runs import Group, Run
from pipelines.tools.board.tables import Cell, Table
from samtok.plots.intervals import Mark, MarkPanel, interval_plot


def render(measured: Sequence[Measured], *, num_pictures: int) -> str:
    """Returns the page as HTML. ``num_pictures`` questions of each kind are drawn."""
    groups = [one.group for one in measured]
    runs = list(dict.fromkeys(run.uri for group in groups for run in group.runs))
    sections = [
        html.section(tables.title_of(one.group), *_group(one, groups, num_pictures), note=tables.lead_of(one))
        for one in measured
    ]
    return html.page("Evaluations beside each other", ", ".join(runs), *sections)


def plot_of(measured: Measured, columns: Sequence[Column]) -> bytes:
    """Returns the numbers of the runs with their intervals, and published ones of the same data, as a PNG."""
    panels = [
        MarkPanel(column.metric.name, list(_marks(measured, column)), _at_baseline(measured, column))
        for column in columns
    ]
    return interval_plot(panels, title=f"{measured.group.benchmark}, {measured.options.mode}, times 100")


def _marks(measured: Measured, column: Column) -> Iterator[Mark]:
    times = column.times
    for run in measured.group.runs:
        found = measured.whole.numbers[run.name].get(column.key)
        if found is not None and found.value is not None:
            low, high = (None if end is None else times * end for end in (found.low, found.high))
            yield Mark(run.name, times * found.value, low, high)
    for one in tables.on_same_data(measured):
        if column.key == f"{one.benchmark}/{one.metric}":
            yield Mark(one.model, times * one.value, published=True)


def _at_baseline(measured: Measured, column: Column) -> float | None:
    if measured.baseline is None:
        return None
    found = measured.whole.numbers[measured.baseline.name].get(column.key)
    return None if found is None or found.value is None else column.times * found.value


def _group(measured: Measured, groups: Sequence[Group], num_pictures: int) -> Iterator[html.Block]:
    columns = tables.headlines(measured)
    yield from (html.banner(note) for note in tables.notes_of(measured, groups))
    yield _card(tables.numbers(measured, columns))
    yield html.card(html.plot(plot_of(measured, columns), "intervals", wide=len(columns) > 1))
    further = [column for column in measured.columns if not column.headline]
    for table in (
        tables.differences(measured, columns),
        tables.published(measured, columns),
        tables.numbers(measured, further, "Further numbers") if further else None,
        tables.slices(measured, columns),
        tables.counts(measured.group),
        tables.settings(measured.group),
    ):
        if table is not None:
            yield _card(table)
    yield html.card(*(_lineage(run) for run in measured.group.runs), title="Lineage")
    for kind, answers in pictures.drawn(measured, num_pictures).items():
        if answers:
            shown = html.beside(*(_answers(one, measured.options.mode) for one in answers))
            yield html.subsection(pictures.HEADS[kind], html.paragraph(html.legend()), shown)


def _card(table: Table) -> html.Block:
    rows = [[_cell(cell) for cell in row] for row in table.rows]
    return html.card(html.grid(table.head, rows, numbers=table.numbers), title=table.title, note=table.note)


def _cell(cell: Cell) -> str:
    return html.join(cell.text, html.BREAK, html.faint(cell.detail)) if cell.detail else cell.text


def _lineage(run: Run) -> html.Block:
    found: list[tuple[str, Any]] = [("run", run.uri)]
    named = {what: run.lineage.get(what) or {} for what in ("model", "tokenizer")} | {"chats": run.chats}
    for what, parts in named.items():
        found += [(f"{what}, {key}", value) for key, value in parts.items() if key != "fingerprint"]
    versions = ", ".join(f"{name} {value}" for name, value in run.lineage.get("versions", {}).items())
    found += [("versions", versions)] if versions else []
    return html.folded(run.name, html.settings(found))


def _answers(found: Beside, mode: str) -> html.Block:
    first = next(iter(found.rows.values()))
    tags = f" [{', '.join(first['tags'])}]" if first["tags"] else ""
    where = html.faint(f"{first['dataset']} {first['image_id']}, {first['sample_id']}{tags}")
    figures = [
        (title, picture, _scored(found.rows[title], mode) if number else "")
        for number, (title, picture) in enumerate(found.pictures)
    ]
    lines = [html.faint("truth "), html.code(html.shortened(first["truth"]))]
    for name, row in found.rows.items():
        said = "(not asked)" if row["generated"] is None else row["generated"].strip() or "(empty)"
        lines += [html.BREAK, html.faint(f"{name} "), html.code(html.shortened(said))]
    return html.card(
        html.paragraph(html.bold(html.shortened(first["question"])), html.BREAK, where),
        html.figures(figures, found.problem),
        html.paragraph(*lines),
    )


def _scored(row: Mapping[str, Any], mode: str) -> str:
    iou = iou_of(row, mode)
    if iou is None:
        return "not asked"
    if row["target_px"]:
        return f"IoU {iou:.2f}"
    return "right: no target" if iou == 1.0 else "wrong: no target"
