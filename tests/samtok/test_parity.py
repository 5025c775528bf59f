"""The authors' tokenizer and ours compute the same from the same weights (SAM2.1-large, float32)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from samtok.checkpoint import from_authors, from_sam2
from samtok.model.backbone import normalize
from samtok.model.prompts import MaskPrompts
from samtok.model.tokenizer import MaskTokenizer
from tests.published import GOLDEN, authors_state, sam2_state

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "parity_sam2.1_large.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.asarray(Image.open(GOLDEN / "parity_image.png").convert("RGB"))


@pytest.fixture(scope="module")
def tokenizer(golden, tmp_path_factory) -> MaskTokenizer:
    path = tmp_path_factory.mktemp("authors") / "mask_tokenizer_256x2.pth"
    torch.save(authors_state([golden["codebook0"], golden["codebook1"]]), path)
    return from_authors(str(path)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def features(tokenizer, image):
    return tokenizer.features_of([image])


def test_features_equal_the_authors(features, tokenizer, golden):
    coarse = features.coarse - tokenizer.no_mem_embed.reshape(1, -1, 1, 1)
    probe = coarse[0].flatten(1).T[::257, ::17]
    np.testing.assert_allclose(probe.detach().numpy(), golden["feat_probe"], atol=2e-3)
    assert float(coarse.mean()) == pytest.approx(golden["feat_mean"][2], abs=1e-4)
    assert float(coarse.std()) == pytest.approx(golden["feat_std"][2], abs=1e-3)


def test_embeddings_codes_and_commitment_equal_the_authors(tokenizer, features, golden):
    masks = list(golden["masks"])
    prompts, boxes = MaskPrompts.of(masks, 256).on("cpu")
    np.testing.assert_allclose(boxes, golden["boxes"], atol=1e-6)
    owners = torch.zeros(len(masks), dtype=torch.long)
    with torch.inference_mode():
        z = tokenizer.embed_masks(features.coarse[owners], prompts, boxes)
        quantized = tokenizer.quantizer(z)
    assert np.abs(z.numpy() - golden["z"]).max() < 1e-3
    assert quantized.codes.tolist() == golden["codes"].tolist()
    assert float(quantized.commitment) == pytest.approx(float(golden["commitment"]), abs=1e-4)
    assert tokenizer.codes_of(features, masks, [0] * 4).tolist() == golden["codes"].tolist()


def test_logits_equal_the_authors(tokenizer, features, golden):
    (logits,) = tokenizer.logits_of(features, golden["codes"], [0] * 4)
    assert np.abs(logits[:, ::4, ::4].numpy() - golden["logits"]).max() < 2e-2
    assert np.abs(logits[:, ::4, ::4].numpy() - golden["decoded"]).max() < 2e-2


def test_masks_come_out_at_the_size_of_the_image(tokenizer, features, image, golden):
    (logits,) = tokenizer.logits_of(features, golden["codes"][:1], [0])
    masks = tokenizer.masks_from_logits(logits, image.shape[:2], threshold=0.5)
    assert masks.shape == (1, 360, 500)


def test_sam2_weights_fill_all_but_the_encoder_and_codebooks(tmp_path: Path):
    path = tmp_path / "sam2.1_hiera_large.pt"
    state = sam2_state()
    torch.save(state, path)
    model = from_sam2(str(path), "sam2.1-large")
    weights, source = model.state_dict(), state["model"]
    decoder = "sam_mask_decoder.transformer.layers.1.self_attn.q_proj.weight"
    for part in ("mask_decoder", "mask_encoder"):  # the encoder starts as a copy (appendix B)
        assert torch.equal(weights[f"{part}.transformer.layers.1.self_attn.q_proj.weight"], source[decoder])
    token = source["sam_mask_decoder.mask_tokens.weight"][:1]
    assert torch.equal(weights["mask_encoder.mask_tokens.weight"], token)
    assert torch.equal(weights["no_mem_embed"], source["no_mem_embed"])
    assert normalize(torch.zeros(1, 2, 2, 3, dtype=torch.uint8)).shape == (1, 3, 2, 2)
