"""The mask tokenizer's behaviour, with random weights at the smallest size."""

import numpy as np
import pytest
import torch
from PIL import Image

from samtok.config import PRESETS
from samtok.errors import CheckpointError
from samtok.masks import encode as encode_mask
from samtok.model.precision import tf32
from samtok.model.prompts import MaskPrompts
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


def test_codes_do_not_depend_on_where_channels_are_in_memory(tokenizer, tmp_path):
    tokenizer.save_pretrained(str(tmp_path))
    other = MaskTokenizer.from_pretrained(str(tmp_path), channels_last=True)
    weight = other.image_encoder.neck.convs[0].conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    image, masks = picture(), rectangles(7)
    np.testing.assert_array_equal(tokenizer.encode(image, masks), other.encode(image, masks))
    own = tokenizer.features_of([image]).coarse
    assert not torch.equal(own, torch.zeros_like(own))
    torch.testing.assert_close(other.features_of([image]).coarse, own, rtol=1e-4, atol=1e-4)


def test_products_in_tf32_are_a_setting_of_the_process_that_a_block_gives_back():
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    with tf32(True):
        assert all(backend.allow_tf32 for backend in backends)
        with tf32(False):
            assert not any(backend.allow_tf32 for backend in backends)
        assert all(backend.allow_tf32 for backend in backends)
    assert [backend.allow_tf32 for backend in backends] == before


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
    with pytest.raises(ValueError, match="mask 1 of image 0 is empty"):
        tokenizer.encode(picture(), masks)


def test_a_mask_of_another_size_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"mask 0 of image 0 is \(64, 64\)"):
        tokenizer.encode(picture(), rectangles(1, 64, 64))


def test_images_and_masks_in_other_forms_give_the_same_codes(tokenizer, tmp_path):
    image, masks = picture(), rectangles(2)
    wanted = tokenizer.encode(image, masks)
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    rgba = Image.fromarray(np.dstack([image, image[..., :1]]), mode="RGBA")
    for given in (torch.from_numpy(image), Image.fromarray(image), rgba, path, str(path)):
        np.testing.assert_array_equal(tokenizer.encode(given, masks), wanted)
        np.testing.assert_array_equal(tokenizer.decode(given, wanted), tokenizer.decode(image, wanted))
    rles = [{"size": [48, 80], "counts": encode_mask(mask)} for mask in masks]
    for given in (np.stack(masks), torch.from_numpy(np.stack(masks)), map(Image.fromarray, masks), rles):
        given = list(given) if isinstance(given, map) else given
        np.testing.assert_array_equal(tokenizer.encode(image, given), wanted)
    for given in (masks[0], torch.from_numpy(masks[0]), Image.fromarray(masks[0]), rles[0]):
        np.testing.assert_array_equal(tokenizer.encode(image, given), wanted[:1])


def test_flipped_and_read_only_views_are_masks_and_images_like_others(tokenizer):
    image, masks = picture(), rectangles(2)
    wanted = tokenizer.encode(image[:, ::-1].copy(), [mask[:, ::-1].copy() for mask in masks])
    flipped = [mask[:, ::-1] for mask in masks]
    for view in flipped:
        view.flags.writeable = False
    np.testing.assert_array_equal(tokenizer.encode(image[:, ::-1], flipped), wanted)


