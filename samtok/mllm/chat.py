"""Dialogues about images, before and after a processor has turned them into token ids.

A dialogue is a list of turns whose parts are text and images, in order. What a user writes is never searched
for a placeholder of an image: an image is a part of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Int
from torch import Tensor

IGNORE = -100
"""Label of tokens that are not learnt (transformers' own value)."""

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """One message: texts, and images as their number in the dialogue's list of images.

    ``learnt`` is about the assistant's: one that is not learnt only stands before later ones.
    """

    role: Role
    parts: tuple[str | int, ...]
    learnt: bool = True

    @property
    def text(self) -> str:
        """The text without its images."""
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True)
class Encoded:
    """A dialogue as a model reads it; CPU tensors, no batch axis.

    Attributes:
        input_ids: Token ids, image tokens expanded.
        labels: The same where a token is learnt, ``IGNORE`` elsewhere. Not shifted.
        mm_token_type_ids: 0 for text, 1 for image tokens. Without them Qwen-VL models take one-dimensional
            positions without a warning.
        vision: What else the model takes (``pixel_values``, ``image_grid_thw``): rows of all images one after
            the other, so dialogues are joined along the first axis. Pixels are uint8, each once;
            ``Adapter.vision_inputs`` makes what a model takes of them.
    """

    input_ids: Int[Tensor, " token"]
    labels: Int[Tensor, " token"]
    mm_token_type_ids: Int[Tensor, " token"]
    vision: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.input_ids)

    @property
    def num_learnt(self) -> int:
        """Tokens that are learnt. The first token of a dialogue has nothing before it and never counts."""
        return int((self.labels[1:] != IGNORE).sum())
