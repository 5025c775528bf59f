"""Asks a teacher model for thoughts about a shard of samples: a plain class that does not know about Ray."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch

from pipelines import schema, shards
from pipelines.chats.prompts import prompt_of
from pipelines.chats.source import ChatSource, Row, load_images
from pipelines.cold_start.config import ColdStartConfig
from pipelines.generation.engine import Engine, asked_of, in_order, open_engine
from pipelines.training.steps import mixed_seed
from samtok.errors import DataError
from samtok.mllm.chat import Encoded, Turn

REPLY_ROW = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("reply", pa.string()),  # null: the sample could not be shown
        pa.field("num_tokens", pa.int32(), nullable=False),
        pa.field("reason", pa.string()),  # why not
        pa.field("message", pa.string()),
    ],
    metadata={"samtok_schema_version": str(schema.SCHEMA_VERSION)},
)
"""What a teacher wrote about one sample. Every sample of the plan has a row."""

EXPLAIN = (
    "The right answer is: {answer}\n"
    "Write down how one gets there by looking at the image, as if you did not know the answer yet: what is "
    "asked for, which objects come into question, what tells them apart, and which of them remain. Where you "
    "speak of an object that the answer has, put its mask words behind its name. Write the thought and "
    "nothing else, inside <COT> and </COT>."
)
"""Follows the question if the teacher sees the answer. Wording is ours; the authors publish none."""

SOLVE = (
    "First write down your thought: what is asked for, which objects come into question, what tells them "
    "apart, and which of them remain, inside <COT> and </COT>. Then write the answer, inside <answer> and "
    "</answer>."
)
"""Follows the question if the teacher is to find the answer."""


def turns_for_teacher(
    row: Row, *, sees_answer: bool, num_codes: int, num_levels: int, thinks: bool = False
) -> list[Turn]:
    """Returns the dialogue that a teacher is shown: that of the sample, its last question with our request,
    or with that of reinforcement learning if the teacher ``thinks``; raises DataError as ``prompt_of``."""
    prompt = prompt_of(row, thinking=thinks, num_codes=num_codes, num_levels=num_levels)
    if thinks:
        return list(prompt.turns)
    request = EXPLAIN.format(answer=prompt.question.text) if sees_answer else SOLVE
    *earlier, last = prompt.turns
    return [*earlier, Turn(last.role, (*last.parts, f"\n{request}"))]


@dataclass
class _Asked:
    row: dict[str, Any]
    prompt: Encoded | None = None


class TeachSamples:
    """Holds a teacher.

    Args:
        source: The chats.
        config: The teacher, and how it is asked.
        model_sha256: What the plan says of the model; None takes any.

    Raises:
        CheckpointError: The teacher cannot be loaded, or is not that of the plan any more.
    """

    def __init__(self, source: ChatSource, config: ColdStartConfig, model_sha256: str | None = None) -> None:
        assert config.teacher.model is not None
        torch.set_num_threads(config.worker.threads)
        self.source, self.config, self.seed = source, config.teacher, config.seed
        self.max_pixels = config.max_image_pixels
        self.engine: Engine = open_engine(
            config.teacher.model,
            config.teacher,
            device=config.worker.device,
            precision=config.precision,
            grammar=True,
            sha256=model_sha256,
        )
        self.adapter = self.engine.adapter

    def __call__(self, plan: shards.Plan, shard: int) -> dict[str, Any]:
        """Does a shard; returns what ``shards.commit`` takes, with rows of ``REPLY_ROW``.

        Raises:
            StorageError: If the storage fails.
        """
        items = [item for chunk in plan.chunks(shard) for item in shards.read_inputs(plan, chunk)]
        asked = [self._prompt_of(self.source.row(int(item.payload))) for item in items]
        self._generate([one for one in asked if one.prompt is not None], shard)
        rows = [one.row for one in asked]
        lost = sum(row["reply"] is None for row in rows)
        numbers = (len(rows), len(rows), 0, len(rows), len(rows) - lost, lost)
        counts = dict(zip(shards.COUNTS["predictions"], numbers, strict=True))
        return {
            "shard": shard,
            "rows": schema.table(rows, REPLY_ROW),
            "rejects": schema.table([], schema.REJECT_ROW),
            "summary": {"counts": counts, "reject_reasons": {}},
        }

    def _prompt_of(self, row: Row) -> _Asked:
        body: dict[str, Any] = {"sample_id": row["sample_id"], "reply": None, "num_tokens": 0}
        corpus = self.source.corpus
        try:
            turns = turns_for_teacher(
                row,
                sees_answer=self.config.sees_answer,
                num_codes=corpus.num_codes,
                num_levels=corpus.num_levels,
                thinks=self.config.thinks,
            )
            images = load_images(row, self.max_pixels)
            encoded = self.adapter.encode_prompt(turns, images)
            return _Asked(body, asked_of(self.engine, encoded, turns, images))
        except DataError as error:
            return _Asked(body | {"reason": error.reason, "message": str(error)})

    def _generate(self, asked: Sequence[_Asked], shard: int) -> None:
        """Asks; which prompts share a batch follows from the plan."""
        replies = in_order(
            self.engine,
            [one.prompt for one in asked if one.prompt is not None],
            batch_size=self.config.batch_size,
            temperature=self.config.temperature,
            seed=mixed_seed(self.seed, shard),
        )
        for one, reply in zip(asked, replies, strict=True):
            one.prompt = None
            if isinstance(reply, DataError):
                one.row |= {"reason": reply.reason, "message": str(reply)}
            else:
                one.row |= {"reply": self.adapter.text_of(reply), "num_tokens": len(reply)}
