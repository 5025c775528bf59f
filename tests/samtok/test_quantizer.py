"""Residual and plain vector quantization against NumPy: lookup, gradients, averages, restarts, k-means."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samtok.config import PRESETS, MaskTokenizerConfig, QuantizerConfig
from samtok.folders import SHIPPED
from samtok.model import residual
from samtok.model.quantizer import build_quantizer
from samtok.model.residual import ResidualQuantizer, kmeans, nearest
from samtok.model.tokenizer import MaskTokenizer


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def embeddings(count: int, dim: int = 6, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, dim, generator=generator(seed))


@pytest.fixture
def quantizer() -> ResidualQuantizer:
    torch.manual_seed(0)
    return ResidualQuantizer(6, num_codes=16, num_levels=3)


def numpy_codes(z: torch.Tensor, codebooks: torch.Tensor) -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns codes and what each level saw."""
    residual, codes, seen = z.double().numpy(), [], []
    for book in codebooks.double().numpy():
        seen.append(residual)
        code = ((residual[:, None] - book[None]) ** 2).sum(-1).argmin(1)
        residual = residual - book[code]
        codes.append(code)
    return np.stack(codes, 1), seen


def test_every_level_takes_the_nearest_entry_to_what_is_left(quantizer):
    z = embeddings(40)
    expected, _ = numpy_codes(z, quantizer.codebooks)
    assert quantizer.encode(z).tolist() == expected.tolist()


def test_decoding_sums_the_entries_of_the_levels(quantizer):
    codes = torch.tensor([[3, 0, 15], [7, 7, 7]])
    books = quantizer.codebooks
    for levels in (1, 2, 3):
        expected = sum(books[level][codes[:, level]] for level in range(levels))
        torch.testing.assert_close(quantizer.decode(codes[:, :levels]), expected)


def test_each_level_brings_the_sum_closer_when_codebooks_fit():
    quantizer = ResidualQuantizer(6, num_codes=16, num_levels=3)
    z = embeddings(500)
    quantizer.start(z, generator())
    codes = quantizer.encode(z)
    errors = [float((z - quantizer.decode(codes[:, :n])).square().mean()) for n in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]


def test_the_forward_pass_gives_the_decoded_embedding(quantizer):
    z = embeddings(9)
    out = quantizer(z)
    torch.testing.assert_close(out.embeddings, quantizer.decode(quantizer.encode(z)))
    assert torch.equal(out.codes, quantizer.encode(z))


def test_gradients_pass_straight_through(quantizer):
    z = embeddings(9).requires_grad_()
    upstream = embeddings(9, seed=4)
    quantizer(z).embeddings.backward(upstream)
    assert z.grad is not None
    torch.testing.assert_close(z.grad, upstream)


def test_commitment_is_the_mean_over_levels_of_the_distance_to_the_sum_so_far(quantizer):
    z = embeddings(9)
    codes, _ = numpy_codes(z, quantizer.codebooks)
    books, total, losses = quantizer.codebooks.double().numpy(), 0.0, []
    for level in range(3):
        total = total + books[level][codes[:, level]]
        losses.append(((z.double().numpy() - total) ** 2).mean())
    assert float(quantizer(z).commitment) == pytest.approx(np.mean(losses), rel=1e-5)


def test_commitment_moves_z_and_never_a_codebook(quantizer):
    z = embeddings(9).requires_grad_()
    quantizer(z).commitment.backward()
    assert z.grad is not None and float(z.grad.abs().sum()) > 0
    assert list(quantizer.parameters()) == []


