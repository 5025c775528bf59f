"""The numbers of runs that answered the same questions: with intervals, against a baseline, by tag."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.tools.board.answers import Answers, read_answers
from pipelines.tools.board.runs import Group, Run
from samtok.errors import DataError
from samtok.metrics.intervals import RESAMPLES, Difference, Interval, resampled_sums, share, sums_by_image
from samtok.metrics.published import Metric, catalogue
from samtok.metrics.referring import Mode, Terms

TOLERANCE = 1e-6
"""How far a number of ``metrics.json`` may be from that of its answers: the epsilons of public scripts."""
WHOLE = "all"
NO_COLUMNS = ("by_tag", "counts")
TARGETS = "targets/mean_iou"
NAMES = {
    TARGETS: "IoU of targets",
    "words/exact_match": "exact words",
    "words/target_exact_match": "exact words of targets",
    "words/target_first_code": "first code of targets",
}

Section = Mapping[str, Any]
OfRuns = Mapping[str, Mapping[str, Interval]]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How numbers are looked at.

    Attributes:
        baseline: Name or folder of the run that others are compared with; None takes the first of a group.
        slices: Also by tag.
    """

    mode: Mode = "strict"
    baseline: str | None = None
    resamples: int = RESAMPLES
    seed: int = 0
    slices: bool = False


@dataclass(frozen=True)
class Column:
    """A metric of a table: its place in a section of ``metrics.json``, and what is known of it."""

    key: str
    metric: Metric
    headline: bool

    @property
    def times(self) -> float:
        """What it is multiplied by in tables: shares by 100."""
        return 100.0 if self.metric.high <= 1 else self.metric.times


@dataclass(frozen=True)
class Part:
    """All questions, or those of a tag.

    Attributes:
        numbers: Per run, of each column that it has a number for.
        differences: The same of runs but the baseline, minus the baseline.
    """

    name: str
    questions: int
    numbers: OfRuns
    differences: Mapping[str, Mapping[str, Difference]]


@dataclass(frozen=True)
class Measured:
    """What is known of a group of runs.

    Attributes:
        answers: Per run, as they were read.
        homes: Data sets and splits that were asked about.
        unsure: Names of columns that have no intervals.
        differing: Runs and columns whose answers do not give the number that the run has.
    """

    group: Group
    options: Options
    baseline: Run | None
    columns: Sequence[Column]
    whole: Part
    slices: Sequence[Part]
    answers: Mapping[str, Answers]
    homes: frozenset[tuple[str, str]]
    num_images: int
    unsure: Sequence[str]
    differing: Sequence[str]


def measure(group: Group, options: Options) -> Measured:
    """Reads the answers of a group and returns its numbers.

    Raises:
        ConfigError: If a run was not scored in the mode.
        DataError: If the runs did not answer the same questions after all, or answers are missing.
    """
    sections = {run.name: run.scored(options.mode)["model"] for run in group.runs}
    answers = {run.name: read_answers(run, options.mode) for run in group.runs}
    who = _same_questions(answers)
    columns = columns_of(group.benchmark, list(sections.values()))
    resampling = _Resampling(group, answers, columns, options)
    whole = resampling.part(WHOLE, np.ones(len(who), bool), sections)
    slices = list(_slices(resampling, sections, answers)) if options.slices else []
    return Measured(
        group=group,
        options=options,
        baseline=resampling.baseline,
        columns=columns,
        whole=whole,
        slices=slices,
        answers=answers,
        homes=frozenset((one[0], one[1]) for one in who),
        num_images=resampling.num_images,
        unsure=[column.metric.name for column in columns if not resampling.is_sure(column)],
        differing=list(resampling.differing),
    )


def columns_of(benchmark: str, sections: Sequence[Section]) -> list[Column]:
    """Returns the columns of a table: those of the benchmark, and then what else sections have numbers of.

    Whole numbers are counts and no columns.
    """
    known = catalogue().benchmarks
    named = known[benchmark].metrics if benchmark in known else {}
    keys = list(dict.fromkeys(key for section in sections for key in _leaves(section)))
    order = [TARGETS, *(f"{benchmark}/{name}" for name in named)]
    own = [key for key in keys if key == TARGETS or key.startswith(f"{benchmark}/")]
    headline = set(own) if set(own) - {TARGETS} else set(keys)
    places = {key: place for place, key in enumerate(order)}
    ranked = sorted(keys, key=lambda key: (key not in headline, places.get(key, len(places))))
    return [Column(key, _metric_of(key, benchmark, named), key in headline) for key in ranked]


