"""ZeRO-1, 2 and 3 and the plain engine, on one and on two real gloo processes, are the same training."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from samtok.mllm.adapters import load_adapter
from samtok.mllm.tiny.models import TinyConfig, build_tiny
from samtok.mllm.vocab import MaskVocabulary
from tests.engine_runs import CONFIG, ENGINES, HALF, RESUMES, TABLE, VARIANTS, WORLDS, Net, work
from tests.tiny_mllm import FAMILIES, FAST, QWEN

LONG = tuple(name for name in FAMILIES if name not in FAST)
MLLMS = [
    pytest.param(family, rows, marks=[] if family in FAST else pytest.mark.long, id=f"{family}{rows}")
    for family in FAMILIES
    for rows in ("", ", packed")
    if not rows or family in QWEN
]

MEASURED = ("weights", "moments", "steps")

TINY = TinyConfig(image_size=28, dim=32, num_heads=2, hidden_dim=48, vocab_size=280)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # whichever test comes first starts all processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where processes put their results, after both passes on one and on two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    for name in ("first", "second"):
        for world in WORLDS:
            spawn(work, args=(world, name, str(folder)), nprocs=world)
    return folder


@pytest.fixture(scope="module")
def mllms(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder in which an MLLM of a family was trained on two ranks: CI's in one, others in one."""

    @functools.cache
    def trained(families: tuple[str, ...]) -> Path:
        folder = tmp_path_factory.mktemp("mllms")
        for family in families:
            named = {"vocabulary": MaskVocabulary(4, 2), "texts": ["Segment it.", "It is here."], "seed": 0}
            build_tiny(family, folder / f"mllm-{family}", config=TINY, **named)
        spawn(work, args=(2, "families", str(folder)), nprocs=2)
        return folder

    return lambda family: trained(FAST if family in FAST else LONG)


@functools.cache
def load(folder: Path, name: str, world: int, rank: int = 0) -> dict[str, Any]:
    return torch.load(folder / f"{name}-{world}-{rank}.pt", weights_only=True)


def assert_close(first: dict[str, Any], second: dict[str, Any], *, noise: float = 1.0) -> None:
    """Weights, moments and, where both tell, losses are equal within float32's rounding, times some noise."""
    assert first["steps"] == second["steps"] > 0
    assert first["moments"].keys() == second["moments"].keys()
    torch.testing.assert_close(first["weights"], second["weights"], rtol=2e-5, atol=2e-6 * noise)
    torch.testing.assert_close(first["moments"], second["moments"], rtol=1e-4, atol=1e-6 * noise)
    if "losses" in first:
        assert first["losses"] == pytest.approx(second["losses"], rel=1e-5)
        assert first["norms"] == pytest.approx(second["norms"], rel=1e-5)


def assert_same_bits(first: dict[str, Any], second: dict[str, Any]) -> None:
    for name in ("weights", "moments", "losses", "norms", "steps"):
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("kind", [*ENGINES, *VARIANTS])
def test_all_engines_worlds_and_splits_take_the_same_steps(folder: Path, kind: str, world: int):
    reference = load(folder, "first", 1)["plain"]["1"]
    assert (
        reference["losses"][-1] < 0.8 * reference["losses"][0] and min(reference["norms"]) > CONFIG.clip_norm
    )
    for result in load(folder, "first", world)[kind].values():
        assert_close(result, reference)
        untrained = Net().state_dict()
        assert torch.equal(result["weights"]["frozen.weight"], untrained["frozen.weight"])
        assert not torch.equal(result["weights"]["unused.weight"], untrained["unused.weight"])


@pytest.mark.parametrize("kind", ENGINES)
def test_equal_runs_give_equal_bits_on_all_ranks(folder: Path, kind: str):
    for world in WORLDS:
        results = load(folder, "first", world)
        for split in results["again"][kind]:
            assert_same_bits(results[kind][split], results["again"][kind][split])
            assert_same_bits(results[kind][split], load(folder, "first", world, world - 1)[kind][split])


@pytest.mark.parametrize(("origin", "kind"), RESUMES)
def test_any_engine_goes_on_from_the_checkpoint_of_any_other(folder: Path, origin: str, kind: str):
    for saved_by in WORLDS:
        whole = load(folder, "first", saved_by)[origin]["1"]
        for loaded_by in WORLDS:
            result = load(folder, "second", loaded_by)[f"{origin}-{saved_by}-{kind}"]
            rest = {**whole, "losses": whole["losses"][HALF:]}
            if (origin, saved_by) == (kind, loaded_by):
                assert_same_bits(result, rest)
            else:
                assert_close(result, rest)


