"""Builds the quantizer of a config.

``residual`` holds residual and plain vector quantization (paper, Eq. 2), ``fsq`` finite scalar quantization
(paper, section D), ``base`` what they share.
"""

from samtok.config import QuantizerConfig
from samtok.model.base import Quantizer
from samtok.model.fsq import FiniteScalarQuantizer
from samtok.model.residual import ResidualQuantizer
from samtok.ranks import gather_rows, sum_over_ranks  # noqa: F401 (callers move to ranks)


def build_quantizer(config: QuantizerConfig, dim: int) -> Quantizer:
    """Builds the quantizer of a config, an ``nn.Module``, for embeddings of width ``dim``."""
    if config.kind == "fsq":
        return FiniteScalarQuantizer(dim, grid=config.grid, num_levels=config.num_levels)
    return ResidualQuantizer(  # vq is one level of it
        dim, num_codes=config.num_codes, num_levels=config.num_levels, shared=config.shared
    )
