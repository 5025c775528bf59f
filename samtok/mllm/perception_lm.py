"""PerceptionLM: Llama 3's chat format, a thumbnail and tiles per image, positions of one axis.

Released checkpoints see with a model of the package ``timm``, which the extra ``perception-lm`` installs.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers import PreTrainedModel

from samtok.mllm.family import Adapter


class PerceptionLMAdapter(Adapter):
    """PerceptionLM. Vision tensors have one row per tile, so images of any number of tiles can be joined."""

    family = "perception_lm"
    start_of_text = "<|begin_of_text|>"
    end_of_turn = "<|eot_id|>"
    end_of_text = "<|end_of_text|>"
    image_token = "<|image|>"
    media_tokens = ("<|image|>", "<|video|>")

    def header(self, role: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n"

    def after_turn(self) -> str:
        return ""

    def image_text(self) -> str:
        return self.image_token

    def vision_tensors(self, images: Sequence[np.ndarray]) -> tuple[dict[str, Tensor], list[int]]:
        seen = self._patches(images)["pixel_values"]
        cell = self.processor.patch_size * self.processor.pooling_ratio  # pyright: ignore[reportAttributeAccessIssue]
        tokens = [len(tiles) * (tiles.shape[-2] // cell) * (tiles.shape[-1] // cell) for tiles in seen]
        return {"pixel_values": torch.cat(list(seen))[:, None]}, tokens

    def normalized(self, pixels: UInt8[Tensor, "tile 1 3 s s"]) -> Float[Tensor, "tile 1 3 s s"]:
        return self._scaled(pixels)

    def freeze(self, model: PreTrainedModel, *, vision: bool, projector: bool, llm: bool) -> None:
        model.requires_grad_(llm)
        model.get_submodule("model.vision_tower").requires_grad_(vision)
        model.get_submodule("model.multi_modal_projector").requires_grad_(projector)
