"""Mask words as tokens of an MLLM: which they are, adding them to a text tokenizer, their ids.

Words are normal added tokens. As special tokens, which a checkpoint may hold them as, every default decode
drops them: ``Adapter.text_of`` reads both kinds. Loads neither torch nor transformers; ``rows`` has the part
that concerns a model.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken

from samtok import words
from samtok.config import MaskTokenizerConfig
from samtok.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MASK_WORD = re.compile(r"<\|mt_(?:start|end|[0-9]+)\|>")
REMEDY = "Make an extended checkpoint with jobs/extend_mllm.py."


@dataclass(frozen=True)
class WordIds:
    """Token ids of the words; ``codes[1][45]`` is the id of ``<|mt_0301|>`` with 256 codes."""

    start: int
    end: int
    codes: tuple[tuple[int, ...], ...]

    @property
    def all(self) -> tuple[int, ...]:
        """Ids of all words, in the order of ``words.all_words``."""
        return (self.start, *(id_ for level in self.codes for id_ in level), self.end)


@dataclass(frozen=True)
class MaskVocabulary:
    """The words of a mask tokenizer: ``num_levels * num_codes`` codes, start and end."""

    num_codes: int
    num_levels: int

    def __post_init__(self) -> None:
        if self.num_codes < 1 or self.num_levels < 1:
            raise ValueError(
                f"num_codes and num_levels must be >= 1, got {self.num_codes} and {self.num_levels}."
            )

    @classmethod
    def of(cls, config: MaskTokenizerConfig) -> "MaskVocabulary":
        """Returns the vocabulary of a mask tokenizer."""
        return cls(config.quantizer.num_codes, config.quantizer.num_levels)

    @property
    def words(self) -> list[str]:
        """All words in the order start, codes of level 0, 1, ..., end."""
        return words.all_words(self.num_codes, self.num_levels)

    def add_to(self, tokenizer: "PreTrainedTokenizerBase") -> int:
        """Adds the words that a text tokenizer lacks, as normal tokens.

        Returns:
            How many were new: all of them, or none.

        Raises:
            CheckpointError: The tokenizer has mask words of another vocabulary.
        """
        have = mask_words_of(tokenizer)
        if have:
            self._require_same(have)
            return 0
        added: list[Any] = [AddedToken(word, normalized=False, special=False) for word in self.words]
        return tokenizer.add_tokens(added)

    def check(self, tokenizer: "PreTrainedTokenizerBase") -> WordIds:
        """Makes sure that a tokenizer has these words; ``rows.check_rows`` does so for a model.

        Returns:
            The token id of every word.

        Raises:
            CheckpointError: A word is missing, is not exactly one token, or is a normal token that decoding
                drops; or there are words of another vocabulary.
        """
        have = mask_words_of(tokenizer)
        if not have:
            raise CheckpointError(f"the text tokenizer has no mask words; it needs {self}. {REMEDY}")
        self._require_same(have)
        names = self.words
        if tokenizer("".join(names), add_special_tokens=False)["input_ids"] != [have[w] for w in names]:
            raise _split_word(tokenizer, {word: have[word] for word in names})
        inner = [have[word] for word in names[1:-1]]
        levels = (tuple(inner[i : i + self.num_codes]) for i in range(0, len(inner), self.num_codes))
        special = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        kept = [word for word in names if have[word] not in special]
        normal = [have[word] for word in kept]
        read = tokenizer.decode(normal, skip_special_tokens=True, spaces_between_special_tokens=False)
        if _MASK_WORD.findall(str(read)) != kept:
            raise CheckpointError(
                "decoding loses mask words that are normal tokens of the text tokenizer; it must return each "
                f"of the {len(kept)} as it is. {REMEDY}"
            )
        return WordIds(have[names[0]], have[names[-1]], tuple(levels))

    def _require_same(self, have: dict[str, int]) -> None:
        missing = [word for word in self.words if word not in have]
        known = set(self.words)
        extra = sorted(word for word in have if word not in known)
        if missing or extra:
            raise CheckpointError(
                f"the text tokenizer has {len(have)} mask words and {self} has {len(known)}. Of these "
                f"{len(missing)} are missing (such as {missing[:2]}) and {len(extra)} of its own are foreign "
                f"(such as {extra[:2]}). Use the mask tokenizer that the checkpoint was made for, or "
                "extend the original checkpoint again."
            )

    def __str__(self) -> str:
        return f"a vocabulary of {self.num_levels} levels of {self.num_codes} codes"


def mask_words_of(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    """Returns all mask words that a text tokenizer knows, of whatever vocabulary, with their ids."""
    entries = tokenizer.get_vocab().items()
    return {word: id_ for word, id_ in entries if word.startswith("<|mt_") and _MASK_WORD.fullmatch(word)}


def _split_word(tokenizer: "PreTrainedTokenizerBase", ids: dict[str, int]) -> CheckpointError:
    for word, id_ in ids.items():
        pieces = tokenizer(word, add_special_tokens=False)["input_ids"]
        if pieces != [id_]:
            return CheckpointError(
                f"{word} must be one token, id {id_}, but the text tokenizer splits it into {pieces}. "
                f"{REMEDY}"
            )
    return CheckpointError(
        f"mask words are one token each alone, but not where one follows another. The text tokenizer must "
        f"hold them as added tokens. {REMEDY}"
    )


def infer(tokens: Iterable[str], *, where: str) -> MaskVocabulary:
    """Guesses the vocabulary by the added tokens of a text tokenizer: 2 levels, as the authors' have.

    Raises:
        CheckpointError: There are no words, or their number is odd or not that of two equal levels.
    """
    codes = sum(_MASK_WORD.fullmatch(token) is not None for token in tokens) - 2
    if codes < 2 or codes % 2:
        raise CheckpointError(
            f"{where} has {max(codes + 2, 0)} mask words and no samtok.json that states what they are; "
            f"expected start, end and two levels of codes. {REMEDY}"
        )
    return MaskVocabulary(codes // 2, 2)
