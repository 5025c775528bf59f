"""Why items gave nothing: the reasons in tables of rejects, each with how often it occurs and an example.

Messages quote data of others, so whatever shows them makes them ``printable``.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import pyarrow.parquet as pq

from pipelines import storage

FILTER = "filter"
"""Stage of what the user's settings leave out, so that nothing is wrong with it."""

MAX_TABLES = 40
"""Tables that are read for examples."""

COMMONEST = 3
"""Reasons that are printed of what was rejected, and of what was filtered."""

ASK_FOR_A_FLAG = ("masks_turned",)
"""Reasons by which nothing is lost, though results are likely wrong: what they name is a warning."""

_EXAMPLE_CHARS = 240


@dataclass(frozen=True)
class Reason:
    """Entries of tables of rejects with one stage and reason; ``example`` is the first message, if known."""

    stage: str
    reason: str
    count: int
    example: str = ""

    @property
    def filtered(self) -> bool:
        """Whether this was left out on purpose."""
        return self.stage == FILTER


def counts_of(records: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Adds up what commit records say of their tables, by ``stage/reason``."""
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(record["reject_reasons"])
    return Counter(dict(sorted(counts.items())))


def of_corpus(out: str, manifest: Mapping[str, Any]) -> list[Reason]:
    """Returns all reasons of a corpus, the most frequent first; those of its listing are among them.

    Reads the tables of as few shards as show every reason once, and that of the listing.
    """
    counts = counts_of(manifest["shards"])
    tables = [record["rejects"]["file"] for record in manifest["shards"] if record["reject_reasons"]]
    listed = manifest["plan_rejects"]
    first = list(_entries(out, listed["file"])) if listed else []
    examples = dict(reversed(first))
    counts.update(name for name, _ in first)
    return _reasons(counts, _with_examples(out, tables, counts, examples))


def of_run(out: str, record: Mapping[str, Any]) -> list[Reason]:
    """Returns all reasons of a training, the most frequent first: those of its listing and its tables, and
    those that are only counted, such as of masks that were filtered."""
    counts = Counter({f"{FILTER}/{name}": count for name, count in record.get("filtered", {}).items()})
    listed = record.get("listed", {})
    left = Counter(record.get("rejects", {})) + Counter(listed.get("rejects", {}))
    tables = [*([listed["table"]] if listed.get("rejects") else []), *record.get("reject_files", ())]
    examples = _with_examples(out, tables, left, {})
    for name in examples:
        counts[name] = left.pop(name.rpartition("/")[2], 0)
    counts.update({f"/{name}": count for name, count in left.items()})
    return _reasons(counts, examples)


def together(parts: Iterable[Sequence[Reason]]) -> list[Reason]:
    """Adds up the reasons of several corpora or runs."""
    counts, examples = Counter[str](), {}
    for one in chain.from_iterable(parts):
        name = f"{one.stage}/{one.reason}"
        counts[name] += one.count
        examples.setdefault(name, one.example)
    return _reasons(counts, examples)


def _reasons(counts: Counter[str], examples: Mapping[str, str]) -> list[Reason]:
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    named = ((name, *name.partition("/"), count) for name, count in ordered)
    return [Reason(stage, reason, n, examples.get(name, "")) for name, stage, _, reason, n in named]


def _with_examples(
    out: str, tables: Sequence[str], wanted: Mapping[str, int], examples: dict[str, str]
) -> dict[str, str]:
    """Returns the first message of each reason, with those that are known; reads no more tables than are
    needed."""
    for table in islice(tables, MAX_TABLES):
        if len(examples) >= len(wanted):
            break
        for name, message in _entries(out, table):
            examples.setdefault(name, message)
    return examples


def _entries(out: str, name: str) -> Iterator[tuple[str, str]]:
    with storage.open_input(storage.join(out, name)) as stream:
        rows = pq.ParquetFile(stream).read(columns=["stage", "reason", "message"]).to_pylist()
    return ((f"{row['stage']}/{row['reason']}", row["message"]) for row in rows)


# ---------------------------------------------------------------- as text


def table_of(reasons: Sequence[Reason]) -> list[tuple[str, str]]:
    """Returns lines for the terminal: the commonest reasons of what was rejected and of what was filtered."""
    lines: list[tuple[str, str]] = []
    for head, filtered in (("rejected", False), ("filtered", True)):
        own = [reason for reason in reasons if reason.filtered == filtered]
        texts = [f"{one.count} {one.reason}: {_example(one)}".rstrip(": ") for one in own[:COMMONEST]]
        if others := own[COMMONEST:]:
            texts.append(f"{sum(one.count for one in others)} for {len(others)} other reasons")
        lines += [("" if number else head, text) for number, text in enumerate(texts)]
    return lines


def warnings(reasons: Sequence[Reason]) -> list[str]:
    """Returns a sentence for each of ``ASK_FOR_A_FLAG`` that is among the reasons."""
    asking = [one for one in reasons if one.reason in ASK_FOR_A_FLAG]
    return [f"{one.count} {one.reason}; for example: {_example(one)}." for one in asking]


def summary(reasons: Sequence[Reason]) -> str:
    """Returns the commonest reasons as the end of a sentence: nothing if there are none."""
    if not reasons:
        return ""
    listed = ", ".join(f"{one.count} {one.reason}" for one in reasons[:COMMONEST])
    example = next((_example(one) for one in reasons if one.example), "")
    return f"the commonest reasons are {listed}" + (f"; for example: {example}" if example else "")


def _example(reason: Reason) -> str:
    text = printable(" ".join(reason.example.split()))
    return text if len(text) <= _EXAMPLE_CHARS else text[: _EXAMPLE_CHARS - 3] + "..."


_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line feed; marks that turn the direction of text; lone surrogates."""


def printable(text: str) -> str:
    """Replaces control characters, which a terminal would obey and a page cannot show."""
    return _CONTROL.sub("?", text)
