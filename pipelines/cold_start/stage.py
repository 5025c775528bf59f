"""Writes one shard of samples with thoughts. Knows no Ray."""

import json
from typing import Any

from pipelines import schema, shards
from pipelines.chats.commit import Composed, commit
from pipelines.chats.source import ChatSource
from pipelines.cold_start.replies import TeacherReply
from pipelines.cold_start.thoughts import Rules, with_thought
from pipelines.shards import Plan
from samtok.errors import DataError

STAGE = "think"
"""Stage of all rejects made here."""


class WriteThoughts:
    """Makes samples of the replies of a shard and commits them.

    Args:
        plan: What the shards are; its inputs are replies (``replies.inputs_of``).
        source: The chats that the replies are for.
        rules: What is asked of a reply.
    """

    def __init__(self, plan: Plan, source: ChatSource, rules: Rules) -> None:
        self.plan, self.source, self.rules = plan, source, rules

    def __call__(self, shard: int) -> dict[str, Any]:
        """Returns the commit record that holds."""
        done = Composed()
        for chunk in self.plan.chunks(shard):
            for item in shards.read_inputs(self.plan, chunk):
                done.counts["inputs_in"] += 1
                self._take(TeacherReply(**json.loads(item.payload)), done)
        return commit(self.plan, shard, done)

    def _take(self, reply: TeacherReply, done: Composed) -> None:
        row = None if reply.index is None else self.source.row(reply.index)
        try:
            if reply.reason is not None:
                raise DataError(reply.message, reason=reply.reason)
            assert row is not None  # a reply to no sample has a reason
            done.samples.append(with_thought(row, reply.reply, self.rules))
            rows, ends = ("rows_in", "rows_out"), ("items_in", "items_out", "samples_out")
        except DataError as error:
            dataset = row["dataset"] if row else ""
            done.rejects.append(schema.reject(STAGE, dataset, reply.sample_id, error.reason, str(error)))
            rows, ends = ("rows_in", "rows_rejected"), ("items_in", "items_rejected")
        done.counts.update([*rows, *ends])
        if row is not None:
            done.counts.update(f"{row['task']}/{end}" for end in ends)
