"""Mask words as tokens of an MLLM: which they are, adding them, their ids.

Words are normal added tokens. As special tokens, which a checkpoint may hold them as, every default decode
drops them: ``Adapter.text_of`` reads both kinds.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from samtok import words
from samtok.config import MaskTokenizerConfig
from samtok.errors import CheckpointError
from samtok.mllm import rows

_MASK_WORD = re.compile(r"<\|mt_(?:start|end|[0-9]+)\|>")
_REMEDY = "Make an extended checkpoint with jobs/extend_mllm.py."


@dataclass(frozen=True)
class WordIds:
    """Token ids of the words.

    Attributes:
        start: Id of the word that opens a mask.
        end: Id of the word that closes it.
        codes: Ids by level and code: ``codes[1][45]`` is the id of ``<|mt_0301|>`` with 256 codes.
    """

    start: int
    end: int
    codes: tuple[tuple[int, ...], ...]

    @property
    def all(self) -> tuple[int, ...]:
        """Ids of all words, in the order of ``words.all_words``."""
        return (self.start, *(id_ for level in self.codes for id_ in level), self.end)


@dataclass(frozen=True)
class MaskVocabulary:
    """The words of a mask tokenizer: ``num_levels * num_codes`` codes, start and end.

    Attributes:
        num_codes: Codes of each level.
        num_levels: Codes of each mask.
    """

    num_codes: int
    num_levels: int

    def __post_init__(self) -> None:
        if self.num_codes < 1 or self.num_levels < 1:
            raise ValueError(
                "a vocabulary needs at least one code and one level, got "
                f"num_codes {self.num_codes} and num_levels {self.num_levels}"
            )

    @classmethod
    def of(cls, config: MaskTokenizerConfig) -> "MaskVocabulary":
        """Returns the vocabulary of a mask tokenizer."""
        return cls(config.quantizer.num_codes, config.quantizer.num_levels)

    @property
    def words(self) -> list[str]:
        """All words in the order start, codes of level 0, 1, ..., end."""
        return words.all_words(self.num_codes, self.num_levels)

    def add_to(self, tokenizer: PreTrainedTokenizerBase) -> int:
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
        return tokenizer.add_tokens(
            [AddedToken(word, normalized=False, special=False) for word in self.words]
        )

    def ids(self, tokenizer: PreTrainedTokenizerBase) -> WordIds:
        """Returns the token id of every word.

        Raises:
            CheckpointError: A word is missing or is not one token, or there are words of another vocabulary.
        """
        have = mask_words_of(tokenizer)
        if not have:
            raise CheckpointError(f"The text tokenizer has no mask words; it needs {self}. {_REMEDY}")
        self._require_same(have)
        names = self.words
        if tokenizer("".join(names), add_special_tokens=False)["input_ids"] != [have[w] for w in names]:
            raise _split_word(tokenizer, {word: have[word] for word in names})
        inner = [have[word] for word in names[1:-1]]
        levels = (tuple(inner[i : i + self.num_codes]) for i in range(0, len(inner), self.num_codes))
        return WordIds(have[names[0]], have[names[-1]], tuple(levels))

    def check(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None) -> WordIds:
        """Makes sure that tokenizer and model speak these words; called at load, save and generation.

        Returns:
            The token id of every word.

        Raises:
            CheckpointError: A word is not exactly one token, or a normal token that decoding drops; the
                model has fewer rows than the tokenizer has tokens, or lost the tie that its config states.
        """
        ids = self.ids(tokenizer)
        special = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        normal = [id_ for id_ in ids.all if id_ not in special]
        read = tokenizer.decode(normal, skip_special_tokens=True, spaces_between_special_tokens=False)
        kept = [word for word, id_ in zip(self.words, ids.all, strict=True) if id_ not in special]
        if _MASK_WORD.findall(str(read)) != kept:
            raise CheckpointError(
                "Decoding loses mask words that are normal tokens of the text tokenizer; it must return each "
                f"of the {len(kept)} as it is. {_REMEDY}"
            )
        if model is not None:
            check_rows(model, len(tokenizer))
        return ids

    def _require_same(self, have: dict[str, int]) -> None:
        missing = [word for word in self.words if word not in have]
        known = set(self.words)
        extra = sorted(word for word in have if word not in known)
        if missing or extra:
            raise CheckpointError(
                f"The text tokenizer has {len(have)} mask words and {self} has {len(known)}. Of these "
                f"{len(missing)} are missing (such as {missing[:2]}) and {len(extra)} of its own are foreign "
                f"(such as {extra[:2]}). Use the mask tokenizer that the checkpoint was made for, or "
                "extend the original checkpoint again."
            )

    def __str__(self) -> str:
        return f"a vocabulary of {self.num_levels} levels of {self.num_codes} codes"


def mask_words_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Returns all mask words that a text tokenizer knows, of whatever vocabulary, with their ids."""
    entries = tokenizer.get_vocab().items()
    return {word: id_ for word, id_ in entries if word.startswith("<|mt_") and _MASK_WORD.fullmatch(word)}


