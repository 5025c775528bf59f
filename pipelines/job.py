"""The frame of every job: places, dry run, checks, config.json, tracking, closing table, exit code.

A job is a class with four parts (``Job``); ``run`` puts them in order:

    places made absolute -> inputs of a preset are made if they are not there -> prepare -> dry run, or
    --out is held against other drivers (``storage.lease``) -> work(run), in which ``run.begin`` writes
    config.json and opens the MLflow run -> closing table -> limits

An error of our family becomes one line and its exit code; the MLflow run is then FAILED.
"""

import contextlib
import dataclasses
import logging
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

from pipelines import config as configs
from pipelines import env, rejects, storage
from pipelines.config import RunConfig
from pipelines.provenance import as_json, config_json, versions
from pipelines.rejects import Reason
from pipelines.storage import lease
from pipelines.tracking import Tracker
from samtok.errors import ClusterError, ConfigError, DataError, SamtokError

log = logging.getLogger(__name__)

C = TypeVar("C", bound=RunConfig)

CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class Items:
    """What became of one kind of items, such as the images of a corpus.

    Attributes:
        unit: What they are, in the plural.
        rejected: Items that could not be used.
        filtered: Items that were left out on purpose; they do not count as rejected.
        by_settings: Those of ``filtered`` that settings left out which a user may not know of; None: all.
        hint: What to look at if none came out.
        remedy: What lets filtered items through, as flags.
    """

    unit: str
    total: int
    out: int
    rejected: int
    filtered: int = 0
    by_settings: int | None = None
    hint: str = ""
    remedy: str = ""

    def line(self) -> str:
        """Returns the counts on one line."""
        text = f"in {self.total}  out {self.out}  rejected {self.rejected}"
        return text + (f"  filtered {self.filtered}" if self.filtered else "")

    def warning(self, reasons: Sequence[Reason]) -> str | None:
        """Returns a line if settings left out more than half, though not all; None otherwise."""
        left_out = self.filtered if self.by_settings is None else self.by_settings
        if not self.out or 2 * left_out <= self.total:
            return None
        because = rejects.summary([reason for reason in reasons if reason.filtered])
        remedy = f" {self.remedy}" if self.remedy else ""
        text = f"{left_out} of {self.total} {self.unit} were filtered, more than half"
        return f"{text}{because and '; '}{because.rstrip('.')}.{remedy}"

    def check(self, limit: float, out: str, reasons: Sequence[Reason] = ()) -> None:
        """Raises DataError if none came out, or a share above ``limit`` was rejected; results are complete.

        ``reasons`` are those of all kinds of items of the run.
        """
        because = rejects.summary(reasons).rstrip(".")
        hints = [self.hint, self.remedy if self.filtered else ""]
        hints.append(f"The tables of rejects below {out} name each with its reason." if reasons else "")
        see = " ".join(hint for hint in hints if hint)
        if not self.out:
            lost = f"{self.rejected} were rejected, {self.filtered} filtered"
            text = f"none of the {self.total} {self.unit} could be used: {lost}"
            text = text if self.total else f"there are no {self.unit}"
            raise DataError(f"{text}{because and '; '}{because}. {see}".rstrip())
        if self.rejected > limit * self.total:
            raise DataError(
                f"{self.rejected / self.total:.1%} of the {self.unit} cannot be used; --max-reject-rate "
                f"allows {limit:.1%}{because and '; '}{because}. {see}".rstrip()
            )


@dataclass(frozen=True)
class Closing:
    """What a job prints at its end: tables (a head and lines of as many cells), names with texts, counts, and
    the commonest reasons."""

    rows: Sequence[tuple[str, str]] = ()
    items: Sequence[Items] = ()
    tables: Sequence[Sequence[Sequence[str]]] = ()
    reasons: Sequence[Reason] = ()


