"""Residual vector quantization of mask embeddings (paper, Eq. 2); with one level, plain vector quantization.

Codebooks are buffers: they move by exponential averages in ``update``, never by gradient.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from samtok.model.base import Quantized, Quantizer, checked_codes
from samtok.ranks import from_first_rank, gather_rows, pick_rows, sum_over_ranks

MOST_SPREAD_SEEDS = 4096
"""Clusters up to which k-means spreads its seeds, which costs a pass over all points for each of them."""
MOST_DISTANCES = 2**26
"""Distances that ``nearest`` holds at once: 256 MB in float32."""


class ResidualQuantizer(Quantizer):
    """Every level looks up the nearest entry of its codebook and hands on what is left over.

    Args:
        num_levels: Residual steps, so also the number of words of a mask.
        shared: Whether all levels look into one codebook instead of one each.
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
        shared: bool = False,
        decay: float = 0.99,
        dead_below: float = 0.1,
    ) -> None:
        super().__init__()
        self.num_codes, self.num_levels, self.shared = num_codes, num_levels, shared
        self.decay, self.dead_below = decay, dead_below
        self.codebooks: Tensor
        self.embed_sum: Tensor
        books = 1 if shared else num_levels
        self.register_buffer("codebooks", torch.randn(books, num_codes, dim))
        self.register_buffer("cluster_size", torch.full((books, num_codes), 1 / num_codes))
        self.register_buffer("embed_sum", self.codebooks / num_codes)

    @property
    def _of_levels(self) -> Float[Tensor, "level num_codes dim"]:
        return self.codebooks.expand(self.num_levels, -1, -1)

    def encode(self, z: Float[Tensor, "mask dim"]) -> Int[Tensor, "mask level"]:
        """Returns the code of every level, each in ``[0, num_codes)``; distances are taken in float32."""
        residual, codes = z.float(), []
        for codebook in self._of_levels:
            code = nearest(residual, codebook)
            residual = residual - codebook[code]  # the next level sees only what this one missed
            codes.append(code)
        return torch.stack(codes, dim=-1)

    def decode(self, codes: Integer[Tensor, "mask level"]) -> Float[Tensor, "mask dim"]:
        """Returns the sum of the code embeddings.

        Raises:
            ValueError: If there are no levels, more than the quantizer has, or a code out of range.
        """
        codes = checked_codes(codes, self.num_codes, self.num_levels)
        levels = zip(self._of_levels, codes.T, strict=False)  # codes may have fewer
        return torch.stack([codebook[code] for codebook, code in levels]).sum(dim=0)

    def code_vectors(self) -> Float[Tensor, "level num_codes dim"]:
        """Returns a copy of the codebook of each level."""
        return self._of_levels.clone()

    def forward(self, z: Float[Tensor, "mask dim"]) -> Quantized:
        """Quantizes; commitment is the mean over levels of the distance to the sum up to that level."""
        z = z.float()
        codes = self.encode(z)
        total, losses = torch.zeros_like(z), []
        for codebook, code in zip(self._of_levels, codes.T, strict=True):
            total = total + codebook[code]
            losses.append((z - total.detach()).square().mean())
        return Quantized(z + (total - z).detach(), codes, torch.stack(losses).mean())

    @torch.no_grad()
    def start(self, z: Float[Tensor, "sample dim"], generator: torch.Generator) -> None:
        """Sets every codebook by k-means on what its levels see of ``z``, that of all ranks together.

        A shared codebook is fitted to ``z``, then to ``z`` and its residuals together, and so on to the last
        level. Seeds are drawn by the first rank's generator.

        Raises:
            ValueError: If all ranks together have fewer embeddings than a codebook has entries.
        """
        z = gather_rows(z.float())
        for level in range(self.num_levels):
            seen = self._seen(z, level)
            points = torch.cat(seen) if self.shared else seen[-1]
            centres = from_first_rank(kmeans(points, self.num_codes, generator))
            self.codebooks[0 if self.shared else level] = centres
        self.cluster_size.fill_(1 / self.num_codes)
        self.embed_sum.copy_(self.codebooks * self.cluster_size[..., None])

    def _seen(self, z: Tensor, last: int) -> list[Tensor]:
        seen = [z]
        for codebook in self._of_levels[:last]:
            seen.append(seen[-1] - codebook[nearest(seen[-1], codebook)])
        return seen

    @torch.no_grad()
    def update(
        self, z: Float[Tensor, "mask dim"], codes: Int[Tensor, "mask level"], generator: torch.Generator
    ) -> int:
        """Moves the codebooks towards the embeddings that used them; returns how many dead codes restarted.

        Averages are of shares of the step, not of counts, so a step counts the same whatever its number of
        masks, and a fresh codebook (each code at ``1 / num_codes``) moves at its final pace from the start.
        Collective over ranks: the step is that of all ranks together, restarts are drawn by the first rank's
        generator. A step without masks leaves everything as it is.
        """
        restarted = 0
        for book, residual, code in self._lookups(z.float(), codes):
            if self._move(book, residual, code):
                restarted += self._restart(book, residual, generator)
        return restarted

    def _lookups(self, z: Tensor, codes: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yields each codebook's index with what was looked up in it, mask by mask, and the codes found."""
        seen = [z]
        for codebook, code in zip(self._of_levels, codes.T, strict=True):
            seen.append(seen[-1] - codebook[code])
        if self.shared:
            yield 0, torch.stack(seen[:-1], dim=1).flatten(0, 1), codes.flatten()
        else:
            yield from zip(
                range(self.num_levels), seen, codes.T, strict=False
            )  # the last rest is not looked up

    def _move(self, book: int, residual: Tensor, code: Tensor) -> bool:
        counts = residual.new_zeros(self.num_codes).index_add_(0, code, residual.new_ones(len(code)))
        sums = torch.zeros_like(self.codebooks[book]).index_add_(0, code, residual)
        step = sum_over_ranks(torch.cat([sums, counts[:, None]], dim=1))
        sums, counts = step[:, :-1], step[:, -1]
        total = counts.sum()
        if total == 0:
            return False
        self.cluster_size[book].lerp_(counts / total, 1 - self.decay)
        self.embed_sum[book].lerp_(sums / total, 1 - self.decay)
        hit = counts > 0  # the ratio of the others did not change
        self.codebooks[book][hit] = self.embed_sum[book][hit] / self.cluster_size[book][hit, None]
        return True

    def _restart(self, book: int, residual: Tensor, generator: torch.Generator) -> int:
        size = self.cluster_size[book]
        uniform = size.sum() / self.num_codes
        dead = (size < self.dead_below * uniform).nonzero().flatten()
        if len(dead) == 0:
            return 0
        picked = pick_rows(residual, len(dead), generator)
        self.codebooks[book][dead] = picked
        size[dead] = uniform  # else the next step would restart them again
        self.embed_sum[book][dead] = picked * uniform
        return len(dead)


def nearest(
    points: Float[Tensor, "point dim"], centres: Float[Tensor, "centre dim"]
) -> Int[Tensor, " point"]:
    """Returns the index of the centre nearest to each point (squared Euclidean distance, not autocast)."""
    with torch.autocast(points.device.type, enabled=False):
        length = centres.square().sum(dim=1)
        parts = points.split(max(1, MOST_DISTANCES // len(centres)))
        return torch.cat([(length - 2 * part @ centres.T).argmin(dim=1) for part in parts])


def kmeans(
    points: Float[Tensor, "point dim"], k: int, generator: torch.Generator, *, steps: int = 10
) -> Float[Tensor, "k dim"]:
    """Clusters by Lloyd's steps from k-means++ seeds; a cluster that empties keeps its centre.

    Raises:
        ValueError: If there are fewer points than clusters.
    """
    if len(points) < k:
        raise ValueError(f"k-means needs at least {k} points, got {len(points)}; collect more embeddings.")
    centres = _seeds(points, k, generator)
    for _ in range(steps):
        code = nearest(points, centres)
        used = torch.bincount(code, minlength=k)
        sums = torch.zeros_like(centres).index_add_(0, code, points)
        centres = torch.where(used[:, None] > 0, sums / used.clamp_min(1)[:, None], centres)
    return centres


def _seeds(points: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Draws k-means++ seeds; very many are drawn uniformly, without replacement."""
    if k > MOST_SPREAD_SEEDS:
        return points[torch.randperm(len(points), generator=generator)[:k].to(points.device)]
    seeds = points.new_empty(k, points.shape[1])
    seeds[:1] = points[torch.randint(len(points), (1,), generator=generator).to(points.device)]
    distance = (points - seeds[:1]).square().sum(dim=1)
    for i in range(1, k):
        weights = distance.clamp_min(1e-12).cpu()  # CPU draws make the seeds the same on every device
        seeds[i] = points[torch.multinomial(weights, 1, generator=generator).to(points.device)][0]
        distance = torch.minimum(distance, (points - seeds[i]).square().sum(dim=1))
    return seeds
