"""Makes rows of trajectories out of a group and what became of it."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipelines.chats.corpus import text_of
from pipelines.chats.prompts import last_answer
from pipelines.grpo.groups import Group
from pipelines.grpo.reward.components import Scored
from pipelines.grpo.trajectories import components_column


def trajectory_rows(
    group: Group, scored: Sequence[Scored], advantages: np.ndarray, used: np.ndarray, step: int
) -> Iterator[dict[str, Any]]:
    """Yields one row per reply, as ``write_trajectories`` takes them.

    Args:
        group: Prompt and replies.
        scored: What each reply is worth.
        advantages, used: Of each reply.
        step: In which they were learnt from.
    """
    record = group.question.record
    image = record["images"][0]
    last = last_answer(record["messages"])
    assert last is not None  # it was asked
    for number, (reply, text, worth) in enumerate(zip(group.replies, group.texts, scored, strict=True)):
        yield {
            "draw": group.draw,
            "reply": number,
            **{name: record[name] for name in ("sample_id", "dataset", "image_id")},
            "image_uri": image["uri"],
            "height": image["height"],
            "width": image["width"],
            "question": text_of(record["messages"][last - 1]).strip(),
            "truth": group.question.text,
            "truth_codes": [list(codes) for codes in group.question.truth],
            "thinking": group.question.thinking,
            "text": text,
            "token_ids": reply.ids.tolist(),
            "rollout_log_probs": reply.log_probs.tolist(),
            "complete": reply.complete,
            "weight_version": group.version,
            "staleness": step - group.version,
            "reward": worth.total,
            "components": components_column(worth.components),
            "advantage": float(advantages[number]),
            "used": bool(used[number]),
        }
