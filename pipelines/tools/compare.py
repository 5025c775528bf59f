"""Lays finished evaluations beside each other: tables with intervals, published numbers, a page of pictures.

    python -m pipelines.tools.compare runs/gres-sft runs/gres-rl --baseline gres-sft
    python -m pipelines.tools.compare sft=s3://runs/gres-1 rl=s3://runs/gres-2 --slices --out runs/board

Runs (the --out of jobs/evaluate_mllm.py) stand in one table if they answered the same questions of one
benchmark. Intervals are over images, those of differences over the same images for both runs. With --out a
page is written too, with best and worst answers side by side.
"""

import argparse
import sys
from collections.abc import Sequence

from pipelines import env, rejects, storage
from pipelines import job as runs
from pipelines.tools.board import tables
from pipelines.tools.board.numbers import Measured, Options, measure
from pipelines.tools.board.runs import Group, groups_of, read_runs, require_baseline
from pipelines.tools.board.tables import Table
from samtok.errors import ConfigError
from samtok.metrics.intervals import RESAMPLES
from samtok.metrics.referring import MODES

PAGE = "index.html"


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.tools.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("runs", metavar="RUN", nargs="+", help="a finished evaluation: FOLDER or NAME=FOLDER, local or s3://")
    add("--out", metavar="DIR", help="writes index.html there, with plots and pictures")
    add("--mode", choices=MODES, default="strict", help="how answers were scored (default strict)")
    add("--baseline", metavar="RUN", help="name or folder of the run to subtract; by default the first")
    add("--resamples", type=int, default=RESAMPLES, help=f"of the images, per interval (default {RESAMPLES})")
    add("--seed", type=int, default=0, help="decides resamples and which answers are drawn")
    add("--slices", action="store_true", help="also the numbers of each tag")
    add("--pictures", type=int, default=4, help="questions of each kind on the page (default 4; 0: none)")
    add(
        "--mlflow",
        metavar="URI",
        nargs="?",
        const="",
        help="tracks the page, and each evaluation as a run below it; without URI in MLFLOW_TRACKING_URI or "
        "beside --out",
    )
    flags = parser.parse_args(argv)
    return runs.guard(lambda: compare(flags))


def compare(flags: argparse.Namespace) -> int:
    """Prints the tables; writes the page and tracks the board where that is asked for."""
    _check(flags)
    tracking = None if flags.mlflow is None else _tracking_of(flags.mlflow, flags.out)
    found = read_runs(flags.runs)
    groups = groups_of(found)
    require_baseline(found, flags.baseline)
    names = ("mode", "baseline", "resamples", "seed", "slices")
    options = Options(**{name: getattr(flags, name) for name in names})
    measured = []
    for group in groups:
        measured.append(measure(group, options))
        _say(lines_of(measured[-1], groups))
    if flags.out is None:
        return 0
    from pipelines.tools.board import page, tracked  # these load torch

    text = page.render(measured, num_pictures=flags.pictures)
    where = storage.join(flags.out, PAGE)
    storage.write_bytes(where, text.encode())
    _say([f"page      {where}"])
    if tracking is not None:
        _say([f"mlflow    {tracked.track(tracking, flags.out, measured, text)}"])
    return 0


def lines_of(measured: Measured, groups: Sequence[Group]) -> list[str]:
    """Returns what is printed of a group of runs."""
    columns = tables.headlines(measured)
    shown = (
        tables.numbers(measured, columns),
        tables.differences(measured, columns),
        tables.published(measured, columns),
        tables.slices(measured, columns),
        tables.counts(measured.group),
        tables.settings(measured.group),
    )
    lines = [tables.title_of(measured.group), tables.lead_of(measured), ""]
    for table in shown:
        lines += _lines(table) if table is not None else []
    notes = list(tables.notes_of(measured, groups))
    return [*lines, *notes, *([""] if notes else [])]


def _lines(table: Table) -> list[str]:
    columns = list(zip(table.head, *([str(cell) for cell in row] for row in table.rows), strict=True))
    widths = [max(map(len, column)) for column in columns]
    padded = [
        column if place in table.numbers else [cell.ljust(width) for cell in column]
        for place, (column, width) in enumerate(zip(columns, widths, strict=True))
    ]
    lines = runs.aligned(list(zip(*padded, strict=True)))
    return [table.title, *(line.rstrip() for line in lines), *([table.note] if table.note else []), ""]


def _check(flags: argparse.Namespace) -> None:
    if flags.resamples < 1 or flags.seed < 0 or flags.pictures < 0:
        raise ConfigError(
            "--resamples must be >= 1, --seed and --pictures >= 0, got "
            f"{flags.resamples}, {flags.seed} and {flags.pictures}."
        )


def _tracking_of(wanted: str, out: str | None) -> str:
    """Returns the URI of the tracking server."""
    if out is None:
        raise ConfigError("--mlflow needs --out, where the page and the ids of its runs are kept.")
    uri = wanted or env.get(env.MLFLOW_TRACKING_URI)
    if uri is None and storage.is_remote(out):
        raise ConfigError(
            f"--out {out} is on object storage, where no database can be. Give --mlflow a server's URI, or "
            f"set {env.MLFLOW_TRACKING_URI}."
        )
    return uri or runs.database_beside(storage.absolute(out))


def _say(lines: Sequence[str]) -> None:
    sys.stdout.write(rejects.printable("".join(f"{line}\n" for line in lines)))
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