class Run(Generic[C]):
    """One run of a job, once nothing stands in its way. Its tracker is off until ``begin``."""

    def __init__(self, config: C, name: str) -> None:
        self.config, self.name = config, name
        self.tracker = Tracker("off", experiment=name, home=config.out)
        self.started = time.monotonic()

    def begin(self, config: C | None = None, *, tags: Mapping[str, Any] | None = None) -> Tracker:
        """Writes config.json and opens the MLflow run, once settings that do not fit have been refused.

        Preparing may have filled more into the config. Versions are added to the tags.
        """
        self.config = self.config if config is None else config
        storage.write_bytes(storage.join(self.config.out, CONFIG_FILE), config_json(self.config).encode())
        return self.track(tags=tags)

    def track(self, *, tags: Mapping[str, Any] | None = None) -> Tracker:
        """Opens the MLflow run alone, for results that have no config.json of ours; ``tags`` as above."""
        assert self.config.tracking is not None
        self.tracker = Tracker(self.config.tracking, experiment=self.name, home=self.config.out)
        self.tracker.params(as_json(self.config))
        self.tracker.tags({**(tags or {}), **versions()})
        return self.tracker

    @property
    def seconds(self) -> float:
        """Seconds since the job began."""
        return time.monotonic() - self.started


class Job(ABC, Generic[C]):
    """What is its own of a job, made of a config with absolute places.

    Its module loads neither torch nor Ray; ``work`` may.
    """

    name: ClassVar[str]
    """Of the job file, and of the MLflow experiment."""
    holds_out: ClassVar[bool] = True
    """Whether another driver is kept out of --out; not where nothing else may be in it."""

    def __init__(self, config: C) -> None:
        self.config = config

    @abstractmethod
    def prepare(self) -> None:
        """Checks what can be known before anything runs: inputs are there and fit. Reads little. ConfigError
        for a missing input names the command that makes it."""

    @abstractmethod
    def size(self) -> str:
        """Returns how much there is to do, in a line or a few; "at least N" where a listing is longer."""

    @abstractmethod
    def work(self, run: Run[C]) -> Closing:
        """Does the work; calls ``run.begin`` before anything is written."""


Inputs: TypeAlias = ModuleType
"""Makes inputs of presets that are not there: the module ``pipelines.embedded``."""


def run(job: Callable[[C], Job[C]], config: C, *, inputs: Inputs | None = None) -> int:
    """Runs a job; returns its exit code."""
    return guard(lambda: _run(job, config, inputs), config)


def _run(kind: Callable[[C], Job[C]], config: C, inputs: Inputs | None) -> int:
    config = resolved(config)
    _print([("out", config.out), ("tracking", str(config.tracking))])
    missing = inputs.missing(config) if inputs is not None else ()
    if config.dry_run:
        return _dry_run(kind(config), missing)
    if inputs is not None and missing:
        inputs.make(config)
    return _work(kind(config))


def _work(job: Job[Any]) -> int:
    job.prepare()
    storage.check(job.config.out)
    with lease.held(job.config.out) if job.holds_out else contextlib.nullcontext():
        return _alone(job)


def _alone(job: Job[Any]) -> int:
    config = job.config
    run = Run(config, job.name)
    try:
        closing = job.work(run)
        for table in closing.tables:
            sys.stdout.write(rejects.printable("".join(f"{line}\n" for line in (*aligned(table), ""))))
        _print([*closing.rows, *((items.unit, items.line()) for items in closing.items)])
        _print(rejects.table_of(closing.reasons))
        _print([("time", f"{run.seconds:.0f} s"), ("mlflow", run.tracker.link), ("out", config.out)])
        for line in rejects.warnings(closing.reasons):
            log.warning("%s", line)
        for items in closing.items:
            items.check(config.max_reject_rate, config.out, closing.reasons)
            if (line := items.warning(closing.reasons)) is not None:
                log.warning("%s", line)
    except BaseException:
        run.tracker.end("FAILED")
        raise
    run.tracker.end()
    return 0


