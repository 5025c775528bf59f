"""First rows of mask words: like old rows, and with the geometry of codes where there is one."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer, PreTrainedModel

from samtok.errors import CheckpointError
from samtok.mllm.rows import SHARE, directions, extend
from samtok.mllm.vocab import MaskVocabulary
from tests.tiny_mllm import build

LARGE = MaskVocabulary(256, 2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planes(dim: int = 24) -> torch.Tensor:
    """Vectors of codes that lie on another plane for each level, off the origin."""
    points = torch.randn(2, 256, 2, generator=generator(1))
    return points @ torch.randn(2, 2, dim, generator=generator(2)) + 2


def likeness(one: torch.Tensor, other: torch.Tensor) -> float:
    """Correlation of the distances between rows of one and of the other."""
    return float(torch.corrcoef(torch.stack([torch.pdist(one), torch.pdist(other)]))[0, 1])


def extended(folder: Path, geometry: torch.Tensor | None, *, seed: int = 0) -> tuple[PreTrainedModel, int]:
    """Returns the model of a folder with words, and how many rows were there before."""
    model, tokenizer = (
        AutoModelForImageTextToText.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    known = len(tokenizer)
    extend(model, tokenizer, LARGE, seed=seed, geometry=geometry)
    return model, known


def words_of(model: PreTrainedModel, known: int) -> list[torch.Tensor]:
    """Returns the rows of all words, of the input and of the output embeddings."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    return [module.weight.detach()[known : known + 514] for module in modules]


def by_level(words: torch.Tensor) -> torch.Tensor:
    return words[1:-1].unflatten(0, (2, 256))


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("bare"), words=False, tied=False)


@pytest.mark.parametrize("dim", [24, 200], ids=["wider-model", "narrower-model"])
def test_near_codes_get_near_rows_with_a_geometry_and_only_then(bare, dim):
    vectors = planes(dim)
    for geometry in (vectors, None):
        for rows in words_of(*extended(bare, geometry)):
            for level, level_rows in enumerate(by_level(rows)):
                found = likeness(vectors[level], level_rows)
                assert found > 0.8 if geometry is not None else abs(found) < 0.2


def test_input_and_output_rows_share_directions_and_levels_do_not(bare):
    ours = [by_level(rows) for rows in words_of(*extended(bare, planes()[:1].expand(2, -1, -1)))]
    first, last = ((rows - rows.mean(1, keepdim=True)).flatten(1) for rows in ours)
    shared = torch.nn.functional.cosine_similarity(first, last)
    assert ((shared - SHARE).abs() < 0.05).all()  # the rest of both is noise of their own
    assert torch.nn.functional.cosine_similarity(first[0], first[1], dim=0).abs() < 0.1


def test_rows_with_a_geometry_have_mean_and_variance_of_old_rows(tmp_path, bare):
    model = AutoModelForImageTextToText.from_pretrained(bare)
    scale = torch.linspace(0.5, 2, 64)  # dimensions that differ
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        with torch.no_grad():
            module.weight.mul_(scale).add_(scale.flip(0))
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(bare).save_pretrained(tmp_path)
    vectors = torch.randn(2, 256, 200, generator=generator(5)) * torch.linspace(3, 0, 200)
    model, known = extended(tmp_path, vectors)
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    for rows, module in zip(words_of(model, known), modules, strict=True):
        old = module.weight.detach()[:known]
        assert ((rows.mean(0) - old.mean(0)).abs() < 5 * old.std(0) / 514**0.5).all()
        for level in by_level(rows):
            ratio = level.var(0) / old.var(0)
            assert abs(float(ratio.mean()) - 1) < 0.05
            assert float(ratio.min()) > 0.4 and float(ratio.max()) < 2


def test_start_and_end_are_noise_and_old_rows_are_untouched(bare):
    model, known = extended(bare, planes())
    old = AutoModelForImageTextToText.from_pretrained(bare).get_input_embeddings().weight[:known].detach()
    assert torch.equal(model.get_input_embeddings().weight[:known], old)
    first, last = (rows[[0, -1]] - rows.mean(0) for rows in words_of(model, known))
    assert (torch.nn.functional.cosine_similarity(first, last).abs() < 0.5).all()
    assert (first.norm(dim=1) / old.std(0).norm() - 1).abs().max() < 0.4


def test_equal_seeds_give_equal_rows_and_ties_are_kept(tmp_path):
    folder = build(tmp_path, words=False, tied=True)
    one, same, other = (extended(folder, planes(), seed=seed)[0] for seed in (1, 1, 2))
    weights = [model.get_input_embeddings().weight for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert one.get_input_embeddings().weight is one.get_output_embeddings().weight


def test_directions_keep_distances_and_have_variance_one():
    vectors = planes()
    wide = directions(vectors, 64, generator())
    for level in range(2):
        ratio = torch.pdist(wide[level]) / torch.pdist(vectors[level])
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
    torch.testing.assert_close(wide.mean(1), torch.zeros(2, 64), atol=1e-5, rtol=0)
    torch.testing.assert_close(wide.var(1, correction=0).mean(1), torch.ones(2))


@pytest.mark.parametrize("value", [1.3, float("nan"), float("inf")])
def test_codes_without_a_geometry_are_refused(value):
    vectors = planes()
    vectors[1] = value
    with pytest.raises(CheckpointError, match=r"the 256 codes of a level have no geometry.*--rows noise"):
        directions(vectors, 64, generator())


def test_the_geometry_of_another_vocabulary_is_refused(bare):
    with pytest.raises(ValueError, match=r"geometry of \(2, 16\) levels and codes is not of .* 256 codes"):
        extended(bare, planes()[:, :16])
