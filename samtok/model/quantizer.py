"""The quantizers by their config: residual and plain vector quantization, finite scalar quantization."""

from samtok.config import QuantizerConfig
from samtok.model.base import Quantizer
from samtok.model.fsq import FiniteScalarQuantizer
from samtok.model.residual import ResidualQuantizer


def build_quantizer(config: QuantizerConfig, dim: int) -> Quantizer:
    """Builds the quantizer of a config, an ``nn.Module``, for embeddings of width ``dim``."""
    if config.kind == "fsq":
        return FiniteScalarQuantizer(dim, grid=config.grid, num_levels=config.num_levels)
    return ResidualQuantizer(  # vq is one level of it
        dim, num_codes=config.num_codes, num_levels=config.num_levels, shared=config.shared
    )
