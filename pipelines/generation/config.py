"""Settings of generation that jobs share."""

from typing import Annotated, Literal

from annotated_types import Interval

from pipelines import env
from pipelines.config import AtLeast1, Place, config
from samtok.errors import ConfigError

Attention = Literal["sdpa", "eager", "flash_attention_2"]


@config
class EngineConfig:
    """What generates texts."""

    engine: Literal["hf", "vllm", "http"] = "hf"
    """hf is transformers and runs everywhere; vllm runs in its own environment (make setup-vllm); http asks a
    running server of OpenAI's chat interface (--.url)."""
    python: Place | None = None
    """vllm: the Python of its environment, the same path on every node; by default vLLM beside this package,
    else .venv-vllm of this checkout."""
    url: str | None = None
    """http: where the server of the same model is, such as http://127.0.0.1:8000. The key is taken from
    OPENAI_API_KEY."""
    memory_share: Annotated[float, Interval(gt=0, le=1)] = 0.6
    """vllm: share of a GPU's memory that it takes; EasyR1's value, which leaves a learner room beside it."""
    max_images: AtLeast1 = 2
    """vllm: most images of a prompt, for which it keeps memory; prompts with more are rejected."""
    max_new_tokens: AtLeast1 = 128
    """Longest text in tokens."""
    attention: Attention = "sdpa"
    """hf: implementation of attention."""

    def check(self) -> None:
        """Refuses flags of another engine."""
        if (self.engine == "http") != (self.url is not None):
            raise ConfigError("--.engine http and --.url go together; give both or neither.")
        if self.url is not None:
            require_url(self.url, "--.url")
        if self.python is not None and self.engine != "vllm":
            raise ConfigError("--.python is for --.engine vllm; leave it out.")


WHERE = ("python", "url", "memory_share")
"""Fields that say where an engine is and what it may take; they do not change what is generated."""


@config
class GenerationConfig(EngineConfig):
    """How texts are generated."""

    batch_size: AtLeast1 = 16
    """Prompts per pass of transformers, of similar length, or requests to a server at once; part of the plan,
    since low bits may depend on it."""
    batch_tokens: AtLeast1 | None = None
    """hf: tokens of the prompts of a pass at most, padding included, in place of --.batch-size."""


def require_url(url: str, flag: str, *, owner: object = None) -> None:
    """Refuses an address that is none, or has a secret in it, since configs are written beside results.

    Raises:
        ConfigError: With ``flag`` and ``owner`` as it has them.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{flag} must begin with http:// or https://, got {url}.", owner=owner)
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise ConfigError(
            f"{flag} must not hold a user or password; set {env.OPENAI_API_KEY} instead.", owner=owner
        )
