"""Datasets whose files are known: lists and describes them, and checks a download before it is used.

    python -m pipelines.tools.datasets list
    python -m pipelines.tools.datasets describe coconut
    python -m pipelines.tools.datasets check coconut --root data/coconut --split s
    python -m pipelines.tools.datasets check reader=masks,source=data/own/masks,images=data/own/images

``check`` says what is missing and where it goes, counts what is there, and draws the first images with their
masks and texts on a page.
"""

import argparse
import dataclasses
import logging
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from pipelines import job as runs
from pipelines import rejects, storage
from pipelines.config import parse_pairs, places_of
from pipelines.ingestion.corpora import CorpusSpec, mixed
from pipelines.ingestion.known_datasets import KNOWN, USES, KnownDataset, parts_of
from pipelines.ingestion.mixtures import below
from pipelines.ingestion.peek import Peek, peek
from pipelines.ingestion.reader import MAX_NAMES, Input, Reader, read_record
from pipelines.reports import gallery, html
from pipelines.reports.pictures import make_gallery
from samtok import masks
from samtok.errors import ConfigError, DataError

log = logging.getLogger("pipelines.tools.datasets")  # also when it runs as __main__

Row = Mapping[str, Any]

_TEXTS = 12  # that are shown of an image


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.tools.datasets",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="a table of all known datasets")
    listing.add_argument("--use", choices=USES, help="only those that the paper uses so")
    listing.add_argument("--markdown", action="store_true", help="the table of docs/datasets.md")
    describing = commands.add_parser("describe", help="a dataset's files, terms and commands")
    describing.add_argument("name", metavar="NAME", choices=sorted(KNOWN))
    checking = commands.add_parser("check", help="looks at a download; draws its first images")
    add = checking.add_argument
    add("name", metavar="NAME", help="a known dataset, or any as --corpora has it (reader=...,source=...)")
    add("--root", metavar="URI", help="of a known dataset: the folder of its files, local or s3://")
    add("--split", help="of a known dataset; by default its first one")
    add("--rows", type=int, default=12, help="images to draw (default 12; 0 draws none)")
    add("--all", action="store_true", help=f"list all images, not only the first {MAX_NAMES}")
    add("--output", metavar="FILE", default="runs/datasets/index.html", help="where the page goes")
    flags = parser.parse_args(argv)
    return runs.guard(lambda: _run(flags))


def _run(flags: argparse.Namespace) -> int:
    if flags.command == "list":
        _say("\n".join(markdown(flags.use) if flags.markdown else table(flags.use)))
        return 0
    if flags.command == "describe":
        _say("\n".join(description(KNOWN[flags.name])))
        return 0
    return check(flags)


def _say(text: str) -> None:
    sys.stdout.write(rejects.printable(text) + "\n")
    sys.stdout.flush()


def table(use: str | None = None) -> Iterator[str]:
    """Yields the lines of the table of known datasets."""
    rows = [
        (one.name, _reader_of(one), ",".join(one.splits), ",".join(one.use) or "-", one.title)
        for one in KNOWN.values()
        if use is None or use in one.use
    ]
    heads = ("name", "reader", "splits", "in the paper", "")
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def markdown(use: str | None = None) -> Iterator[str]:
    """Yields the lines of the table for docs/datasets.md."""
    yield "| name | dataset | reader | splits | in the paper | a row has masks and | published at |"
    yield "|---|---|---|---|---|---|---|"
    for one in KNOWN.values():
        if use is None or use in one.use:
            splits, uses = ", ".join(one.splits), ", ".join(one.use)
            cells = (f"`{one.name}`", one.title, f"`{_reader_of(one)}`", splits, uses, one.gives, one.get)
            yield f"| {' | '.join(cells)} |"


def description(known: KnownDataset) -> Iterator[str]:
    """Yields what is known of a dataset, and a command for each split."""
    yield f"{known.name}: {known.title}"
    yield f"rows      masks; {known.gives}"
    yield f"paper     {', '.join(known.use) or 'not used'}"
    yield f"get       {known.get}"
    yield f"licence   {known.licence}"
    if known.note:
        yield textwrap.fill(known.note, 100, initial_indent="note      ", subsequent_indent=" " * 10)
    yield "files     below --root:"
    for split in known.splits:
        for place in _places(known.name, split):
            yield f"          {place}"
    yield "commands"
    for split in known.splits:
        yield f"          {command_of(known.name, 'ROOT', split)}"


def command_of(name: str, root: str, split: str) -> str:
    """Returns the command that tokenizes a split."""
    spec = _spec(name, root, split)
    given = {field.name: getattr(spec.corpus, field.name) for field in dataclasses.fields(spec.corpus)}
    defaults = {field.name: field.default for field in dataclasses.fields(spec.corpus)}
    flags = [
        f"--corpus.{key.replace('_', '-')} {_quoted(value)}"
        for key, value in given.items()
        if value != defaults[key]
    ]
    return " ".join(["python", "jobs/tokenize_corpus.py", *flags, "--tokenizer TOKENIZER --out OUT"])


def _quoted(value: Any) -> str:
    words = value if isinstance(value, tuple) else (value,)
    return " ".join(f"'{word}'" if set(str(word)) & set(" ()") else str(word) for word in words)


def _spec(name: str, root: str, split: str | None) -> CorpusSpec:
    """Returns a split of a known dataset; its places begin with ``root`` as it is given."""
    parts = parts_of(name, root, split)
    del parts["root"]
    spec = CorpusSpec.of_parts(parts, name, "corpora")
    return spec.below(root)