def _dry_run(job: Job[Any], missing: Sequence[str]) -> int:
    if not missing:
        job.prepare()
    sys.stdout.write(config_json(job.config))
    if missing:
        _print([("inputs", f"made first: {', '.join(missing)}"), ("plan", "known once they are there")])
    else:
        _print([("plan", job.size()), ("checks", "passed; nothing was written")])
    return 0


def _print(rows: Sequence[tuple[str, str]]) -> None:
    for name, text in rows:
        sys.stdout.write(rejects.printable(f"{name:<9} {text}\n"))
    sys.stdout.flush()


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a table; the first column is set to the left, the others to the right."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    first = [cell.ljust(widths[0]) for cell in columns[0]]
    others = [[cell.rjust(w) for cell in column] for column, w in zip(columns[1:], widths[1:], strict=True)]
    return list(map("  ".join, zip(first, *others, strict=True)))


# ---------------------------------------------------------------- places


def resolved(config: C) -> C:
    """Returns a config with absolute places and a tracking URI.

    Relative places start from the working directory. A job under ``ray job submit`` runs in a copy that Ray
    deletes, so there they start from ``SAMTOK_HOME``. Raises ConfigError if there is no place for the
    database of an output on object storage.
    """
    config = configs.with_places(config, absolute)
    return dataclasses.replace(config, tracking=tracking_of(config))


def absolute(place: str) -> str:
    """Makes one place absolute."""
    if env.is_submitted() and not storage.is_anchored(place):
        return str(env.home() / place)
    return storage.absolute(place)


def tracking_of(config: RunConfig) -> str:
    """Returns where a run is tracked: --tracking, MLFLOW_TRACKING_URI, or a database beside --out. Raises
    ConfigError for an output on object storage where neither is set."""
    wanted = config.tracking or env.get(env.MLFLOW_TRACKING_URI)
    if wanted is None:
        if storage.is_remote(config.out):
            raise ConfigError(
                f"--out {config.out} is on object storage, where no database can be. Give --tracking, a "
                f"server's URI or off, or set {env.MLFLOW_TRACKING_URI}.",
            )
        wanted = database_beside(config.out)
    if wanted.startswith("sqlite:///"):
        return "sqlite:///" + absolute(wanted.removeprefix("sqlite:///"))
    return wanted


def database_beside(out: str) -> str:
    """Returns the URI of the database of MLflow that results in a local folder are tracked in."""
    return "sqlite:///" + storage.join(out.rstrip("/").rpartition("/")[0] or "/", "mlflow.db")


# ---------------------------------------------------------------- errors


def guard(work: Callable[[], int], config: Any = None) -> int:
    """Runs a job and returns its exit code; errors of our family become one clear line."""
    _log_to_stderr()
    try:
        return work()
    except KeyboardInterrupt:
        log.error("interrupted; the same command resumes")
        return 130
    except Exception as error:
        ours = known_cause(error)
        if ours is None and type(error).__module__ == "ray.exceptions":
            ours = ClusterError(f"{type(error).__name__}: {str(error).strip()[-1500:]}")
        if ours is None:
            raise
        if isinstance(ours, ConfigError) and ours.owner is not None:
            ours = configs.located(ours, config)
        log.error("%s: %s", type(ours).__name__, ours)
        return ours.exit_code


class _Printable(logging.Formatter):
    """Messages quote data of others, and a terminal obeys control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return rejects.printable(super().format(record))


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    for name in ("pipelines", "samtok"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.handlers[:] = [handler]


def known_cause(error: BaseException | None) -> SamtokError | None:
    """Finds the error of our family behind another one: Ray wraps what its workers raise, several times."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, SamtokError) and type(error).__module__ != "ray.exceptions":
            return error
        seen.add(id(error))
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return None


def last_line(error: BaseException) -> str:
    """Returns the end of a long message, such as Ray's with tracebacks in it, without its full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:500].rstrip(".") if lines else type(error).__name__