@pytest.mark.parametrize("kind", ENGINES)
def test_an_empty_state_starts_from_the_weights_of_the_module(folder: Path, kind: str):
    for world in WORLDS:
        whole = load(folder, "first", world)[kind]["1"]
        again = load(folder, "second", world)["restarted"][kind]
        assert_same_bits({**again, "norms": again["norms"][HALF:]}, whole)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("kind", ENGINES)
def test_a_bad_gradient_on_one_rank_skips_the_step_on_all(folder: Path, kind: str, world: int):
    for rank in range(world):
        result = load(folder, "first", world, rank)["skipped"][kind]
        assert not math.isfinite(result["norm"])
        assert_same_bits(result["after"], result["without"])
        assert result["after"]["steps"] == HALF - 1


@pytest.mark.parametrize("kind", ENGINES)
def test_memory_that_was_away_comes_back_as_it_was(folder: Path, kind: str):
    """Weights, moments and, with ZeRO, their float32 copies and buffers of gradients."""
    for world in WORLDS:
        results = load(folder, "first", world)
        found = results["away"][kind]
        assert_same_bits({**found, "norms": results[kind]["1"]["norms"]}, results[kind]["1"])
        parameters = sum(value.numel() for value in Net().parameters())
        assert found["left"] == 0 and found["held"] >= 4 * parameters / (world if kind == "zero3" else 1)


def test_autocast_is_neither_turned_off_nor_doubled(folder: Path):
    for world in WORLDS:
        plain, *others = load(folder, "first", world)["rounded"].values()
        assert plain["dtypes"] == ["torch.bfloat16"]
        for other in others:
            assert other["dtypes"] == plain["dtypes"] and other["loss"] == plain["loss"]
            assert_close(other, plain)
            assert all(value.dtype == torch.float32 for value in other["weights"].values())


def test_parameters_that_one_rank_alone_uses_are_no_matter_to_zero1(folder: Path):
    results = load(folder, "first", 2)["one_uses_less"]
    assert_close(results["zero1"], results["plain"])


@pytest.mark.parametrize("kind", ["zero2", "zero3"])
def test_gradients_of_different_parameters_are_not_mixed(folder: Path, kind: str):
    for rank in WORLDS:
        results = load(folder, "first", 2, rank - 1)["other_order"]
        assert "same parameters in the same order" in results[kind]["error"]
        assert "zero1.json" in results[kind]["error"]
        assert_close(results["zero1"], results["plain"])


@pytest.mark.parametrize(("family", "rows"), MLLMS)
@pytest.mark.parametrize("kind", [kind for kind in ENGINES if kind != "plain"])
def test_an_mllm_learns_the_same_with_tied_embeddings_and_rows_of_their_own_rate(
    mllms: Callable[[str], Path], kind: str, family: str, rows: str
):
    folder, model = mllms(family), f"mllm-{family}"
    name = f"{model}{rows}"
    plain = load(folder, "families", 2)[name]["plain"]
    untrained = load_adapter(folder / model).load_model(folder / model).state_dict()
    for rank in range(2):
        result = load(folder, "families", 2, rank)[name][kind]
        # AdamW makes steps of 1e-2, also from gradients that are next to nothing and so mostly rounding
        assert_close({k: result[k] for k in MEASURED}, {k: plain[k] for k in MEASURED}, noise=100)
        own = load(folder, "families", 2, rank)[name]["plain"]["losses"]  # each rank has a picture of its own
        assert result["losses"] == pytest.approx(own, rel=1e-4) and own[-1] < own[0]
        assert result["tied"]
        assert all(torch.equal(v, untrained[k]) for k, v in result["weights"].items() if ".patch_embed." in k)
    first, stop = plain["rows"]
    moved = (plain["weights"][TABLE] - untrained[TABLE]).abs().amax(dim=1)
    assert moved[first:stop].median() > 2 * moved[:first].median() > 0


def test_weights_can_be_written_to_a_file_and_nothing_was_compiled(folder: Path):
    for kind in ENGINES:
        result = load(folder, "first", 2)[kind]["1"]
        torch.testing.assert_close(result["file"], result["weights"], rtol=0, atol=0)
    assert not (folder / "compiled").exists()