def _split_word(tokenizer: PreTrainedTokenizerBase, ids: dict[str, int]) -> CheckpointError:
    """Returns the error for words that, read one after the other, do not give their ids."""
    for word, id_ in ids.items():
        pieces = tokenizer(word, add_special_tokens=False)["input_ids"]
        if pieces != [id_]:
            return CheckpointError(
                f"{word} must be one token, id {id_}, but the text tokenizer splits it into {pieces}. "
                f"{_REMEDY}"
            )
    return CheckpointError(
        f"Mask words are one token each alone, but not where one follows another. The text tokenizer must "
        f"hold them as added tokens. {_REMEDY}"
    )


def infer(tokenizer: PreTrainedTokenizerBase, *, where: str) -> MaskVocabulary:
    """Guesses the vocabulary of a checkpoint that does not state it: 2 levels, as the authors' have.

    Raises:
        CheckpointError: There are no words, or their number is odd or not that of two equal levels.
    """
    codes = len(mask_words_of(tokenizer)) - 2
    if codes < 2 or codes % 2:
        raise CheckpointError(
            f"{where} has {max(codes + 2, 0)} mask words and no samtok.json that says what they are; "
            f"expected start, end and two levels of codes. {_REMEDY}"
        )
    return MaskVocabulary(codes // 2, 2)


def extend(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: MaskVocabulary,
    *,
    seed: int,
    pad_to_multiple_of: int | None = None,
    geometry: Float[Tensor, "level num_codes dim"] | None = None,
) -> None:
    """Adds the words to tokenizer and model, in place.

    New rows are drawn from a normal distribution with mean and variance of the old rows, per dimension, for
    input and output embeddings each (appendix B). Transformers' own ``mean_resizing`` gives rows that are
    nearly equal, so all masks would begin as one. Rows that padding of the vocabulary has left free are used
    before the model grows; a tokenizer that has the words already keeps the rows they have.

    With a geometry, mean and variance are the same but the rows of codes are not independent: near codes get
    near rows, alike in input and output embeddings (``rows.directions``). Start and end stay noise.

    Args:
        model: Any model with input and output embeddings; tied ones stay tied.
        tokenizer: Its text tokenizer.
        vocabulary: The words.
        seed: Of the drawing; equal seeds give equal rows.
        pad_to_multiple_of: If the model grows, round its rows up to a multiple of this.
        geometry: What each code adds to a mask embedding (``Quantizer.code_vectors``).

    Raises:
        CheckpointError: As ``MaskVocabulary.check`` and ``rows.directions``.
        ValueError: The geometry is of another vocabulary.
    """
    if geometry is not None and geometry.shape[:2] != (vocabulary.num_levels, vocabulary.num_codes):
        raise ValueError(f"a geometry of {tuple(geometry.shape[:2])} levels and codes is not of {vocabulary}")
    num_rows = _num_rows(model)
    added = vocabulary.add_to(tokenizer)
    known, stop = min(len(tokenizer) - added, num_rows), len(tokenizer)
    if stop > num_rows:
        stop = -(-stop // (pad_to_multiple_of or 1)) * (pad_to_multiple_of or 1)
        model.resize_token_embeddings(stop, mean_resizing=False)
    ids = torch.tensor(vocabulary.check(tokenizer, model).codes)
    generator = torch.Generator().manual_seed(seed)
    weights = _embedding_weights(model)
    shared = None if geometry is None else rows.directions(geometry, weights[0].shape[1], generator)
    for weight in weights:
        rows.draw(weight, slice(known, stop), generator, ids=ids, shared=shared)


def _embedding_weights(model: PreTrainedModel) -> list[Tensor]:
    """Returns the input and output embeddings, once if they are one tensor."""
    found: Sequence[Any] = (model.get_input_embeddings(), model.get_output_embeddings())
    weights: list[Tensor] = []
    for module in found:
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and not any(weight is known for known in weights):
            weights.append(weight)
    return weights


def _num_rows(model: PreTrainedModel) -> int:
    """Returns the smallest number of rows of the embeddings; ZeRO-3 keeps the whole shape aside."""
    return min(getattr(weight, "ds_shape", weight.shape)[0] for weight in _embedding_weights(model))


def check_rows(model: PreTrainedModel, num_tokens: int) -> None:
    """Makes sure that a model has a row for each token and is tied if its config says so.

    Raises:
        CheckpointError: It is not.
    """
    have, weights = _num_rows(model), _embedding_weights(model)
    if have < num_tokens:
        raise CheckpointError(
            f"The model has {have} embedding rows and its text tokenizer {num_tokens} tokens; it needs at "
            f"least as many rows. The two are of different checkpoints, or the model was not extended. "
            f"{_REMEDY}"
        )
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    if tied != (len(weights) == 1):
        raise CheckpointError(
            f"The config says tie_word_embeddings = {str(tied).lower()}, but input and output embeddings "
            f"are {'one tensor' if len(weights) == 1 else 'two tensors'}; training or saving would lose one."
        )
