"""The replies of a teacher, from a file or from actors, as inputs of a plan.

Which sample a reply is for, and whether it is the first one, is settled here, once and in order; so a shard
knows all it needs. A reply that is of no use goes along with the reason.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.parquet as pq

from pipelines import storage
from pipelines.ingestion.json_lines import Line, parse_line, read_lines
from pipelines.ingestion.reader import Input
from pipelines.ingestion.records import is_utf8
from samtok.errors import DataError


@dataclass(frozen=True)
class TeacherReply:
    """One reply."""

    sample_id: str  # of which sample; of a line that cannot be read, its number
    reply: str = ""  # the text
    index: int | None = None  # place of the sample in its corpus; None if it is not there
    reason: str | None = None  # why there is no reply that can be used, None if there is one
    message: str = ""  # the same in a sentence


def of_file(uri: str) -> Iterator[TeacherReply]:
    """Yields the lines of a file of replies; raises ConfigError if it is something else."""
    for line in read_lines(uri, flag="--teacher.replies"):
        yield _of_line(line)


def _of_line(line: Line) -> TeacherReply:
    where = f"line {line.number}"
    try:
        body = parse_line(line.raw, where)
        texts = [body.get(name) for name in ("sample_id", "reply")] if isinstance(body, dict) else [None]
        if not all(isinstance(text, str) and is_utf8(text) for text in texts):
            raise DataError(
                f'{where} is no object with the texts "sample_id" and "reply": {line.raw[:80]!r}',
                reason="record",
            )
    except DataError as error:
        return TeacherReply(f"line-{line.number:08d}", reason=error.reason, message=str(error))
    return TeacherReply(str(texts[0]), str(texts[1]))


def of_shards(out: str, manifest: Mapping[str, Any]) -> Iterator[TeacherReply]:
    """Yields what a teacher model wrote, in the order of its samples."""
    for record in manifest["shards"]:
        with storage.open_input(storage.join(out, record["data"]["file"])) as file:
            for row in pq.ParquetFile(file).read().to_pylist():
                yield TeacherReply(
                    row["sample_id"], row["reply"] or "", reason=row["reason"], message=row["message"] or ""
                )


def inputs_of(replies: Iterable[TeacherReply], places: Mapping[str, int], *, corpus: str) -> Iterator[Input]:
    """Finds the samples of replies: the first reply to a sample counts, others are duplicates.

    ``places`` has the samples that may be taken, by their ids; messages name the corpus.
    """
    seen: set[str] = set()
    for number, reply in enumerate(replies):
        body = asdict(reply) | {"index": places.get(reply.sample_id)}
        if reply.reason is None and body["index"] is None:
            body |= {"reason": "unknown_sample", "message": f"{corpus} has no such sample that may be taken"}
        elif reply.reason is None and reply.sample_id in seen:
            body |= {"reason": "duplicate", "message": "an earlier reply is for this sample"}
        seen.add(reply.sample_id)
        yield Input(f"{number:08d}", json.dumps(body, sort_keys=True), None)
