"""Inputs of a reward: a question of the corpus with its truth, and a response of the model.

A reward is a pure function ``(Question, Response) -> {component: value}``. It gets the token ids, the raw
text with all mask words in it, and the whole record; it decodes nothing itself. Values of all components are
logged, and their weighted sum is the reward that training uses.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Codes = tuple[int, ...]
"""Codes of one mask, one per level, each in ``[0, num_codes)``."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One prompt.

    Attributes:
        truth: Codes of the true masks in the order of the true answer; empty for a no-target.
        thinking: Whether the prompt asks for a thought before the answer.
        record: The chat row that the prompt was made from (``pipelines.schema.CHAT_ROW``): messages, images,
            masks with their RLE, tags, meta. Read only.
    """

    truth: tuple[Codes, ...]
    text: str
    thinking: bool = False
    num_codes: int = 256
    num_levels: int = 2
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Response:
    """One response of a model.

    Attributes:
        token_ids: What was sampled, the end of the turn included if it came.
        text: The same as text, mask words and all, without tokens of the chat format.
        complete: Whether the turn ended by itself, before the limit of tokens.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    complete: bool = True


Reward = Callable[[Question, Response], Mapping[str, float]]
"""Returns named components. Pure, and picklable as a function of a module."""
