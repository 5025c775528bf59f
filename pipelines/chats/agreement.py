"""Whether models, chats and tokenizers have the same mask words. Loads no torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.chats.corpus import ChatCorpus
from samtok.errors import ConfigError
from samtok.mllm.folder import MllmFolder

if TYPE_CHECKING:
    from samtok.mllm.family import Adapter


@dataclass(frozen=True)
class Words:
    """The mask words of something that a flag names."""

    where: str
    """The flag with its value."""
    num_codes: int
    num_levels: int
    sha256: str | None
    """Of the weights of their mask tokenizer; None where not known, and then not compared."""

    @classmethod
    def of_model(cls, where: str, model: "MllmFolder | Adapter") -> "Words":
        """Returns the words of an MLLM."""
        vocabulary = model.vocabulary
        return cls(where, vocabulary.num_codes, vocabulary.num_levels, model.tokenizer_sha256)

    @classmethod
    def of_chats(cls, where: str, corpus: ChatCorpus) -> "Words":
        """Returns the words of a chat corpus."""
        return cls(where, corpus.num_codes, corpus.num_levels, corpus.weights_sha256)


def require_same_words(first: Words, *others: Words, remedy: str) -> None:
    """Makes sure that one word means one mask to all of them.

    Raises:
        ConfigError: Names two that differ, and ends with ``remedy``.
    """
    for other in others:
        if (other.num_codes, other.num_levels) != (first.num_codes, first.num_levels):
            raise ConfigError(
                f"{other.where} has words of {other.num_levels} x {other.num_codes} codes, {first.where} of "
                f"{first.num_levels} x {first.num_codes}. {remedy}"
            )
    known = [words for words in (first, *others) if words.sha256 is not None]
    for other in known[1:]:
        if other.sha256 != known[0].sha256:
            raise ConfigError(
                f"{other.where} and {known[0].where} have the words of different mask tokenizers "
                f"({other.sha256:.12} and {known[0].sha256:.12}), so equal words mean different "
                f"masks. {remedy}"
            )
