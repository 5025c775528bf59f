"""Residual vector quantization of mask embeddings (paper, Eq. 2).

``Quantizer`` is the interface that every kind of quantizer shares. Codebooks are buffers: they move by
exponential averages in ``update``, never by gradient.
"""

from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Quantized(NamedTuple):
    """What quantization gives; ``embeddings`` passes gradients straight through to z."""

    embeddings: Float[Tensor, "mask dim"]
    codes: Int[Tensor, "mask level"]
    commitment: Float[Tensor, ""]


class Quantizer(Protocol):
    """Turns mask embeddings into one code per level, and codes into embeddings."""

    num_codes: int
    num_levels: int

    def encode(self, z: Float[Tensor, "mask dim"]) -> Int[Tensor, "mask level"]:
        """Returns the code of every level, each in ``[0, num_codes)``."""
        ...

    def decode(self, codes: Int[Tensor, "mask level"]) -> Float[Tensor, "mask dim"]:
        """Returns the embedding that the mask decoder reads; fewer levels give a coarser one."""
        ...

    def __call__(self, z: Float[Tensor, "mask dim"]) -> Quantized:
        """Quantizes with straight-through gradients and the commitment loss."""
        ...


class ResidualQuantizer(nn.Module):
    """Every level looks up the nearest entry of its own codebook and hands on what is left over.

    Args:
        dim: Width of a mask embedding.
        num_codes: Entries of each codebook.
        num_levels: Residual steps, so also the number of words of a mask.
        decay: Weight of the past in the averages of ``update`` (0.99 as in the authors' config).
        dead_below: A code is restarted when its share of use falls below this part of uniform use. It is
            relative, so it means the same at every batch size.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_codes: int = 256,
        num_levels: int = 2,
        decay: float = 0.99,
        dead_below: float = 0.1,
    ) -> None:
        super().__init__()
        self.num_codes, self.num_levels = num_codes, num_levels
        self.decay, self.dead_below = decay, dead_below
        self.codebooks: Tensor
        self.cluster_size: Tensor
        self.embed_sum: Tensor
        self.register_buffer("codebooks", torch.randn(num_levels, num_codes, dim))
        self.register_buffer("cluster_size", torch.full((num_levels, num_codes), 1 / num_codes))
        self.register_buffer("embed_sum", self.codebooks / num_codes)

    def encode(self, z: Float[Tensor, "mask dim"]) -> Int[Tensor, "mask level"]:
        """Returns the code of every level, each in ``[0, num_codes)``; distances are taken in float32."""
        residual, codes = z.float(), []
        for codebook in self.codebooks:
            code = nearest(residual, codebook)
            residual = residual - codebook[code]  # the next level sees only what this one missed
            codes.append(code)
        return torch.stack(codes, dim=-1)

    def decode(self, codes: Int[Tensor, "mask level"]) -> Float[Tensor, "mask dim"]:
        """Returns the sum of the code embeddings.

        Raises:
            ValueError: If there are no levels, more than the quantizer has, or a code out of range.
        """
        levels = codes.shape[1]
        if not 1 <= levels <= self.num_levels:
            raise ValueError(f"codes must have 1 to {self.num_levels} levels, got {levels}")
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= self.num_codes):
            raise ValueError(
                f"codes must lie in [0, {self.num_codes}), got {int(codes.min())} to {int(codes.max())}"
            )
        return torch.stack([self.codebooks[i][codes[:, i]] for i in range(levels)]).sum(dim=0)

    def forward(self, z: Float[Tensor, "mask dim"]) -> Quantized:
        """Quantizes; commitment is the mean over levels of the distance to the sum up to that level."""
        z = z.float()
        codes = self.encode(z)
        total, losses = torch.zeros_like(z), []
        for level in range(self.num_levels):
            total = total + self.codebooks[level][codes[:, level]]
            losses.append((z - total.detach()).square().mean())
        return Quantized(z + (total - z).detach(), codes, torch.stack(losses).mean())

    @torch.no_grad()
    def start(self, z: Float[Tensor, "sample dim"], generator: torch.Generator, *, steps: int = 10) -> None:
        """Sets every codebook by k-means on the residuals of ``z`` (k-means++ seeds, ``steps`` of Lloyd)."""
        residual = z.float()
        for level in range(self.num_levels):
            centres = kmeans(residual, self.num_codes, generator, steps=steps)
            self.codebooks[level] = centres
            residual = residual - centres[nearest(residual, centres)]
        self.cluster_size.fill_(1 / self.num_codes)
        self.embed_sum.copy_(self.codebooks * self.cluster_size[..., None])

    @torch.no_grad()
    def update(
        self, z: Float[Tensor, "mask dim"], codes: Int[Tensor, "mask level"], generator: torch.Generator
    ) -> int:
        """Moves the codebooks towards the embeddings that used them; returns how many dead codes restarted.

        Averages are of shares of the step, not of counts, so a step counts the same whatever its number of
        masks, and a fresh codebook (each code at ``1 / num_codes``) moves at its final pace from the start.

        Args:
            z: Embeddings of one step; none leave everything as it is.
            codes: Their codes.
            generator: Draws the embeddings that restart dead codes.
        """
        if len(z) == 0:
            return 0
        residual, restarted = z.float(), 0
        for level in range(self.num_levels):
            code = codes[:, level]
            entries = self.codebooks[level][code]
            self._move(level, residual, code)
            restarted += self._restart(level, residual, generator)
            residual = residual - entries
        return restarted

    def _move(self, level: int, residual: Tensor, code: Tensor) -> None:
        used = torch.nn.functional.one_hot(code, self.num_codes).to(residual.dtype)
        self.cluster_size[level].lerp_(used.mean(dim=0), 1 - self.decay)
        self.embed_sum[level].lerp_(used.T @ residual / len(residual), 1 - self.decay)
        hit = code.unique()  # the ratio of the others did not change
        self.codebooks[level][hit] = self.embed_sum[level][hit] / self.cluster_size[level][hit, None]

    def _restart(self, level: int, residual: Tensor, generator: torch.Generator) -> int:
        size = self.cluster_size[level]
        uniform = size.sum() / self.num_codes
        dead = (size < self.dead_below * uniform).nonzero().flatten()
        if len(dead) == 0:
            return 0
        picks = torch.randint(len(residual), (len(dead),), generator=generator).to(residual.device)
        self.codebooks[level][dead] = residual[picks]
        size[dead] = uniform  # else the next step would restart them again
        self.embed_sum[level][dead] = residual[picks] * uniform
        return len(dead)


def nearest(
    points: Float[Tensor, "point dim"], centres: Float[Tensor, "centre dim"]
) -> Int[Tensor, " point"]:
    """Returns the index of the centre nearest to each point (squared Euclidean distance)."""
    distance = centres.square().sum(dim=1) - 2 * points @ centres.T
    return distance.argmin(dim=1)


def kmeans(
    points: Float[Tensor, "point dim"], k: int, generator: torch.Generator, *, steps: int = 10
) -> Float[Tensor, "k dim"]:
    """Clusters by Lloyd's steps from k-means++ seeds; a cluster that empties keeps its centre.

    Raises:
        ValueError: If there are fewer points than clusters.
    """
    if len(points) < k:
        raise ValueError(f"k-means needs at least {k} points, got {len(points)}; collect more embeddings")
    centres = points[torch.randint(len(points), (1,), generator=generator).to(points.device)]
    distance = (points - centres).square().sum(dim=1)
    for _ in range(k - 1):
        weights = distance.clamp_min(1e-12).cpu()  # CPU draws make the seeds the same on every device
        pick = torch.multinomial(weights, 1, generator=generator).to(points.device)
        centres = torch.cat([centres, points[pick]])
        distance = torch.minimum(distance, (points - points[pick]).square().sum(dim=1))
    for _ in range(steps):
        code = nearest(points, centres)
        used = torch.bincount(code, minlength=k)
        sums = torch.zeros_like(centres).index_add_(0, code, points)
        centres = torch.where(used[:, None] > 0, sums / used.clamp_min(1)[:, None], centres)
    return centres
