"""Settings of generation that jobs share."""

from typing import Literal

from pipelines.config import AtLeast1, config

Attention = Literal["sdpa", "eager", "flash_attention_2"]


@config
class GenerationConfig:
    """How texts are generated."""

    max_new_tokens: AtLeast1 = 128
    """Longest text in tokens."""
    batch_size: AtLeast1 = 16
    """Prompts per pass, of similar length; part of the plan, since low bits may depend on it."""
    attention: Attention = "sdpa"
    """Implementation of attention."""
