"""The mask encoder: SAM's mask decoder without its heads (paper, section 2.1).

A learned mask token attends, with the prompts, to the image; what comes out of it is the mask embedding z.
"""

import torch
from jaxtyping import Float
from sam2.modeling.sam.transformer import TwoWayTransformer
from torch import Tensor, nn


class MaskEncoder(nn.Module):
    """Turns image features, a dense mask prompt and sparse box prompts into one embedding per mask."""

    def __init__(self, transformer: TwoWayTransformer, dim: int) -> None:
        super().__init__()
        self.transformer = transformer
        self.mask_tokens = nn.Embedding(1, dim)

    def forward(
        self,
        coarse: Float[Tensor, "mask dim s s"],
        image_pe: Float[Tensor, "1 dim s s"],
        sparse: Float[Tensor, "mask prompt dim"],
        dense: Float[Tensor, "mask dim s s"],
    ) -> Float[Tensor, "mask dim"]:
        """Returns z of each mask."""
        token = self.mask_tokens.weight.expand(len(sparse), -1, -1)
        tokens = torch.cat([token, sparse], dim=1)
        positions = image_pe.expand(len(sparse), -1, -1, -1)
        attended, _ = self.transformer(coarse + dense, positions, tokens)
        return attended[:, 0]