def test_gray_pictures_are_converted_and_gray_arrays_are_not(tokenizer):
    gray, masks = picture()[..., 0], rectangles(1)
    wanted = tokenizer.encode(np.repeat(gray[..., None], 3, axis=2), masks)
    np.testing.assert_array_equal(tokenizer.encode(Image.fromarray(gray), masks), wanted)
    for array in (gray, np.dstack([gray] * 4), picture() / 255, picture().transpose(2, 0, 1), picture()[:0]):
        with pytest.raises(ValueError, match="image 1 must be RGB uint8 .* a PIL image of another mode"):
            tokenizer.encode_batch([picture(), array], [masks, masks])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"size": [48, 80]}, "mask 0 of image 1: .*counts"),
        ({"size": [80, 48], "counts": [3840]}, "mask 0 of image 1: .*80"),
        ({"size": [48, 80], "counts": [3840]}, "mask 0 of image 1 is empty"),
        (np.ones((48, 80, 1), bool), r"mask 0 of image 1 is \(48, 80, 1\), its image \(48, 80\)"),
        (torch.ones(48, 80, dtype=torch.bfloat16), "mask 0 of image 1 is float32, expected bool"),
        ("mask.png", "mask 0 of image 1 is <U8, expected bool"),
    ],
)
def test_masks_of_other_forms_are_refused_with_the_number_of_their_image(tokenizer, mask, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.encode_batch([picture(), picture()], [rectangles(1), [mask]])


@pytest.mark.slow
@pytest.mark.numerics
@pytest.mark.parametrize(
    "kind", ["int8", "uint8", "int16", "uint16", ">i4", "uint64", "list", "tensor", "column"]
)
def test_codes_of_any_whole_numbers_decode_alike(tokenizer, kind):
    image, codes = picture(), tokenizer.encode(picture(), rectangles(3))
    given = {
        "list": codes.tolist(),
        "tensor": torch.from_numpy(codes).to(torch.uint8),
        "column": np.array([*[row.astype(np.int16) for row in codes], None], dtype=object)[:-1],
    }.get(kind)
    given = codes.astype(kind) if given is None else given
    np.testing.assert_array_equal(
        tokenizer.decode_logits(image, given), tokenizer.decode_logits(image, codes)
    )
    with torch.inference_mode():
        few = torch.from_numpy(codes)
        for dtype in (torch.uint8, torch.int16):
            assert torch.equal(tokenizer.quantizer.decode(few.to(dtype)), tokenizer.quantizer.decode(few))


@pytest.mark.parametrize("codes", [[1, 2], [[1.0, 2.0]], [[True, False]], [[1], [1, 2]], [[[1]]], ["ab"]])
def test_what_is_no_row_of_codes_is_refused(tokenizer, codes):
    with pytest.raises(ValueError, match="codes must be whole numbers, a row of levels for each mask"):
        tokenizer.decode(picture(), codes)


def test_a_batch_is_bounded_in_images_and_what_has_no_masks_or_codes_is_not_encoded(tokenizer):
    sizes = []
    hook = tokenizer.image_encoder.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
    found = tokenizer.encode_batch([picture()] * 11, [rectangles(1)] * 5 + [[]] * 5 + [rectangles(2)])
    assert sizes == [4, 1, 1] and [len(codes) for codes in found] == [1] * 5 + [0] * 5 + [2]
    for none in ([], np.empty((0, 2), np.int64), np.empty((0, 0))):
        assert tokenizer.decode(picture(), none).shape == (0, 48, 80)
        assert tokenizer.decode_logits(picture(), none).shape == (0, 16, 16)
    hook.remove()
    assert sizes == [4, 1, 1]
    assert tokenizer.encode_batch([], []) == []


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.double()])
def test_weights_of_another_type_are_refused(tokenizer, cast):
    with pytest.raises(ValueError, match="stay in float32. .* dtype=torch.bfloat16 to from_pretrained"):
        cast(tokenizer)
    assert tokenizer.to("cpu").float().no_mem_embed.dtype == torch.float32


def test_a_picture_of_0_and_255_is_not_taken_for_a_mask(tokenizer):
    picture_of_mask = rectangles(1)[0].astype(np.uint8) * 255
    with pytest.raises(ValueError, match="mask 0 of image 0 is uint8, expected bool"):
        tokenizer.encode(picture(), [picture_of_mask])


def test_damaged_weights_do_not_pass_for_codes():
    broken = MaskTokenizer.from_preset("micro").eval().requires_grad_(False)
    broken.mask_encoder.mask_tokens.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        broken.encode(picture(), rectangles(1))


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
    prompts, boxes = MaskPrompts.of(masks, tokenizer.config.mask_size).on("cpu")
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
