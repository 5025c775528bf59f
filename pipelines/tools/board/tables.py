"""The tables of a board as texts, the same on a terminal and on a page."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.tools.board.numbers import Column, Measured, Part, number_at
from pipelines.tools.board.runs import Group, Run, differing_questions
from samtok.metrics.intervals import LEVEL, Difference, Interval
from samtok.metrics.published import Published, catalogue

NOTHING = "-"
NO_TARGET = "always No target."
"""The row of what saying so to every question scores."""
FEW_IMAGES = 30
"""Below so many, intervals are too narrow: in simulations those of 95 % held the truth in 85 % of cases with
5 images, in 92 % with 10 to 30, and in 95 % with 60."""
_DIGEST_CHARS = 12


@dataclass(frozen=True)
class Cell:
    """A text of a table, and what stands less prominently beside it."""

    text: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.detail}".rstrip()


@dataclass(frozen=True)
class Table:
    """A table: its title, a head, rows of as many cells, and what to know of it.

    The first ``num_texts`` columns and the last ``num_notes`` are texts, all others numbers.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    num_texts: int = 1
    num_notes: int = 0

    @property
    def numbers(self) -> range:
        """Places of the columns of numbers."""
        return range(self.num_texts, len(self.head) - self.num_notes)


def title_of(group: Group) -> str:
    """Returns what the tables of a group are about."""
    known = catalogue().benchmarks
    name = group.benchmark
    return f"{name}: {known[name].title}" if name in known else name


def lead_of(measured: Measured) -> str:
    """Returns in a sentence or two what was asked, and what the intervals are."""
    options, whole = measured.options, measured.whole
    asked = f"{whole.questions:,} questions about {measured.num_images:,} images of {_homes(measured)}"
    drawn = f"from {options.resamples:,} resamples of the images (seed {options.seed})"
    return f"{asked}, scored {options.mode}. Shares times 100, with {100 * LEVEL:.0f} % intervals {drawn}."


def headlines(measured: Measured) -> list[Column]:
    """Returns the columns that matter most."""
    return [column for column in measured.columns if column.headline]


def numbers(measured: Measured, columns: Sequence[Column], title: str = "Numbers") -> Table:
    """Returns a row per run, and one for the answer "No target." where that was scored."""
    found = measured.whole.numbers
    rows = [_row(run.name, columns, found[run.name]) for run in measured.group.runs]
    if constant := _constant(measured):
        rows.append(_row(NO_TARGET, columns, constant))
    return Table(title, ["model", *_names(columns)], rows)


def differences(measured: Measured, columns: Sequence[Column]) -> Table | None:
    """Returns a row per run that is held against the baseline; None where there is none."""
    if measured.baseline is None or not measured.whole.differences:
        return None
    rows = [
        [Cell(run), *(_difference(column, found.get(column.key)) for column in columns)]
        for run, found in measured.whole.differences.items()
    ]
    note = (
        "In brackets the interval of the difference on the same images; then the share of resamples above 0."
    )
    return Table(f"Minus {measured.baseline.name}", ["model", *_names(columns)], rows, note)


def slices(measured: Measured, columns: Sequence[Column]) -> Table | None:
    """Returns a row per tag and run; None without tags."""
    rows = [
        [Cell(part.name), Cell(run.name), Cell(f"{part.questions:,}"), *_cells(columns, _of(part, run))]
        for part in measured.slices
        for run in measured.group.runs
    ]
    head = ["tag", "model", "questions", *_names(columns)]
    return Table("By tag", head, rows, num_texts=2) if rows else None


def published(measured: Measured, columns: Sequence[Column]) -> Table | None:
    """Returns a row per published model and split that has some of the columns; None where there is none."""
    benchmark = measured.group.benchmark
    by_row: dict[tuple[str, ...], dict[str, Published]] = {}
    same = on_same_data(measured)
    for one in sorted(catalogue().of(benchmark), key=lambda one: one not in same):
        key = (one.model, one.dataset, one.split or "", one.cited)
        by_row.setdefault(key, {})[f"{benchmark}/{one.metric}"] = one
    rows, notes = [], dict[str, int]()
    for (model, dataset, split, cited), found in by_row.items():
        cells = [_published(column, found.get(column.key)) for column in columns]
        if any(cell.text != NOTHING for cell in cells):
            note = next(iter(found.values())).note
            mark = f"[{notes.setdefault(note, len(notes) + 1)}]" if note else ""
            rows.append([Cell(model), Cell(f"{dataset} {split}".strip()), *cells, Cell(cited, mark)])
    head = ["model", "data", *_names(columns), "source"]
    told = " ".join([comparison_of(measured), *(f"[{number}] {note}." for note, number in notes.items())])
    return Table("Published", head, rows, told, num_texts=2, num_notes=1) if rows else None


def comparison_of(measured: Measured) -> str:
    """Returns whether published numbers may be held against those of a group, in sentences."""
    if not on_same_data(measured):
        return (
            f"Published numbers are on other data than {_homes(measured)}, so they do not compare with those "
            "above: only an evaluation on their dataset and split does."
        )
    limit = measured.group.runs[0].measured_with.get("limit")
    parts = [f"Those on {_homes(measured)} are on the data that was asked here; the others are not."]
    if limit is not None:
        parts.append(f"Only the first {limit} images were asked, so even those do not compare.")
    if measured.options.mode != "official":
        parts.append("They were scored by the authors' scripts, which --mode official reproduces.")
    return " ".join(parts)


