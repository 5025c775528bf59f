"""Thoughts about referring questions by a template, as a file of replies for jobs/cold_start.py.

python -m pipelines.embedded.replies --chats runs/tour-thinking/chats-train --out replies.jsonl
"""

import json
import logging
from itertools import islice

from pipelines import cli, storage
from pipelines import job as runs
from pipelines.chats.corpus import load_chat_corpus, rows_of
from pipelines.config import AtLeast1, Place, config
from samtok.errors import DataError

log = logging.getLogger("pipelines.embedded.replies")  # __name__ is __main__ here

_NONE_EVERY = 20
"""One reply in so many has no thought, as happens to real teachers."""


def write_replies(chats: str, file: str, *, limit: int | None = None) -> int:
    """Writes a reply to each sample that is one referring question, and logs how many are not; returns how
    many replies there are.

    Args:
        chats: The corpus.
        file: JSONL, local or s3://.
        limit: Only the first so many samples.

    Raises:
        DataError: If the corpus is none of chats, or has no sample of this kind.
    """
    lines: list[str] = []
    others = 0
    for number, row in enumerate(islice(rows_of(load_chat_corpus(chats)), limit), start=1):
        asked, *more = json.loads(row["meta"] or "{}").get("expressions") or [None]
        if row["task"] not in ("gres", "res") or asked is None or more:
            others += 1
            continue
        words = ", ".join(mask["words"] for mask in row["masks"])
        found = f"It fits {words}." if words else "No shape fits it."
        reply = f"<COT> I look for {asked}. {found} </COT>" if number % _NONE_EVERY else "I cannot tell."
        lines.append(json.dumps({"sample_id": row["sample_id"], "reply": reply}) + "\n")
    if others:
        log.warning("%d chats of %s are not one referring question, and have no reply", others, chats)
    if not lines:
        raise DataError(f"{chats} has no chat of one referring question.", reason="expression")
    storage.write_bytes(file, "".join(lines).encode())
    return len(lines)


@config
class RepliesConfig:
    """Thoughts by a template, as a teacher's replies."""

    chats: Place
    """Corpus of chats of jobs/compose_dialogues.py --tasks gres, with one question each."""
    out: Place
    """File of replies (JSONL), local or s3://."""
    limit: AtLeast1 | None = None
    """Only the first so many chats."""


def main() -> int:
    settings = cli.parse(RepliesConfig, {}, None, doc=__doc__)

    def write() -> int:
        count = write_replies(settings.chats, settings.out, limit=settings.limit)
        log.info("%d replies in %s", count, settings.out)
        return 0

    return runs.guard(write)


if __name__ == "__main__":
    raise SystemExit(main())
