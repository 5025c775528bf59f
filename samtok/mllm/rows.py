"""Embedding rows of mask words: added as noise (paper, appendix B) or with the tokenizer's geometry, checked.

Appendix B draws new rows with mean and variance of the old ones, so at first all words are equally far from
one another. Here codes that are near one another in the mask tokenizer can get rows that are near: mean and
variance stay those of appendix B, only the directions are shared. In trials, a tiny MLLM with independent
rows never got beyond how often each code occurs; with shared directions it did within a few hundred steps.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from samtok.errors import CheckpointError
from samtok.mllm.vocab import REMEDY, MaskVocabulary

SHARE = 0.8
"""Part of the variance of a code's rows that its vector decides; noise has the rest and keeps apart codes
whose vectors are nearly one."""


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
    near rows, alike in input and output embeddings (``directions``). Start and end stay noise.

    Args:
        seed: Of the drawing; equal seeds give equal rows.
        pad_to_multiple_of: If the model grows, round its rows up to a multiple of this.
        geometry: What each code adds to a mask embedding (``Quantizer.code_vectors``).

    Raises:
        CheckpointError: As ``MaskVocabulary.check``, ``check_rows`` and ``directions``.
        ValueError: The geometry is of another vocabulary.
    """
    if geometry is not None and geometry.shape[:2] != (vocabulary.num_levels, vocabulary.num_codes):
        raise ValueError(
            f"a geometry of {tuple(geometry.shape[:2])} levels and codes is not of {vocabulary}."
        )
    num_rows = _num_rows(model)
    added = vocabulary.add_to(tokenizer)
    known, stop = min(len(tokenizer) - added, num_rows), len(tokenizer)
    if stop > num_rows:
        stop = -(-stop // (pad_to_multiple_of or 1)) * (pad_to_multiple_of or 1)
        model.resize_token_embeddings(stop, mean_resizing=False)
    ids = torch.tensor(vocabulary.check(tokenizer).codes)
    check_rows(model, len(tokenizer))
    generator = torch.Generator().manual_seed(seed)
    weights = _embedding_weights(model)
    shared = None if geometry is None else directions(geometry, weights[0].shape[1], generator)
    for weight in weights:
        draw(weight, slice(known, stop), generator, ids=ids, shared=shared)


def check_rows(model: PreTrainedModel, num_tokens: int) -> None:
    """Makes sure that a model has a row for each token and is tied if its config states it.

    Raises:
        CheckpointError: It is not.
    """
    have, weights = _num_rows(model), _embedding_weights(model)
    if have < num_tokens:
        raise CheckpointError(
            f"the model has {have} embedding rows and its text tokenizer {num_tokens} tokens; it needs at "
            f"least as many rows. The two are of different checkpoints, or the model was not extended. "
            f"{REMEDY}"
        )
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    if tied != (len(weights) == 1):
        raise CheckpointError(
            f"the config has tie_word_embeddings = {str(tied).lower()}, but input and output embeddings "
            f"are {'one tensor' if len(weights) == 1 else 'two tensors'}; training or saving would lose one."
        )


def directions(
    vectors: Float[Tensor, "level num_codes dim"], width: int, generator: torch.Generator
) -> Float[Tensor, "level num_codes width"]:
    """Carries what each code adds to a mask embedding over to the width of a model.

    The vectors of a level are centred and mapped by a random orthonormal matrix of the level's own, which
    keeps all distances; if the model is narrower, it is an orthonormal projection and keeps them roughly.
    What comes out has per level mean 0 over codes and variance 1, the mean of all dimensions.

    Raises:
        CheckpointError: Vectors are not finite, or those of a level are all the same.
    """
    return torch.stack([_mapped(level, width, generator) for level in vectors.detach().float().cpu()])


@torch.no_grad()
def draw(
    weight: Float[Tensor, "row width"],
    new: slice,
    generator: torch.Generator,
    *,
    ids: Int[Tensor, "level num_codes"] | None = None,
    shared: Float[Tensor, "level num_codes width"] | None = None,
) -> None:
    """Fills rows in place, with mean and variance of the rows before them; no rows to fill stay none.

    Args:
        weight: Input or output embeddings.
        new: The rows to fill; all rows before them are old.
        ids: Rows of the codes. Those that are not among the new ones are left alone.
        shared: Their ``directions``, which have ``SHARE`` of the variance. Other rows are noise alone.
    """
    old = weight[: new.start].float().cpu()
    rows = torch.randn(new.stop - new.start, weight.shape[1], generator=generator)
    if ids is not None and shared is not None:
        places = ids.flatten() - new.start
        fresh = (places >= 0) & (places < len(rows))
        places = places[fresh]
        rows[places] = SHARE**0.5 * shared.flatten(0, 1)[fresh] + (1 - SHARE) ** 0.5 * rows[places]
    weight[new] = (old.mean(0) + old.std(0) * rows).to(weight)


def _embedding_weights(model: PreTrainedModel) -> list[Tensor]:
    modules: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    found = [getattr(module, "weight", None) for module in modules]
    return list({id(weight): weight for weight in found if isinstance(weight, Tensor)}.values())


def _num_rows(model: PreTrainedModel) -> int:
    """Returns the smallest number of rows of the embeddings; ZeRO-3 keeps the whole shape aside."""
    return min(getattr(weight, "ds_shape", weight.shape)[0] for weight in _embedding_weights(model))


def _mapped(vectors: Tensor, width: int, generator: torch.Generator) -> Tensor:
    dim = vectors.shape[1]
    columns = torch.linalg.qr(torch.randn(max(dim, width), min(dim, width), generator=generator)).Q
    mapped = (vectors - vectors.mean(0)) @ (columns.T if width >= dim else columns)
    spread = mapped.var(dim=0, correction=0).mean().sqrt()
    if not spread > 1e-6 * vectors.abs().max():  # also when they are not numbers
        raise CheckpointError(
            f"the {len(vectors)} codes of a level have no geometry: their vectors spread by {spread:g} "
            "around their mean. Train the mask tokenizer further, or draw the rows as noise (--rows noise)."
        )
    return mapped / spread