def test_update_equals_averages_in_numpy(quantizer):
    quantizer.dead_below = 0.0  # no restarts here
    z = embeddings(40)
    before = {name: value.double().numpy().copy() for name, value in quantizer.state_dict().items()}
    codes, seen = numpy_codes(z, quantizer.codebooks)
    assert quantizer.update(z, torch.tensor(codes), generator()) == 0
    for level in range(3):
        used = np.eye(16)[codes[:, level]]
        size = 0.99 * before["cluster_size"][level] + 0.01 * used.mean(0)
        total = 0.99 * before["embed_sum"][level] + 0.01 * used.T @ seen[level] / 40
        np.testing.assert_allclose(quantizer.cluster_size[level], size, rtol=1e-5)
        np.testing.assert_allclose(quantizer.embed_sum[level], total, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(quantizer.codebooks[level], total / size[:, None], rtol=1e-4, atol=1e-5)


def test_a_step_counts_the_same_whatever_its_number_of_masks(quantizer):
    other = ResidualQuantizer(6, num_codes=16, num_levels=3)
    other.load_state_dict(quantizer.state_dict())
    z = embeddings(20)
    quantizer.update(z, quantizer.encode(z), generator())
    other.update(z.repeat(5, 1), other.encode(z.repeat(5, 1)), generator())
    torch.testing.assert_close(quantizer.cluster_size, other.cluster_size)


@pytest.mark.slow
@pytest.mark.numerics
def test_codebooks_drift_to_the_mean_of_what_uses_them():
    quantizer = ResidualQuantizer(2, num_codes=2, num_levels=1)
    quantizer.codebooks[0] = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    quantizer.embed_sum.copy_(quantizer.codebooks / 2)
    z = torch.tensor([[1.0, 1.0], [1.0, 3.0], [9.0, 0.0], [9.0, 0.0]])
    for _ in range(1000):
        quantizer.update(z, quantizer.encode(z), generator())
    torch.testing.assert_close(
        quantizer.codebooks[0], torch.tensor([[1.0, 2.0], [9.0, 0.0]]), atol=1e-3, rtol=0
    )


def test_dead_codes_restart_at_embeddings_of_the_step_and_then_live():
    quantizer = ResidualQuantizer(4, num_codes=8, num_levels=1)
    z = embeddings(64, dim=4)
    quantizer.codebooks[0, 4:] = 1000.0  # far from everything
    quantizer.embed_sum.copy_(quantizer.codebooks / 8)
    restarted = 0
    for _ in range(300):
        restarted += quantizer.update(z, quantizer.encode(z), generator())
    assert restarted == 4
    assert sorted(quantizer.encode(z).unique().tolist()) == list(range(8))


def test_a_small_batch_restarts_no_living_codes():
    quantizer = ResidualQuantizer(6, num_codes=256, num_levels=2)
    z = embeddings(4000)
    quantizer.start(z, generator())
    picks = torch.randint(len(z), (30, 16), generator=generator(9))
    restarts = sum(quantizer.update(z[i], quantizer.encode(z[i]), generator()) for i in picks)
    assert restarts == 0  # the authors' rule (a count below 1) would replace most of 512 codes at every step


def test_an_update_without_masks_changes_nothing(quantizer):
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    assert quantizer.update(torch.zeros(0, 6), torch.zeros(0, 3, dtype=torch.long), generator()) == 0
    assert all(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())


def test_kmeans_finds_separate_clusters():
    centres = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]])
    points = (centres[:, None] + 0.1 * torch.randn(3, 50, 2, generator=generator())).reshape(-1, 2)
    found = kmeans(points, 3, generator(1))
    assert sorted(nearest(found, centres).tolist()) == [0, 1, 2]
    means = points.reshape(3, 50, 2).mean(1)
    torch.testing.assert_close(found[nearest(means, found)], means, atol=1e-4, rtol=0)


def test_kmeans_needs_as_many_points_as_codes():
    with pytest.raises(ValueError, match="at least 16 points, got 15"):
        kmeans(embeddings(15), 16, generator())


def test_start_is_the_same_for_the_same_generator_seed():
    books = []
    for seed in (3, 3, 4):
        quantizer = ResidualQuantizer(6, num_codes=16, num_levels=2)
        quantizer.start(embeddings(100), generator(seed))
        books.append(quantizer.codebooks)
    assert torch.equal(books[0], books[1]) and not torch.equal(books[0], books[2])


def test_a_fresh_codebook_already_moves_at_its_final_pace():
    quantizer = ResidualQuantizer(6, num_codes=16, num_levels=1)
    quantizer.start(embeddings(3000), generator())
    before = quantizer.codebooks[0, 5].clone()
    z = (before + 0.1)[None].expand(10, -1)  # all of the step uses one code: 16 times its uniform share
    quantizer.update(z, quantizer.encode(z), generator())
    pace = 0.01 / (0.99 / 16 + 0.01)
    torch.testing.assert_close(quantizer.codebooks[0, 5], before + 0.1 * pace)


@pytest.mark.parametrize("codes", [[[0, 16, 0]], [[-1, 0, 0]], [[0, 0, 0, 0]], [[]]])
def test_codes_out_of_range_are_refused(quantizer, codes):
    with pytest.raises(ValueError, match=r"codes must"):
        quantizer.decode(torch.tensor(codes, dtype=torch.long))


