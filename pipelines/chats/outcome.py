"""What jobs that write chats end with: the report, what MLflow shows, the table of tasks."""

import json
from collections.abc import Mapping
from typing import Any

from pipelines import shards, storage
from pipelines.chats.commit import ENDS
from pipelines.chats.corpus import load_chat_corpus
from pipelines.reports import chats as report
from pipelines.tracking import Tracker

REPORT = "report/index.html"


def publish(out: str, manifest: Mapping[str, Any], tracker: Tracker, *, samples: int, seed: int) -> None:
    """Writes the report beside the shards; sends it, counts and lineage to MLflow.

    ``samples`` chats are drawn in it by ``seed``; 0 writes no report.
    """
    tracker.metrics({f"counts/{name}": count for name, count in manifest["totals"].items()})
    tracker.text(json.dumps(manifest["fingerprint"], indent=2), "lineage/fingerprint.json")
    if samples and manifest["totals"]["samples_out"]:
        page = report.make_page(load_chat_corpus(out), max_samples=samples, seed=seed)
        storage.write_bytes(storage.join(out, REPORT), page.encode())
        tracker.text(page, REPORT)


def rows_of(out: str, manifest: Mapping[str, Any], *, samples: int) -> list[tuple[str, str]]:
    """Returns the rows of the closing table that say what was written, and where."""
    written = manifest["totals"]["samples_out"]
    rows = [("chats", f"{written} in {storage.join(out, shards.MANIFEST)}")]
    return [*rows, ("report", storage.join(out, REPORT))] if samples and written else rows


def table_of(totals: Mapping[str, int]) -> list[list[str]]:
    """Returns a table of tasks as texts: a head, then a line per task with what became of its items."""
    return [["task", "chats", *ENDS], *report.by_task(totals)]