def on_same_data(measured: Measured) -> list[Published]:
    """Returns the published numbers of the dataset and split that were asked about."""
    if len(measured.homes) != 1:
        return []
    (home,) = measured.homes
    return [row for row in catalogue().of(measured.group.benchmark) if row.is_of(*home)]


def counts(group: Group) -> Table:
    """Returns what became of the questions of each run."""
    names = list(dict.fromkeys(name for run in group.runs for name in run.counts))
    lost = {run.name: run.lost for run in group.runs}
    head = ["model", *(name.replace("_", " ") for name in names)]
    head += ["lost"] if any(count is not None for count in lost.values()) else []
    rows = []
    for run in group.runs:
        cells = [_count(run.counts.get(name)) for name in names]
        cells += [_count(lost[run.name])] if "lost" in head[-1:] else []
        rows.append([Cell(run.name), *cells])
    return Table("Counts", head, rows)


def settings(group: Group) -> Table | None:
    """Returns the settings in which runs differ, all that decides answers and scores; None if in none."""
    names = list(dict.fromkeys(name for run in group.runs for name in run.measured_with))
    rows = []
    for name in names:
        values = [run.measured_with.get(name) for run in group.runs]
        if any(value != values[0] for value in values):
            rows.append([Cell(name), *(Cell(_setting(name, value)) for value in values)])
    return (
        Table("Settings that differ", ["setting", *(run.name for run in group.runs)], rows) if rows else None
    )


def notes_of(measured: Measured, groups: Sequence[Group]) -> Iterator[str]:
    """Yields what to know of a group: which numbers have no interval, which runs stand elsewhere."""
    group, wanted = measured.group, measured.options.baseline
    if measured.num_images < FEW_IMAGES:
        yield (
            f"Intervals of only {measured.num_images} images are too narrow; one without width says that all "
            "images agree, not that the number is certain."
        )
    if measured.unsure:
        names = ", ".join(measured.unsure)
        yield f"Without intervals, since rows of answers do not say what each adds: {names}."
    for line in measured.differing:
        yield f"No interval where answers do not give the number of metrics.json: {line}."
    if wanted is not None and measured.baseline is None:
        yield f"{wanted} did not answer these questions, so nothing is held against it here."
    for run in group.runs:
        parts = [run.counts.get(name, 0) for name in ("expected", "scored", "skipped")]
        if parts[0] != parts[1] + parts[2]:
            yield f"The counts of {run.name} do not add up."
    for other in groups:
        if other is not group and other.benchmark == group.benchmark:
            names = ", ".join(run.name for run in other.runs)
            what = differing_questions(group, other)
            yield f"{names} answered other questions of {group.benchmark} (other {what}): see that table."


def _homes(measured: Measured) -> str:
    return ", ".join(f"{dataset} {split}" for dataset, split in sorted(measured.homes)) or "no data"


def _constant(measured: Measured) -> dict[str, Interval]:
    """Returns the numbers of always saying that there is no target, which are the same for all runs."""
    section = measured.group.runs[0].scored(measured.options.mode).get("no_target") or {}
    found = {column.key: number_at(section, column.key) for column in measured.columns}
    there = {key: value for key, value in found.items() if value is not None}
    return {key: Interval(value=value, low=None, high=None) for key, value in there.items()}


def _of(part: Part, run: Run) -> Mapping[str, Interval]:
    return part.numbers[run.name]


def _names(columns: Sequence[Column]) -> list[str]:
    return [column.metric.name for column in columns]


def _row(name: str, columns: Sequence[Column], found: Mapping[str, Interval]) -> list[Cell]:
    return [Cell(name), *_cells(columns, found)]


def _cells(columns: Sequence[Column], found: Mapping[str, Interval]) -> list[Cell]:
    return [_interval(column, found.get(column.key)) for column in columns]


def _interval(column: Column, found: Interval | None) -> Cell:
    if found is None or found.value is None:
        return Cell(NOTHING)
    text = f"{column.times * found.value:.2f}"
    if found.low is None or found.high is None:
        return Cell(text)
    return Cell(text, f"[{column.times * found.low:.2f}, {column.times * found.high:.2f}]")


def _difference(column: Column, found: Difference | None) -> Cell:
    if found is None or found.value is None:
        return Cell(NOTHING)
    text = f"{column.times * found.value:+.2f}"
    if found.low is None or found.high is None or found.above is None:
        return Cell(text)
    ends = f"[{column.times * found.low:+.2f}, {column.times * found.high:+.2f}]"
    return Cell(text, f"{ends} {found.above:.1%}")


def _published(column: Column, found: Published | None) -> Cell:
    return Cell(NOTHING) if found is None else Cell(f"{column.times * found.value:.2f}")


def _count(value: int | None) -> Cell:
    return Cell(NOTHING) if value is None else Cell(f"{value:,}")


def _setting(name: str, value: Any) -> str:
    is_digest = name.endswith("sha256") or name in ("chat", "questions")
    return str(value)[:_DIGEST_CHARS] if is_digest else str(value)
