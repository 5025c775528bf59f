"""First values of the embedding rows of mask words: noise (paper, appendix B), or the tokenizer's geometry.

Appendix B draws new rows with mean and variance of the old ones, so at first all words are equally far from
one another. Here codes that are near one another in the mask tokenizer can get rows that are near: mean and
variance stay those of appendix B, only the directions are shared. In trials, a tiny MLLM with independent
rows never got beyond how often each code occurs; with shared directions it did within a few hundred steps.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from samtok.errors import CheckpointError

SHARE = 0.8
"""Part of the variance of a code's rows that its vector decides; noise has the rest and keeps apart codes
whose vectors are nearly one."""


def directions(
    vectors: Float[Tensor, "level num_codes dim"], width: int, generator: torch.Generator
) -> Float[Tensor, "level num_codes width"]:
    """Carries the geometry of codes over to the width of a model.

    The vectors of a level are centred and mapped by a random orthonormal matrix of the level's own, which
    keeps all distances; if the model is narrower, it is an orthonormal projection and keeps them roughly.

    Args:
        vectors: What each code adds to a mask embedding (``Quantizer.code_vectors``).
        width: Of the model's rows.
        generator: Draws the maps.

    Returns:
        Per level, mean 0 over codes and variance 1, the mean of all dimensions.

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
        generator: Draws the noise.
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


def _mapped(vectors: Tensor, width: int, generator: torch.Generator) -> Tensor:
    dim = vectors.shape[1]
    columns = torch.linalg.qr(torch.randn(max(dim, width), min(dim, width), generator=generator)).Q
    mapped = (vectors - vectors.mean(0)) @ (columns.T if width >= dim else columns)
    spread = mapped.var(dim=0, correction=0).mean().sqrt()
    if not spread > 1e-6 * vectors.abs().max():  # also when they are not numbers
        raise CheckpointError(
            f"The {len(vectors)} codes of a level have no geometry: their vectors spread by {spread:g} "
            "around their mean. Train the mask tokenizer further, or draw the rows as noise (--rows noise)."
        )
    return mapped / spread
