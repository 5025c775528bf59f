"""SAM2 as it is published, prompted with boxes and points: masks for datasets that have none.

What ``SAM2ImagePredictor`` of facebookresearch/sam2 predicts comes out, with an image encoded once for all
of its prompts: a box gets the mask of the decoder's own choice, a point the one of three whose predicted IoU
is highest.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from samtok.checkpoint import from_sam2
from samtok.folders import Read
from samtok.model.backbone import ImageFeatures
from samtok.model.prompts import BOX_LABELS
from samtok.model.tokenizer import MaskTokenizer

POINT_LABEL = 1
"""Of a point inside the object."""


class PromptedSegmenter:
    """Predicts masks of boxes and points.

    Args:
        sam2: With the weights of SAM2.1; what a tokenizer has besides is not used.
    """

    def __init__(self, sam2: MaskTokenizer) -> None:
        self.sam2 = sam2
        decoder = sam2.mask_decoder  # as sam2.1_hiera_*.yaml sets it for images
        decoder.dynamic_multimask_via_stability = sam2.config.multimask
        decoder.dynamic_multimask_stability_delta = 0.05
        decoder.dynamic_multimask_stability_thresh = 0.98

    @classmethod
    def from_pretrained(
        cls, uri: str, preset: str | None = None, *, device: str = "cpu", read: Read | None = None
    ) -> "PromptedSegmenter":
        """Loads SAM2.1; arguments and errors as of ``samtok.checkpoint.from_sam2``."""
        return cls(from_sam2(uri, preset, read=read).to(device).eval().requires_grad_(False))

    def segment(
        self,
        image: UInt8[np.ndarray, "height width 3"],
        boxes: Sequence[Sequence[float]] = (),
        points: Sequence[Sequence[float]] = (),
    ) -> tuple[Bool[np.ndarray, "prompt height width"], Float[np.ndarray, " prompt"]]:
        """Returns a mask for each box and then for each point, and the IoU that SAM2 predicts for it.

        Args:
            image: RGB.
            boxes: x0, y0, x1, y1 in pixels of the image.
            points: x, y in pixels of the image.
        """
        size_hw = image.shape[:2]
        found = np.zeros((len(boxes) + len(points), *size_hw), bool)
        scores = np.zeros(len(found), np.float32)
        if len(found):
            features = self.sam2.features_of([image])
            corners = self._scaled(boxes, size_hw).reshape(-1, 2, 2)
            clicked = self._scaled(points, size_hw).reshape(-1, 1, 2)
            start = 0
            for coordinates, labels, several in (
                (corners, BOX_LABELS, False),
                (clicked, (POINT_LABEL,), True),
            ):
                for part in filter(len, coordinates.split(self.sam2.max_masks)):  # none is split into one
                    logits, iou = self._predict(features, part, labels, several)
                    stop = start + len(part)
                    found[start:stop] = self.sam2.masks_from_logits(logits, (size_hw[0], size_hw[1]))
                    scores[start:stop] = iou.cpu().numpy()
                    start = stop
        return found, scores

    def _scaled(
        self, prompts: Sequence[Sequence[float]], size_hw: tuple[int, int]
    ) -> Float[Tensor, "prompt number"]:
        """Returns coordinates in pixels of the network's square images."""
        height, width = size_hw
        size = self.sam2.config.image_size
        rows = torch.tensor([list(prompt) for prompt in prompts], dtype=torch.float32)
        if not len(rows):
            return rows.reshape(0, 2)
        scale = torch.tensor([size / width, size / height]).repeat(rows.shape[1] // 2)
        return (rows * scale).to(self.sam2.device)

    @torch.inference_mode()
    def _predict(
        self, features: ImageFeatures, coordinates: Tensor, labels: Sequence[int], several: bool
    ) -> tuple[Float[Tensor, "prompt size size"], Float[Tensor, " prompt"]]:
        sam2, count = self.sam2, len(coordinates)
        of_prompts = features.of_masks(torch.zeros(count, dtype=torch.long, device=sam2.device))
        kinds = torch.tensor([labels], dtype=torch.int32, device=sam2.device).expand(count, -1)
        with sam2.autocast():
            sparse, dense = sam2.prompt_encoder(points=(coordinates, kinds), boxes=None, masks=None)
            logits, iou, _, _ = sam2.mask_decoder(
                image_embeddings=of_prompts.coarse,
                image_pe=sam2.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=several and sam2.config.multimask,
                repeat_image=False,
                high_res_features=[of_prompts.fine, of_prompts.middle],
            )
        best = iou.argmax(dim=1)
        rows = torch.arange(count, device=best.device)
        return logits[rows, best].float(), iou[rows, best].float()
