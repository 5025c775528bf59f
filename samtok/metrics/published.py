"""What benchmarks measure, and numbers that others have published, each with where it was printed.

They are the rows of ``published.yaml``. Published numbers are those of the authors' own scripts (mode
"official"), on the data that they name: a number of other data does not compare with them.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from samtok.errors import DataError

ROWS = Path(__file__).with_suffix(".yaml")

_ROW = {"benchmark", "dataset", "model", "source", "values"}
_ROW_MAY = {"split", "table", "note"}


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number of a benchmark; ``low`` and ``high`` are the lowest and highest that it can be.

    Attributes:
        name: As papers call it.
        times: What papers multiply it by.
    """

    name: str
    low: float = 0.0
    high: float = 1.0
    times: float = 100.0


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What a benchmark asks, and its metrics by their keys, in the order of tables."""

    title: str
    metrics: Mapping[str, Metric]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where numbers were printed; ``arxiv`` is an identifier, None where none is known."""

    title: str
    arxiv: str | None = None


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published number.

    Attributes:
        split: None where it is not stated.
        metric: Key of the benchmark's metric.
        value: As metrics have it: a share in [0, 1] where the metric is one.
        printed: As the source has it.
        table: Number of its table there, as text; None where it is not known.
        note: What to know of it, or nothing.
    """

    benchmark: str
    dataset: str
    split: str | None
    model: str
    metric: str
    value: float
    printed: float
    source: Source
    table: str | None
    note: str

    @property
    def cited(self) -> str:
        """The source in a few words, such as ``arXiv 2601.16093, table 3``."""
        place = self.source.title if self.source.arxiv is None else f"arXiv {self.source.arxiv}"
        return place if self.table is None else f"{place}, table {self.table}"

    def is_of(self, dataset: str, split: str) -> bool:
        """Returns whether it was measured on a dataset and split of these names; case and signs are free."""
        known = self.split is not None and plain(self.split) == plain(split)
        return known and plain(self.dataset) == plain(dataset)


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """All benchmarks by name, and all published numbers."""

    benchmarks: Mapping[str, Benchmark]
    rows: tuple[Published, ...]

    def of(self, benchmark: str) -> tuple[Published, ...]:
        """Returns the published numbers of a benchmark."""
        return tuple(row for row in self.rows if row.benchmark == benchmark)


@functools.cache
def catalogue() -> Catalogue:
    """Returns what is shipped."""
    return parse(ROWS.read_text(encoding="utf-8"))


def parse(text: str) -> Catalogue:
    """Reads a file of the form of ``published.yaml``.

    Raises:
        DataError: ``published`` for a row that names no known benchmark, metric or source, has a value beyond
            what its metric can be, misses or has too many keys, or states a number twice.
    """
    body = yaml.safe_load(text)
    benchmarks = {
        name: Benchmark(title=one["title"], metrics={key: _metric(m) for key, m in one["metrics"].items()})
        for name, one in body["benchmarks"].items()
    }
    sources = {name: Source(**one) for name, one in body["sources"].items()}
    rows: dict[tuple[str | None, ...], Published] = {}
    for number, row in enumerate(body["rows"], start=1):
        where = f"row {number} of published numbers"
        for one in _numbers(row, benchmarks, sources, where):
            key = (one.benchmark, one.dataset, one.split, one.model, one.metric, one.cited)
            if key in rows:
                raise _wrong(f"{where} states {one.metric} of {one.model} twice")
            rows[key] = one
    return Catalogue(benchmarks=benchmarks, rows=tuple(rows.values()))


def plain(name: str) -> str:
    """Returns a name's letters, digits and plus signs alone, small: ``RefCOCO+`` is ``refcoco+``."""
    return "".join(sign for sign in name.lower() if sign.isalnum() or sign == "+")


def _metric(body: str | Mapping[str, Any]) -> Metric:
    if isinstance(body, str):
        return Metric(name=body)
    low, high = body.get("range", (0, 1))
    return Metric(name=body["name"], low=float(low), high=float(high), times=float(body.get("times", 100)))


def _numbers(
    row: Mapping[str, Any], benchmarks: Mapping[str, Benchmark], sources: Mapping[str, Source], where: str
) -> list[Published]:
    wrong = sorted((_ROW - row.keys()) | (row.keys() - _ROW - _ROW_MAY))
    if wrong:
        raise _wrong(f"{where} misses or cannot have {', '.join(wrong)}")
    if row["benchmark"] not in benchmarks or row["source"] not in sources:
        names = f"the benchmark {row['benchmark']} and the source {row['source']}"
        raise _wrong(f"{where} is of {names}; one is not listed")
    metrics = benchmarks[row["benchmark"]].metrics
    about = {name: row[name] for name in ("benchmark", "dataset", "model")}
    about |= {"split": row.get("split"), "table": row.get("table"), "note": row.get("note", "")}
    about["source"] = sources[row["source"]]
    found = []
    for key, printed in row["values"].items():
        if key not in metrics:
            raise _wrong(f"{where}: {row['benchmark']} has no metric {key}; it has {', '.join(metrics)}")
        metric, value = metrics[key], float(printed) / metrics[key].times
        if not metric.low <= value <= metric.high:
            limits = f"between {metric.low} and {metric.high} times {metric.times:g}"
            raise _wrong(f"{where}: {key} of {printed} cannot be; it is {limits}")
        found.append(Published(**about, metric=key, value=value, printed=float(printed)))
    return found


def _wrong(message: str) -> DataError:
    return DataError(f"{message}.", reason="published")
