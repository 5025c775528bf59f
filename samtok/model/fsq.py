"""Finite scalar quantization of mask embeddings (Mentzer et al. 2023; paper, section D).

An embedding is projected to a few scalars, each is squashed by tanh and rounded to a small grid, and the grid
point is projected back. There is no codebook, so nothing to keep alive and no commitment loss. The shift that
Mentzer et al. give to grids of even size is left to the projection's bias.
"""

import math

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn

from samtok.model.base import Quantized, Quantizer, checked_codes
from samtok.ranks import from_first_rank, gather_rows, sum_over_ranks


class FiniteScalarQuantizer(Quantizer):
    """Each word is one point of a grid of scalars of its own; the grid ``(8, 8, 4)`` gives 256 codes.

    A projection is a fixed part, which ``start`` sets, plus a learned part that begins at zero: training
    engines keep copies of parameters, so only buffers can be set while training goes on. An embedding is at
    least as wide as there are scalars.
    """

    def __init__(self, dim: int, *, grid: tuple[int, ...], num_levels: int = 1, decay: float = 0.99) -> None:
        super().__init__()
        self.grid, self.num_levels, self.decay = grid, num_levels, decay
        self.num_codes = math.prod(grid)
        scalars = num_levels * len(grid)
        self.project_in = _zero(nn.Linear(dim, scalars))
        self.project_out = _zero(nn.Linear(scalars, dim))
        self.centre: Tensor
        self.basis_in: Tensor
        self.basis_out: Tensor
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("basis_in", torch.randn(scalars, dim) / dim**0.5)
        self.register_buffer("basis_out", torch.randn(scalars, dim) / scalars**0.5)
        self.register_buffer("cluster_size", torch.full((num_levels, self.num_codes), 1 / self.num_codes))

    def encode(self, z: Float[Tensor, "mask dim"]) -> Int[Tensor, "mask level"]:
        """Returns the code of every word, each in ``[0, num_codes)``."""
        return self.codes_of(self._positions(z).round().long())

    def decode(self, codes: Integer[Tensor, "mask level"]) -> Float[Tensor, "mask dim"]:
        """Returns the embeddings of codes; the scalars of words that are missing are in mid-range.

        Raises:
            ValueError: If there are no levels, more than the quantizer has, or a code out of range.
        """
        codes = checked_codes(codes, self.num_codes, self.num_levels)
        values = self._values(self.steps_of(codes).to(self.centre.dtype))
        rest = values.new_zeros(len(codes), (self.num_levels - codes.shape[1]) * len(self.grid))
        return self._read_out(torch.cat([values, rest], dim=1))

    @torch.no_grad()
    def code_vectors(self) -> Float[Tensor, "level num_codes dim"]:
        """Reading out is linear, so a word's grid point adds its part; the constant part is split evenly."""
        points = self.steps_of(torch.arange(self.num_codes, device=self.centre.device)[:, None])
        values = self._values(points.to(self.centre.dtype))
        weight = (self.basis_out + self.project_out.weight.float().T).unflatten(0, (self.num_levels, -1))
        constant = self.centre + self.project_out.bias.float()
        return values @ weight + constant / self.num_levels

    def forward(self, z: Float[Tensor, "mask dim"]) -> Quantized:
        """Quantizes; the gradient takes rounding for the identity. Commitment is 0."""
        positions = self._positions(z)
        steps = positions.round()
        values = self._values(positions + (steps - positions).detach())  # exact: the two are within a half
        return Quantized(self._read_out(values), self.codes_of(steps.long()), positions.new_zeros(()))

    def codes_of(self, steps: Int[Tensor, "mask scalar"]) -> Int[Tensor, "mask level"]:
        """Numbers grid points word by word; the first scalar, in ``[0, grid size)``, counts fastest."""
        return (steps.unflatten(1, (-1, len(self.grid))) * self._radix(steps)).sum(dim=-1)

    def steps_of(self, codes: Int[Tensor, "mask level"]) -> Int[Tensor, "mask scalar"]:
        """Returns the grid points of codes; the inverse of ``codes_of``."""
        sizes = codes.new_tensor(self.grid)
        return (codes[..., None] // self._radix(codes) % sizes).flatten(1)

    def _radix(self, like: Tensor) -> Tensor:
        return like.new_tensor([math.prod(self.grid[:i]) for i in range(len(self.grid))])

    def _positions(self, z: Tensor) -> Tensor:
        """Returns each scalar on its grid before rounding, in ``[0, size - 1]``."""
        z = z.float()
        with torch.autocast(z.device.type, enabled=False):
            learned = nn.functional.linear(z, self.project_in.weight.float(), self.project_in.bias.float())
            scalars = (z - self.centre) @ self.basis_in.T + learned
        return (scalars.tanh() + 1) * self._half(scalars)

    def _values(self, steps: Tensor) -> Tensor:
        """Maps the grid to ``[-1, 1]``; the steps may be of fewer words than there are."""
        return steps / self._half(steps) - 1

    def _half(self, like: Tensor) -> Tensor:
        words = like.shape[1] // len(self.grid)
        return (like.new_tensor(self.grid) - 1).repeat(words) / 2

    def _read_out(self, values: Tensor) -> Tensor:
        with torch.autocast(values.device.type, enabled=False):
            weight, bias = self.project_out.weight.float(), self.project_out.bias.float()
            return self.centre + values @ self.basis_out + nn.functional.linear(values, weight, bias)

    @torch.no_grad()
    def start(self, z: Float[Tensor, "sample dim"], generator: torch.Generator) -> None:
        """Sets the fixed projections: principal directions at unit variance, least squares back.

        Words take the directions in falling order of variance, so the first ones carry the most. The
        embeddings of all ranks count; nothing is drawn.

        Raises:
            ValueError: If all ranks together have no more embeddings than there are scalars.
        """
        z, scalars = gather_rows(z.float()), len(self.basis_in)
        if len(z) <= scalars:
            raise ValueError(
                f"fsq with {scalars} scalars starts from more than {scalars} embeddings, got {len(z)}; "
                "collect more."
            )
        self.centre.copy_(from_first_rank(z.mean(dim=0)))
        centred = (z - self.centre).double()
        variance, directions = torch.linalg.eigh(centred.T @ centred / len(z))
        variance, directions = variance.flip(0)[:scalars], directions.flip(1)[:, :scalars]
        flat = variance <= 1e-7 * variance[0]  # what does not vary is rounding noise and stays at mid-range
        scale = torch.where(flat, 0, variance.clamp_min(1e-30).rsqrt())
        self.basis_in.copy_(from_first_rank((directions * scale).T.float().contiguous()))
        values = self._values(self._positions(z).round())
        self.basis_out.zero_()
        missing = (z - self._read_out(values)).double()
        fit = torch.linalg.pinv(values.double(), rtol=1e-7) @ missing
        self.basis_out.copy_(from_first_rank(fit.float()))
        self.cluster_size.fill_(1 / self.num_codes)

    @torch.no_grad()
    def update(
        self, z: Float[Tensor, "mask dim"], codes: Int[Tensor, "mask level"], generator: torch.Generator
    ) -> int:
        """Follows the use of codes over all ranks; there is nothing to move and nothing to restart."""
        offset = torch.arange(self.num_levels, device=codes.device) * self.num_codes
        counts = (codes + offset).flatten().bincount(minlength=self.cluster_size.numel())
        counts = sum_over_ranks(counts).view_as(self.cluster_size)
        if counts.any():
            share = counts / counts.sum(dim=1, keepdim=True)
            self.cluster_size.lerp_(share, 1 - self.decay)
        return 0


def _zero(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