@pytest.mark.parametrize(
    "config",
    [
        QuantizerConfig(kind="rq", num_codes=20, num_levels=3),
        QuantizerConfig(kind="rq", num_codes=20, num_levels=3, shared=True),
        QuantizerConfig(kind="vq", num_codes=20, num_levels=1),
        QuantizerConfig(kind="fsq", num_codes=20, num_levels=3, grid=(5, 4)),
    ],
    ids=["rq", "rq-shared", "vq", "fsq"],
)
def test_an_embedding_is_the_sum_of_the_vectors_of_its_codes(config):
    torch.manual_seed(0)
    quantizer = build_quantizer(config, 12)
    quantizer.start(embeddings(400, 12) + 3, generator())
    for parameter in quantizer.parameters():  # fsq's, which begin at 0
        torch.nn.init.normal_(parameter, std=0.1)
    vectors = quantizer.code_vectors()
    assert vectors.shape == (config.num_levels, 20, 12) and not vectors.requires_grad
    codes = torch.randint(20, (50, config.num_levels), generator=generator(1))
    total = sum(level[code] for level, code in zip(vectors, codes.T, strict=True))
    torch.testing.assert_close(total, quantizer.decode(codes).detach())
    vectors.zero_()  # a copy: the quantizer is as before
    torch.testing.assert_close(total, quantizer.decode(codes).detach())


@given(st.integers(0, 2**31), st.integers(2, 40))
def test_vq_finds_every_code_again_from_its_embedding(seed: int, num_codes: int):
    torch.manual_seed(seed)
    quantizer = build_quantizer(QuantizerConfig(kind="vq", num_codes=num_codes, num_levels=1), 6)
    codes = torch.arange(num_codes)[:, None]
    assert torch.equal(quantizer.encode(quantizer.decode(codes)), codes)


@given(st.integers(0, 2**31))
def test_vq_takes_the_nearest_entry(seed: int):
    torch.manual_seed(seed)
    quantizer = build_quantizer(QuantizerConfig(kind="vq", num_codes=12, num_levels=1), 5)
    assert isinstance(quantizer, ResidualQuantizer)
    z = torch.randn(9, 5)
    distance = torch.cdist(z.double(), quantizer.codebooks[0].double()).square()
    found = distance.gather(1, quantizer.encode(z))[:, 0]
    assert bool((found <= distance.min(dim=1).values + 1e-4).all())


def test_the_levels_of_a_shared_codebook_all_look_into_it():
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(6, num_codes=16, num_levels=3, shared=True)
    z, book = embeddings(40), quantizer.codebooks[0]
    assert quantizer.codebooks.shape == (1, 16, 6)
    expected, _ = numpy_codes(z, book.expand(3, -1, -1))
    codes = quantizer.encode(z)
    assert codes.tolist() == expected.tolist()
    torch.testing.assert_close(quantizer.decode(codes), book[codes].sum(dim=1))
    torch.testing.assert_close(quantizer.decode(codes[:, :2]), book[codes[:, :2]].sum(dim=1))


def test_a_shared_codebook_averages_what_all_levels_see():
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(6, num_codes=16, num_levels=3, shared=True, dead_below=0.0)
    z = embeddings(40)
    before = {name: value.double().numpy().copy() for name, value in quantizer.state_dict().items()}
    codes, seen = numpy_codes(z, quantizer.codebooks.expand(3, -1, -1))
    quantizer.update(z, torch.tensor(codes), generator())
    used = np.eye(16)[codes].sum((0, 1)) / 120
    sums = sum(np.eye(16)[codes[:, level]].T @ seen[level] for level in range(3)) / 120
    size = 0.99 * before["cluster_size"][0] + 0.01 * used
    total = 0.99 * before["embed_sum"][0] + 0.01 * sums
    np.testing.assert_allclose(quantizer.cluster_size[0], size, rtol=1e-5)
    np.testing.assert_allclose(quantizer.codebooks[0], total / size[:, None], rtol=1e-4, atol=1e-5)


def test_a_shared_codebook_starts_from_embeddings_and_residuals_together():
    z = embeddings(600, dim=3)
    deep, flat = (ResidualQuantizer(3, num_codes=24, num_levels=n, shared=True) for n in (3, 1))
    for quantizer in (deep, flat):
        quantizer.start(z, generator())
    codes = deep.encode(z)
    errors = [float((z - deep.decode(codes[:, :n])).square().mean()) for n in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]
    alone = float((z - flat.decode(flat.encode(z))).square().mean())
    assert alone < errors[0] < 1.2 * alone  # few codes are given up for the residuals, which gain much
    assert errors[1] < 0.4 * alone


def test_very_many_seeds_are_points_drawn_without_replacement(monkeypatch):
    monkeypatch.setattr(residual, "MOST_SPREAD_SEEDS", 10)
    points = embeddings(50)
    seeds = kmeans(points, 50, generator(), steps=0)
    assert sorted(seeds.tolist()) == sorted(points.tolist())


