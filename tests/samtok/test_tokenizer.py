"""The mask tokenizer's behaviour, with random weights at the smallest size."""

import numpy as np
import pytest
import torch

from samtok.config import PRESETS
from samtok.errors import CheckpointError
from samtok.model.prompts import mask_prompts, normalized_boxes
from samtok.model.tokenizer import MaskTokenizer


@pytest.fixture(scope="module")
def tokenizer() -> MaskTokenizer:
    torch.manual_seed(0)
    return MaskTokenizer.from_preset("micro").eval().requires_grad_(False)


def picture(height: int = 48, width: int = 80, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def rectangles(count: int, height: int = 48, width: int = 80) -> list[np.ndarray]:
    rng, masks = np.random.default_rng(1), []
    for _ in range(count):
        y, x = rng.integers(0, height - 8), rng.integers(0, width - 8)
        mask = np.zeros((height, width), dtype=bool)
        mask[y : y + rng.integers(4, 30), x : x + rng.integers(4, 40)] = True
        masks.append(mask)
    return masks


def test_an_image_is_encoded_once_for_all_its_masks(tokenizer):
    calls = []
    hook = tokenizer.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    tokenizer.reconstruct(picture(), rectangles(9))
    hook.remove()
    assert len(calls) == 1


def test_codes_do_not_depend_on_how_masks_are_chunked(tokenizer):
    image, masks = picture(), rectangles(7)
    whole = tokenizer.encode(image, masks)
    tokenizer.max_masks = 3
    parts = tokenizer.encode(image, masks)
    tokenizer.max_masks = 64
    np.testing.assert_array_equal(whole, parts)
    assert whole.shape == (7, 2)
    assert whole.min() >= 0 and whole.max() < tokenizer.num_codes


def test_a_batch_of_images_of_any_sizes_equals_one_by_one(tokenizer):
    batch = [picture(), picture(100, 60, 2), picture(64, 64, 3)]
    masks = [rectangles(3), [], rectangles(2, 64, 64)]
    together = tokenizer.encode_batch(batch, masks)
    alone = [tokenizer.encode(image, of_image) for image, of_image in zip(batch, masks, strict=True)]
    assert [len(codes) for codes in together] == [3, 0, 2]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a, b)


def test_masks_come_back_at_the_size_of_the_image(tokenizer):
    image = picture()
    codes = tokenizer.encode(image, rectangles(2))
    assert tokenizer.decode(image, codes).shape == (2, 48, 80)
    assert tokenizer.decode_logits(image, codes).shape == (2, 16, 16)
    assert tokenizer.decode(image, codes[:0]).shape == (0, 48, 80)
    assert tokenizer.decode(image, codes[:, :1]).shape == (2, 48, 80)  # a coarser mask from the first word


def test_a_higher_threshold_gives_smaller_masks(tokenizer):
    image = picture()
    codes = tokenizer.encode(image, rectangles(1))
    loose, tight = (tokenizer.decode(image, codes, threshold=t) for t in (0.0, 0.5))
    assert not (tight & ~loose).any()


def test_reconstruction_reports_the_iou_of_each_mask(tokenizer):
    image, masks = picture(), rectangles(3)
    made = tokenizer.reconstruct(image, masks)
    for mask, decoded, iou in zip(masks, made.masks, made.iou, strict=True):
        assert iou == pytest.approx((mask & decoded).sum() / (mask | decoded).sum())
    assert tokenizer.reconstruct(image, []).codes.shape == (0, 2)


def test_an_empty_mask_is_refused_by_name(tokenizer):
    masks = [*rectangles(1), np.zeros((48, 80), dtype=bool)]
    with pytest.raises(ValueError, match="mask 1 of 2 is empty"):
        tokenizer.encode(picture(), masks)


def test_a_mask_of_another_size_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"mask 0 of image 0 is \(64, 64\)"):
        tokenizer.encode(picture(), rectangles(1, 64, 64))


def test_a_picture_of_0_and_255_is_not_taken_for_a_mask(tokenizer):
    picture_of_mask = rectangles(1)[0].astype(np.uint8) * 255
    with pytest.raises(ValueError, match="mask 0 of image 0 is uint8, expected bool"):
        tokenizer.encode(picture(), [picture_of_mask])


def test_damaged_weights_do_not_pass_for_codes():
    broken = MaskTokenizer.from_preset("micro").eval().requires_grad_(False)
    broken.mask_encoder.mask_tokens.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        broken.encode(picture(), rectangles(1))


def test_an_image_that_is_not_rgb_is_refused(tokenizer):
    with pytest.raises(ValueError, match="must be RGB uint8"):
        tokenizer.encode_batch([np.zeros((4, 4), np.uint8)], [[]])


@pytest.mark.parametrize("codes", [[[64, 0]], [[-1, 0]]])
def test_codes_out_of_range_are_refused(tokenizer, codes):
    with pytest.raises(ValueError, match=r"must be in \[0, 64\)"):
        tokenizer.decode(picture(), np.array(codes))


def test_bfloat16_runs_and_gives_float32_logits(tokenizer):
    image, masks = picture(), rectangles(2)
    tokenizer.autocast_dtype = torch.bfloat16
    codes = tokenizer.encode(image, masks)
    logits = tokenizer.decode_logits(image, codes)
    tokenizer.autocast_dtype = None
    assert codes.shape == (2, 2) and logits.dtype == np.float32


def test_without_a_box_prompt_a_box_changes_nothing_and_the_mask_still_does(tokenizer):
    image, masks = picture(), rectangles(2)
    features = tokenizer.features_of([image])
    coarse = features.coarse.expand(2, -1, -1, -1)
    prompts = mask_prompts(masks, tokenizer.config.mask_size, "cpu")
    boxes = torch.from_numpy(normalized_boxes(masks))
    with torch.inference_mode():
        bare, boxed = (tokenizer.embed_masks(coarse, prompts, given) for given in (None, boxes))
    assert bare.shape == boxed.shape and not torch.allclose(bare, boxed)
    assert not torch.allclose(bare[0], bare[1])
    codes = tokenizer.codes_of(features, masks, [0, 0], box_prompt=False)
    assert (codes == tokenizer.quantizer.encode(bare).numpy()).all()
    assert (codes != tokenizer.codes_of(features, masks, [0, 0])).any()


@pytest.mark.parametrize("preset", sorted(name for name in PRESETS if name.startswith("sam2.1-")))
def test_presets_have_the_numbers_of_the_sam2_package(preset):
    from pathlib import Path

    import sam2
    from omegaconf import OmegaConf

    short = {"tiny": "t", "small": "s", "base-plus": "b+", "large": "l"}[preset.removeprefix("sam2.1-")]
    path = Path(sam2.__file__).parent / "configs" / "sam2.1" / f"sam2.1_hiera_{short}.yaml"
    trunk = OmegaConf.load(path).model.image_encoder.trunk
    backbone = PRESETS[preset].backbone
    defaults = {"stages": (2, 3, 16, 3), "global_att_blocks": (12, 16, 20), "window_spec": (8, 4, 14, 7)}
    defaults["window_pos_embed_bkg_spatial_size"] = (14, 14)
    for name in ("embed_dim", "num_heads", *defaults):
        wanted = trunk.get(name, defaults.get(name))
        wanted = tuple(wanted) if not isinstance(wanted, int) else wanted
        assert getattr(backbone, name) == wanted, name
