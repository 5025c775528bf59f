"""SAM2 with boxes and points: what the published predictor gives."""

import numpy as np
import pytest
import torch

from samtok.config import PRESETS
from samtok.model.prompted import PromptedSegmenter
from samtok.model.tokenizer import MaskTokenizer
from samtok.shapes import WorldConfig, make_scene

pytestmark = [
    pytest.mark.slow,
    pytest.mark.numerics,
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning"),  # of SAM2's own transforms
]


@pytest.fixture(scope="module")
def segmenter() -> PromptedSegmenter:
    """Of SAM2.1-tiny's architecture, with random weights."""
    torch.manual_seed(0)
    model = MaskTokenizer(PRESETS["sam2.1-tiny"]).eval().requires_grad_(False)
    torch.nn.init.normal_(model.no_mem_embed, std=0.02)
    return PromptedSegmenter(model)


def predictor_of(segmenter: PromptedSegmenter):
    """Returns the published predictor with the same weights."""
    from sam2.modeling.sam2_base import SAM2Base
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    model = segmenter.sam2
    base = SAM2Base(
        image_encoder=model.image_encoder,
        memory_attention=torch.nn.Identity(),
        memory_encoder=torch.nn.Identity(),
        num_maskmem=0,
        image_size=1024,
        use_high_res_features_in_sam=True,
        directly_add_no_mem_embed=True,
        iou_prediction_use_sigmoid=True,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        use_multimask_token_for_obj_ptr=True,
        multimask_output_in_sam=True,
        sam_mask_decoder_extra_args={
            "dynamic_multimask_via_stability": True,
            "dynamic_multimask_stability_delta": 0.05,
            "dynamic_multimask_stability_thresh": 0.98,
        },
    ).eval()
    base.sam_mask_decoder.load_state_dict(model.mask_decoder.state_dict())
    base.sam_prompt_encoder.load_state_dict(model.prompt_encoder.state_dict())
    base.no_mem_embed.data.copy_(model.no_mem_embed)
    return SAM2ImagePredictor(base)


def test_boxes_and_points_give_the_masks_of_the_published_predictor(segmenter):
    scene = make_scene(0, 0, WorldConfig.square(1024))  # no resize, so both see the same pixels
    boxes, points = [[100.0, 200.0, 500.0, 700.0], [0.0, 0.0, 1023.0, 400.0]], [[300.0, 450.0]]
    found, scores = segmenter.segment(scene.image, boxes, points)
    assert found.shape == (3, 1024, 1024) and found.dtype == bool
    predictor = predictor_of(segmenter)
    predictor.set_image(scene.image)
    theirs, expected, _ = predictor.predict(box=np.array(boxes), multimask_output=False)
    for ours, other, score, iou in zip(found, theirs[:, 0], scores, expected[:, 0], strict=False):
        assert (ours == other.astype(bool)).mean() > 0.9999
        assert score == pytest.approx(iou, abs=1e-4)
    masks, ious, _ = predictor.predict(
        point_coords=np.array(points), point_labels=np.array([1]), multimask_output=True
    )
    best = int(ious.argmax())
    assert (found[2] == masks[best].astype(bool)).mean() > 0.9999
    assert scores[2] == pytest.approx(ious[best], abs=1e-4)


def test_prompts_are_in_pixels_of_the_image_whatever_its_size(segmenter):
    scene = make_scene(0, 0, WorldConfig.square(1024))
    half = scene.image[::2, ::2].copy()
    large = np.repeat(np.repeat(half, 2, axis=0), 2, axis=1)
    small, scores = segmenter.segment(half, [[50.0, 100.0, 250.0, 350.0]])
    twice, again = segmenter.segment(large, [[100.0, 200.0, 500.0, 700.0]])
    assert small.shape == (1, 512, 512)
    assert scores[0] == pytest.approx(again[0], abs=0.05)
    assert (twice[0, ::2, ::2] == small[0]).mean() > 0.9


def test_without_prompts_nothing_is_encoded(segmenter, monkeypatch):
    monkeypatch.setattr(segmenter.sam2, "features_of", lambda batch: pytest.fail("was encoded"))
    found, scores = segmenter.segment(np.zeros((5, 6, 3), np.uint8))
    assert found.shape == (0, 5, 6) and len(scores) == 0