def test_distances_to_many_centres_are_taken_in_parts(monkeypatch):
    points, centres = embeddings(50), embeddings(7, seed=2)
    whole = nearest(points, centres)
    monkeypatch.setattr(residual, "MOST_DISTANCES", 7 * 8 + 3)
    assert torch.equal(nearest(points, centres), whole)


def test_codebooks_stay_in_float32_when_the_model_is_cast(quantizer):
    before = quantizer.codebooks.clone()
    torch.nn.Sequential(quantizer, torch.nn.Linear(6, 2)).to(torch.bfloat16)
    assert quantizer.codebooks.dtype == torch.float32 and torch.equal(quantizer.codebooks, before)
    assert quantizer(embeddings(3).bfloat16()).embeddings.dtype == torch.float32
    quantizer.to("meta")
    assert quantizer.codebooks.device.type == "meta"


def test_codes_do_not_depend_on_autocast(quantizer):
    z = embeddings(500)
    expected = quantizer.encode(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer.encode(z), expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_codes": 1}, "num_codes must be >= 2"),
        ({"num_levels": 0}, "num_levels >= 1"),
        ({"kind": "vq"}, "set num_levels to 1, got 2"),
        ({"kind": "vq", "num_levels": 1, "shared": True}, "vq has no such option"),
        ({"kind": "fsq", "grid": (16, 16), "shared": True}, "fsq has no such option"),
        ({"grid": (16, 16)}, "grid belongs to fsq"),
        ({"kind": "fsq"}, "fsq needs a grid"),
        ({"kind": "fsq", "grid": (256, 1)}, "2 to 256 steps"),
        ({"kind": "fsq", "grid": (8, 8)}, "has 64 points and num_codes is 256"),
    ],
)
def test_wrong_combinations_fail_when_the_config_is_built(fields, message):
    with pytest.raises(ValueError, match=message):
        QuantizerConfig(**fields)


def micro(**quantizer) -> MaskTokenizerConfig:
    return dataclasses.replace(PRESETS["micro"], quantizer=QuantizerConfig(**quantizer))


def test_scalars_must_fit_into_the_embedding():
    micro(kind="fsq", num_codes=256, grid=(2,) * 8, num_levels=8)
    with pytest.raises(ValueError, match="72 scalars, but an embedding has dim 64"):
        micro(kind="fsq", num_codes=256, grid=(2,) * 8, num_levels=9)


def test_the_config_text_of_residual_quantization_is_what_it_was_before_there_were_other_kinds():
    text = (SHIPPED / "tiny" / "config.json").read_text(encoding="utf-8")
    config = MaskTokenizerConfig.from_json(text)
    assert config.architecture == PRESETS["tiny"] and config.to_json() == text
    assert set(json.loads(text)["quantizer"]) == {"kind", "num_codes", "num_levels"}


def test_an_unknown_kind_in_a_config_file_is_refused():
    """In a process of its own: here the type checks of the tests would answer first."""
    text = PRESETS["micro"].to_json().replace('"rq"', '"pq"')
    code = f"from samtok.config import MaskTokenizerConfig; MaskTokenizerConfig.from_json({text!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "CheckpointError: config.json: quantizer: kind must be rq, vq or fsq" in done.stderr


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize(
    "config",
    [
        micro(num_codes=32, num_levels=4, shared=True),
        micro(kind="vq", num_codes=40, num_levels=1),
        micro(kind="fsq", num_codes=60, num_levels=3, grid=(5, 4, 3)),
    ],
    ids=["rq_shared", "vq", "fsq"],
)
def test_a_tokenizer_of_any_kind_is_saved_and_gives_the_same_codes_and_masks(config, tmp_path):
    torch.manual_seed(0)
    model = MaskTokenizer(config).eval().requires_grad_(False)
    z = torch.randn(100, config.dim, generator=generator())
    model.quantizer.start(z, generator())
    model.save_pretrained(str(tmp_path))
    loaded = MaskTokenizer.from_pretrained(str(tmp_path))
    assert loaded.config == config
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    mask = np.zeros((40, 40), dtype=bool)
    mask[5:20, 8:30] = True
    codes = loaded.encode(image, [mask, ~mask])
    assert codes.shape == (2, config.quantizer.num_levels) and codes.max() < config.quantizer.num_codes
    np.testing.assert_array_equal(codes, model.encode(image, [mask, ~mask]))
    for levels in range(1, loaded.num_levels + 1):
        first = loaded.decode_logits(image, codes[:, :levels])
        np.testing.assert_array_equal(first, model.decode_logits(image, codes[:, :levels]))