def number_at(section: Section, key: str) -> float | None:
    """Returns a number of a section by ``part/name``, None where there is none."""
    found: Any = section
    for name in key.split("/"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return None if found is None else float(found)


def _leaves(section: Section, prefix: str = "") -> Iterator[str]:
    for name, value in section.items():
        if isinstance(value, Mapping):
            if name not in NO_COLUMNS:
                yield from _leaves(value, f"{prefix}{name}/")
        elif value is None or isinstance(value, float):
            yield prefix + name


def _metric_of(key: str, benchmark: str, named: Mapping[str, Metric]) -> Metric:
    own = key.removeprefix(f"{benchmark}/")
    return named.get(own) or Metric(name=NAMES.get(key, own.replace("/", " ").replace("_", " ")))


def _same_questions(answers: Mapping[str, Answers]) -> list[tuple[Any, ...]]:
    """Returns what was asked, in order; raises DataError if runs differ in it."""
    asked = {name: [found.who[place] for place in found.order] for name, found in answers.items()}
    (first, whole), *others = asked.items()
    for name, found in others:
        if found != whole:
            lone = sorted(set(found) ^ set(whole))
            example = f", such as {'/'.join(map(str, lone[0]))}" if lone else ""
            raise DataError(
                f"{first} and {name} state the same digest of their questions and have other ones: "
                f"{len(lone)} are of one of them alone{example}. Evaluate one of them again.",
                reason="questions",
            )
    return whole


def _slices(
    resampling: "_Resampling", sections: Mapping[str, Section], answers: Mapping[str, Answers]
) -> Iterator[Part]:
    first = next(iter(answers.values()))
    tags_of = [first.tags[place] for place in first.order]
    for tag in sorted({tag for section in sections.values() for tag in section.get("by_tag", {})}):
        kept = np.array([tag in tags for tags in tags_of], bool)
        of_tag = {name: section.get("by_tag", {}).get(tag, {}) for name, section in sections.items()}
        yield resampling.part(tag, kept, of_tag)


class _Resampling:
    """Draws the images of a group, the same ones for all runs and columns."""

    def __init__(
        self, group: Group, answers: Mapping[str, Answers], columns: Sequence[Column], options: Options
    ) -> None:
        self.columns, self.options = columns, options
        self.baseline = group.baseline(options.baseline)
        images: dict[tuple[Any, ...], int] = {}
        first = next(iter(answers.values()))
        asked = (first.who[place][:3] for place in first.order)
        self.image = np.array([images.setdefault(image, len(images)) for image in asked], np.int64)
        self.num_images = len(images)
        self.terms = {run.name: self._terms(run, answers[run.name], group.benchmark) for run in group.runs}
        self.differing: dict[str, None] = {}

    def _terms(self, run: Run, answers: Answers, benchmark: str) -> dict[str, Terms]:
        read = run.scored(self.options.mode).get("read", {})
        order, wanted = answers.order, {column.key for column in self.columns}
        found = answers.terms(benchmark, read).items()
        return {key: Terms(term.part[order], term.whole[order]) for key, term in found if key in wanted}

    def is_sure(self, column: Column) -> bool:
        """Returns whether a column has intervals."""
        return any(column.key in found for found in self.terms.values())

    def part(self, name: str, kept: np.ndarray, sections: Mapping[str, Section]) -> Part:
        """Returns the numbers of some of the questions, as sections of ``metrics.json`` have them."""
        draws = self._draws(name, kept, sections)
        numbers = {run: self._numbers(section, run, draws) for run, section in sections.items()}
        return Part(name, int(kept.sum()), numbers, self._differences(numbers, draws))

    def _draws(
        self, name: str, kept: np.ndarray, sections: Mapping[str, Section]
    ) -> dict[tuple[str, str], np.ndarray]:
        """Returns the number of each resample by run and column, where the answers give what is stated."""
        places = [(run, key) for run, found in self.terms.items() for key in found]
        terms = [self.terms[run][key] for run, key in places]
        stacked = [side * kept for term in terms for side in (term.part, term.whole)]
        counts = np.array(stacked, np.float64).reshape(-1, len(kept)).T
        sums = sums_by_image(counts, self.image, self.num_images)
        drawn = resampled_sums(sums, resamples=self.options.resamples, seed=self.options.seed)
        values = share(sums.sum(axis=0).reshape(len(places), 2))
        shares = share(drawn.reshape(len(drawn), len(places), 2))
        found: dict[tuple[str, str], np.ndarray] = {}
        for place, (run, key) in enumerate(places):
            stated = number_at(sections[run], key)
            if stated is not None and abs(stated - values[place]) <= TOLERANCE:
                found[run, key] = shares[:, place]
            elif sections[run] and not (stated is None and np.isnan(values[place])):
                where = f"{run}, {key}" if name == WHOLE else f"{run}, {key} of {name}"
                self.differing[f"{where}: {stated} is stated, {values[place]} found"] = None
        return found

    def _numbers(
        self, section: Section, run: str, draws: Mapping[tuple[str, str], np.ndarray]
    ) -> dict[str, Interval]:
        found = {}
        for column in self.columns:
            value = number_at(section, column.key)
            if value is None:
                continue
            drawn = draws.get((run, column.key))
            bare = Interval(value=value, low=None, high=None)
            found[column.key] = bare if drawn is None else Interval.of(value, drawn)
        return found

    def _differences(
        self, numbers: OfRuns, draws: Mapping[tuple[str, str], np.ndarray]
    ) -> dict[str, dict[str, Difference]]:
        if self.baseline is None:
            return {}
        base = self.baseline.name
        found: dict[str, dict[str, Difference]] = {}
        for run, own in numbers.items():
            if run == base:
                continue
            found[run] = {}
            for key in own.keys() & numbers[base].keys():
                change = (own[key].value or 0.0) - (numbers[base][key].value or 0.0)
                pair = draws.get((run, key)), draws.get((base, key))
                found[run][key] = _difference(change, *pair)
        return found


def _difference(change: float, own: np.ndarray | None, base: np.ndarray | None) -> Difference:
    if own is None or base is None:
        return Difference(value=change, low=None, high=None, above=None)
    return Difference.of(change, own - base)