def _places(name: str, split: str) -> list[str]:
    return list(dict.fromkeys(place for _, place in _placed(_spec(name, "", split))))


def _placed(spec: CorpusSpec) -> Iterator[tuple[str, str]]:
    """Yields the flag and the place of all that has to be there; of images in several folders each."""
    for flag, value in places_of(spec.corpus).items():
        for place in value if isinstance(value, tuple) else (value,):
            inside = spec.corpus.image_folders if flag == "images" else ()
            yield from ((flag, below(place, folder)) for folder in inside or (".",))


def _reader_of(known: KnownDataset) -> str:
    return parse_pairs(next(iter(known.splits.values())), flag="known")["reader"]


def check(flags: argparse.Namespace) -> int:
    """Checks the files of a dataset, counts and draws; returns an exit code."""
    if flags.rows < 0:
        raise ConfigError(f"--rows must be >= 0, got {flags.rows}.")
    if "=" in flags.name:
        if flags.root or flags.split:
            raise ConfigError("--root and --split are of known datasets; put them into the text.")
        spec, get = CorpusSpec.parse(flags.name, flag="corpora"), ""
    elif flags.root is None:
        raise ConfigError(f"--root must be given: the folder of the files of {flags.name}.")
    else:
        spec = _spec(flags.name, flags.root, flags.split)
        get = f" Published at {KNOWN[flags.name].get}."
    spec = spec.absolute()
    if spec.corpus.reader == "mixture":
        _check_places(spec, get="")
        for one in mixed(spec.corpus, flag="corpora"):
            _check_places(one, get="")
    else:
        _check_places(spec, get)
    reader = spec.reader()
    found = _counted(reader) if flags.all else peek(reader)
    _say(f"images    {found}")
    rows, reasons = _first_rows(reader, flags.rows)
    for reason, count in reasons.most_common():
        _say(f"rejected  {count} {reason}")
    if flags.rows and not rows:
        raise DataError(f"none of the first images of {spec.name} can be used.", reason="no_rows")
    if rows:
        page = _page(spec, rows, reasons, str(found))
        storage.write_bytes(flags.output, page.encode())
        _say(f"page      {flags.output}")
    return 0


def _check_places(spec: CorpusSpec, get: str) -> None:
    """Says of each place of a dataset whether it is there; raises ConfigError if one is not."""
    missing = [place for _, place in _placed(spec) if not _is_there(place)]
    for flag, place in _placed(spec):
        _say(f"{'missing' if place in missing else 'found':9} {flag:9} {place}")
    if missing:
        places = " and ".join(missing)
        raise ConfigError(f"{spec.name}/{spec.corpus.split} lacks {places}; it goes there.{get}")


def _is_there(place: str) -> bool:
    return storage.exists(place) or bool(storage.list_files(place, limit=1))


def _counted(reader: Reader) -> str:
    images, known, lost = 0, 0, 0
    for item in reader.inputs():
        if isinstance(item, Input):
            images, known = images + 1, known + (item.num_masks or 0)
        else:
            lost += 1
    return f"{images} images, {known} masks as far as the listing tells, {lost} rejects when listing"


def _first_rows(reader: Reader, count: int) -> tuple[list[Row], Counter[str]]:
    rows, reasons = [], Counter[str]()
    for item in islice(reader.head().items, MAX_NAMES):
        if len(rows) == count:
            break
        if not isinstance(item, Input):
            reasons[item["reason"]] += 1
            continue
        result = read_record(reader, item)
        reasons.update(entry["reason"] for entry in result.rejects)
        if result.row is not None:
            rows.append(result.row)
    return rows, reasons


def _page(spec: CorpusSpec, rows: Sequence[Row], reasons: Counter[str], counted: str | Peek) -> str:
    drawn = make_gallery(map(_shown, rows), None, threshold=0.0, rng=np.random.default_rng(0))
    texts = [html.section(f"Texts of {row['image_id']}", _texts(row)) for row in rows if row["annotations"]]
    lost = html.grid(["reason", "rejects"], [[name, str(count)] for name, count in reasons.most_common()])
    return html.page(
        f"{spec.name} {spec.corpus.split}",
        spec.corpus.source,
        html.section("Images", gallery.images(drawn), note=f"The first ones. {counted}."),
        *texts,
        *([html.section("Rejects", html.card(lost))] if reasons else []),
    )


def _shown(row: Row) -> Row:
    """Returns a row as one of words, for a page: without masks that have no pixels; flags stand in labels."""
    size = {"height": row["height"], "width": row["width"]}
    found = [
        {
            **mask,
            "label": " ".join(filter(None, [mask["label"], *(f"({flag})" for flag in mask["flags"])])),
            "words": "",
            "iou": None,
            "area_px": masks.area(mask["rle"], **size),
        }
        for mask in row["masks"]
        if mask["rle"] is not None
    ]
    return {**row, "masks": found}


def _texts(row: Row) -> html.Block:
    lines = [
        [entry["task"], html.shortened(entry["text"] or "", 200), ", ".join(entry["mask_ids"]) or "no target"]
        for entry in row["annotations"][:_TEXTS]
    ]
    more = len(row["annotations"]) - len(lines)
    note = f"{more} more." if more > 0 else ""
    return html.card(html.grid(["task", "text", "masks"], lines), note=note)


if __name__ == "__main__":
    sys.exit(main())
