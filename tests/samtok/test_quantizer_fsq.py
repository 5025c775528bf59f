"""Finite scalar quantization: numbering of the grid, gradients, the start from principal directions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samtok.metrics.codebook import histogram, usage
from samtok.model.fsq import FiniteScalarQuantizer

GRIDS = [(2,), (5,), (8, 8, 4), (3, 4, 2, 5), (16, 16), (4, 4, 4, 4)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def embeddings(count: int, dim: int = 12, seed: int = 1) -> torch.Tensor:
    """Returns points whose directions have very different variances, off the origin."""
    mixing = torch.randn(dim, dim, generator=generator(99)) * torch.linspace(2, 0.2, dim)[:, None]
    return torch.randn(count, dim, generator=generator(seed)) @ mixing + 3


def build(grid: tuple[int, ...] = (5, 4), num_levels: int = 2, *, learned: bool = False):
    """Builds a quantizer that has started; its learned parts are 0, or random as after training."""
    torch.manual_seed(0)
    quantizer = FiniteScalarQuantizer(12, grid=grid, num_levels=num_levels)
    quantizer.start(embeddings(400), generator())
    if learned:
        for parameter in quantizer.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return quantizer


def embedding_of_steps(quantizer: FiniteScalarQuantizer, steps: torch.Tensor) -> torch.Tensor:
    """Returns embeddings that the projection sends to grid points, by its inverse."""
    sizes = torch.tensor(quantizer.grid * quantizer.num_levels)
    position = steps.clamp_min(0.2).minimum(sizes - 1.2)  # tanh reaches the ends only in the limit
    scalars = (2 * position / (sizes - 1) - 1).atanh().double()
    weight = (quantizer.basis_in + quantizer.project_in.weight).double()
    shift = quantizer.project_in.bias.double() - quantizer.basis_in.double() @ quantizer.centre.double()
    return ((scalars - shift) @ torch.linalg.pinv(weight).T).float().detach()


@pytest.mark.parametrize("num_levels", [1, 3])
@pytest.mark.parametrize("grid", GRIDS)
def test_codes_and_grid_points_are_one_to_one(grid, num_levels):
    quantizer = FiniteScalarQuantizer(16, grid=grid, num_levels=num_levels)
    count = math.prod(grid)
    codes = torch.arange(count)[:, None].repeat(1, num_levels)
    codes[:, -1] = codes[:, -1].flip(0)
    steps = quantizer.steps_of(codes)
    assert steps.shape == (count, num_levels * len(grid))
    assert len(steps[:, : len(grid)].unique(dim=0)) == count
    assert steps.amin(dim=0).tolist() == [0] * steps.shape[1]
    assert (steps.amax(dim=0) + 1).tolist() == list(grid) * num_levels
    assert torch.equal(quantizer.codes_of(steps), codes)


def test_the_first_scalar_of_a_word_counts_fastest():
    quantizer = FiniteScalarQuantizer(16, grid=(3, 4, 2), num_levels=2)
    steps = torch.tensor([[2, 3, 1, 1, 0, 1]])
    assert quantizer.codes_of(steps).tolist() == [[2 + 3 * 3 + 12 * 1, 1 + 12]]


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
def test_every_code_is_found_again_from_an_embedding_at_its_grid_point(grid, learned):
    quantizer = build(grid, learned=learned)
    codes = torch.randint(quantizer.num_codes, (300, 2), generator=generator(3))
    z = embedding_of_steps(quantizer, quantizer.steps_of(codes))
    assert torch.equal(quantizer.encode(z), codes)
    torch.testing.assert_close(quantizer(z).embeddings, quantizer.decode(codes))


@pytest.mark.slow
@pytest.mark.numerics
@given(st.lists(st.floats(-100, 100), min_size=12, max_size=12))
def test_any_embedding_has_codes_in_range_and_decodes_to_what_forward_gives(values):
    quantizer = build(learned=True)
    z = torch.tensor([values])
    out = quantizer(z)
    assert torch.equal(out.codes, quantizer.encode(z))
    assert int(out.codes.min()) >= 0 and int(out.codes.max()) < 20
    assert torch.equal(out.embeddings, quantizer.decode(out.codes))
    assert float(out.commitment) == 0


@pytest.mark.parametrize("grid", GRIDS)
def test_rounding_takes_the_nearest_grid_point(grid):
    quantizer = build(grid, num_levels=1)
    z = embeddings(200, seed=5)
    bounded = torch.tanh((z - quantizer.centre) @ quantizer.basis_in.T)
    steps = quantizer.steps_of(quantizer.encode(z))
    for scalar, size in enumerate(grid):
        points = torch.linspace(-1, 1, size)
        distance = (bounded[:, scalar, None] - points).abs()
        found = distance.gather(1, steps[:, scalar, None])[:, 0]
        torch.testing.assert_close(found, distance.min(dim=1).values, atol=1e-6, rtol=0)


def test_gradients_take_rounding_for_the_identity():
    quantizer = build(learned=True)
    z = embeddings(9, seed=4).requires_grad_()
    upstream = torch.randn(9, 12, generator=generator(7))
    quantizer(z).embeddings.backward(upstream)
    got = {name: p.grad for name, p in quantizer.named_parameters() if name.startswith("project_in")}
    got_z, z.grad = z.grad, None
    assert got_z is not None and len(got) == 2
    quantizer.zero_grad(set_to_none=True)
    bounded = torch.tanh((z - quantizer.centre) @ quantizer.basis_in.T + quantizer.project_in(z))
    (bounded @ quantizer.basis_out + quantizer.project_out(bounded)).backward(upstream)
    torch.testing.assert_close(got_z, z.grad)
    assert float(got_z.abs().sum()) > 0
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, quantizer.get_parameter(name).grad)


def test_missing_words_leave_their_scalars_at_mid_range():
    quantizer = build((5, 5), num_levels=2)
    codes = torch.tensor([[3], [24]])
    middle = torch.full((2, 1), 12)  # step 2 of 5 for both scalars
    torch.testing.assert_close(quantizer.decode(codes), quantizer.decode(torch.cat([codes, middle], dim=1)))


def test_the_start_says_most_with_the_first_word_and_uses_all_steps():
    quantizer = build((5, 5), num_levels=3)
    z = embeddings(2000, seed=8)
    codes = quantizer.encode(z)
    total = float((z - z.mean(dim=0)).square().mean())
    decoded = [quantizer.decode(codes[:, :n]).detach() for n in (1, 2, 3)]
    errors = [float((z - embedding).square().mean()) for embedding in decoded]
    assert total > errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.25 * total
    for level in usage(histogram(codes.numpy(), 25)):
        assert level.dead == 0 and level.perplexity > 18


def test_the_start_reads_out_by_least_squares():
    quantizer, z = build(), embeddings(400)
    steps = quantizer.steps_of(quantizer.encode(z))
    values = (2 * steps / (torch.tensor([5, 4, 5, 4]) - 1) - 1).numpy()
    target = (z - quantizer.centre).numpy()
    expected = np.linalg.lstsq(values, target, rcond=None)[0]
    np.testing.assert_allclose(quantizer.basis_out, expected, atol=1e-4)
    torch.testing.assert_close(quantizer.centre, z.mean(dim=0))


def test_directions_without_variance_stay_at_mid_range():
    quantizer = FiniteScalarQuantizer(12, grid=(5, 5), num_levels=2)
    line = torch.linspace(-1, 1, 60)[:, None] * torch.ones(1, 12)
    quantizer.start(line, generator())
    steps = quantizer.steps_of(quantizer.encode(line))
    assert len(steps[:, 0].unique()) == 5 and steps[:, 1:].unique().tolist() == [2]
    assert bool(quantizer.decode(quantizer.encode(line)).isfinite().all())


def test_the_start_needs_more_embeddings_than_scalars():
    with pytest.raises(ValueError, match="4 scalars starts from more than 4 embeddings, got 4"):
        FiniteScalarQuantizer(12, grid=(5, 4), num_levels=2).start(embeddings(4), generator())


def test_update_follows_the_use_of_codes_and_restarts_nothing():
    quantizer = build(num_levels=2)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    codes = torch.tensor([[3, 0], [3, 1], [4, 1], [3, 1]])
    assert quantizer.update(embeddings(4), codes, generator()) == 0
    share = torch.zeros(2, 20)
    share[0, 3], share[0, 4], share[1, 0], share[1, 1] = 0.75, 0.25, 0.25, 0.75
    torch.testing.assert_close(quantizer.cluster_size, 0.99 / 20 + 0.01 * share)
    after = quantizer.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["cluster_size"]
    quantizer.update(embeddings(0), torch.zeros(0, 2, dtype=torch.long), generator())
    assert torch.equal(quantizer.cluster_size, after["cluster_size"])


def test_the_learned_projections_learn_also_without_a_start():
    torch.manual_seed(0)
    quantizer, z = FiniteScalarQuantizer(12, grid=(4, 4), num_levels=2), embeddings(400)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.05)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = (quantizer(z).embeddings - z).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_a_quantizer_that_is_cast_still_works_in_float32():
    quantizer = build(learned=True)
    z = embeddings(50)
    quantizer.bfloat16()
    assert quantizer.basis_in.dtype == torch.float32
    assert quantizer.project_in.weight.dtype == torch.bfloat16
    out = quantizer(z.bfloat16())
    assert out.embeddings.dtype == torch.float32
    assert torch.equal(out.embeddings, quantizer.decode(out.codes))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer.encode(z.bfloat16()), out.codes)


@pytest.mark.parametrize("codes", [[[0, 20]], [[-1, 0]], [[0, 0, 0]], [[]]])
def test_codes_out_of_range_are_refused(codes):
    with pytest.raises(ValueError, match="codes must"):
        build().decode(torch.tensor(codes, dtype=torch.long))
