"""Two gloo processes with a part of the masks each end with the codebooks of one process with all of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn

from samtok.model.base import Quantizer
from samtok.model.fsq import FiniteScalarQuantizer
from samtok.model.residual import ResidualQuantizer

DIM, CODES = 8, 32
SHARES = [(40, 24), (0, 30), (17, 0), (0, 0), (33, 32), (5, 60), (21, 20), (64, 1), (8, 8), (1, 70)]
"""Masks of each rank, step by step."""
QUANTIZERS: dict[str, Callable[[], Any]] = {
    "rq": lambda: ResidualQuantizer(DIM, num_codes=CODES, num_levels=3, decay=0.6, dead_below=0.2),
    "rq_shared": lambda: ResidualQuantizer(
        DIM, num_codes=CODES, num_levels=3, shared=True, decay=0.6, dead_below=0.2
    ),
    "vq": lambda: ResidualQuantizer(DIM, num_codes=CODES, num_levels=1, decay=0.6, dead_below=0.2),
    "fsq": lambda: FiniteScalarQuantizer(DIM, grid=(4, 8), num_levels=2, decay=0.6),
}


def embeddings(step: int, count: int) -> torch.Tensor:
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(step)) + 0.1 * step


def part(step: int, sizes: tuple[int, int], rank: int | None) -> torch.Tensor:
    z = embeddings(step, sum(sizes))
    return z if rank is None else z.split(sizes)[rank]


def train(quantizer: Quantizer, rank: int | None) -> dict[str, Any]:
    """Starts and takes all steps; rank 1 has a generator of its own, whose draws must not count."""
    generator = torch.Generator().manual_seed(rank or 0)
    quantizer.start(part(100, (29, 25), rank), generator)  # rank 1 alone has fewer than there are codes
    restarts = []
    for step, sizes in enumerate(SHARES):
        z = part(step, sizes, rank)
        restarts.append(quantizer.update(z, quantizer.encode(z), generator))
    return {"state": quantizer.state_dict(), "restarts": restarts}  # type: ignore[attr-defined]


def too_few(rank: int) -> str:
    """Starts with 31 embeddings in all and returns how that is refused."""
    try:
        ResidualQuantizer(DIM, num_codes=CODES).start(part(0, (31, 0), rank), torch.Generator())
    except ValueError as error:
        return str(error)
    return "not refused"


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results: dict[str, Any] = {"too_few": too_few(rank)}
    for name, build in QUANTIZERS.items():
        torch.manual_seed(rank)  # ranks begin with different codebooks
        results[name] = train(build(), rank)
    torch.save(results, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes ended with."""
    folder = tmp_path_factory.mktemp("ranks")
    spawn(work, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", QUANTIZERS)
def test_all_ranks_end_with_the_same_bits(ranks, name):
    first, second = (rank[name] for rank in ranks)
    assert first["restarts"] == second["restarts"]
    for key, value in first["state"].items():
        assert torch.equal(value, second["state"][key]), key


@pytest.mark.parametrize("name", QUANTIZERS)
def test_two_ranks_equal_one_process_with_all_masks(ranks, name):
    alone = train(QUANTIZERS[name](), None)
    assert ranks[0][name]["restarts"] == alone["restarts"]
    assert (sum(alone["restarts"]) > 0) == (name != "fsq")  # else restarts were not tested
    for key, value in alone["state"].items():
        torch.testing.assert_close(ranks[0][name]["state"][key], value, rtol=1e-5, atol=1e-6)


def test_every_rank_hears_that_there_are_too_few_embeddings(ranks):
    for rank in ranks:
        assert "at least 32 points, got 31" in rank["too_few"]
