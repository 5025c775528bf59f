"""All numbers of a tiny MLLM. Loads no torch, so that a job's flags can be read fast."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    """Sizes of the three parts, and how weights begin.

    The defaults are those of the trials that learnt shapes on two cores: image tokens of few pixels, little
    depth, wide initial weights.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 an unknown key in a config file is named

    image_size: int = 56
    """Side of an image in pixels, of which as many are taken as keep its shape."""
    patch_size: int = 7
    """Pixels per side of a patch; two by two become one token, so 56 px give 16 tokens."""
    dim: int = 64
    """Width of the language model."""
    num_layers: int = 2
    """Layers of the language model."""
    num_heads: int = 2
    """Attention heads of the language model. vLLM's attention on CPUs takes heads of 32 numbers and more."""
    hidden_dim: int = 160
    """Width inside the feed-forward layers of both models."""
    vision_dim: int = 64
    """Width of the vision model."""
    vision_layers: int = 3
    """Layers of the vision model."""
    vision_heads: int = 2
    """Attention heads of the vision model."""
    vision_rope_theta: float = 10_000.0
    """Base of the vision model's rotary positions (Qwen2.5-VL). vLLM takes this one, whatever is said."""
    rope_theta: float = 100_000.0
    """Base of the language model's rotary positions. With one near 1 no pair of numbers turns slowly, and a
    word cannot find an image token by what it is, however far away."""
    init_std: float = 0.1
    """Of all initial weights; about one over the root of the width."""
    tied: bool = True
    """Whether input and output embeddings are one tensor."""
    vocab_size: int = 1024
    """Entries of the text tokenizer before chat tokens and mask words; 256 of them are bytes."""
    system: str = ""
    """Default system turn of the chat template; released Qwen2.5-VL has one, which costs tokens."""
    padded_rows: int = 0
    """Embedding rows beyond the text tokenizer's, as released checkpoints have."""

    def __post_init__(self) -> None:
        for side, unit in (("image_size", 4 * self.patch_size), ("dim", 2 * self.num_heads)):
            if getattr(self, side) % unit or getattr(self, side) < unit:
                raise ValueError(f"{side} must be a multiple of {unit}, got {getattr(self, side)}.")
        if self.vision_dim % (4 * self.vision_heads):
            unit = 4 * self.vision_heads
            raise ValueError(f"vision_dim must be a multiple of {unit}, got {self.vision_dim}.")
        if self.vocab_size < 256 or self.padded_rows < 0:
            raise ValueError(
                "vocab_size must be >= 256, for all bytes, and padded_rows >= 0, got "
                f"{self.vocab_size} and {self.padded_rows}."
            )

    @property
    def head_dim(self) -> int:
        """Width of an attention head of the language model."""
        return self.dim // self.num_heads

    def mrope_section(self, rotated: float = 1.0) -> list[int]:
        """Frequencies for time, rows and columns, which add up to half of what is rotated of a head."""
        half = int(self.head_dim * rotated) // 2
        rows = (half * 3) // 8
        return [half - 2 * rows, rows, rows]
