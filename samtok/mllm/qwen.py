"""Qwen2.5-VL, Qwen3-VL, Qwen3.5: the ChatML format, patches of any size, multimodal rotary positions."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from transformers import PreTrainedModel

from samtok.mllm.chat import Encoded
from samtok.mllm.family import Adapter


class QwenAdapter(Adapter):
    """What all of them share."""

    end_of_turn = "<|im_end|>"
    end_of_text = "<|endoftext|>"
    image_token = "<|image_pad|>"
    media_tokens = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    shares_images = True
    mergers: ClassVar[tuple[str, ...]]
    """Submodules of the vision model that make up the projector."""

    def header(self, role: str) -> str:
        return f"<|im_start|>{role}\n"

    def after_turn(self) -> str:
        return "\n"

    def image_text(self) -> str:
        return "<|vision_start|><|image_pad|><|vision_end|>"

    def vision_tensors(self, images: Sequence[np.ndarray]) -> tuple[dict[str, Tensor], list[int]]:
        seen = self._patches(images, temporal_patch_size=1)  # else every pixel stands there twice
        grids = seen["image_grid_thw"]
        tokens = grids.prod(-1) // self.image_processor.merge_size**2
        return {"pixel_values": seen["pixel_values"], "image_grid_thw": grids}, tokens.tolist()

    def normalized(self, pixels: UInt8[Tensor, "row pixel"]) -> Float[Tensor, "row value"]:
        side, times = self.image_processor.patch_size, self.image_processor.temporal_patch_size
        patches = self._scaled(pixels.reshape(-1, 3, side, side))
        return patches[:, :, None].expand(-1, -1, times, -1, -1).reshape(len(pixels), -1)

    def freeze(self, model: PreTrainedModel, *, vision: bool, projector: bool, llm: bool) -> None:
        model.requires_grad_(llm)
        visual = model.get_submodule("model.visual")
        visual.requires_grad_(vision)
        for name in self.mergers:
            visual.get_submodule(name).requires_grad_(projector)

    def positions(self, sample: Encoded) -> Int[Tensor, "axis token"]:
        """Returns 4 rows: the text's, then time, height and width.

        By the rule of transformers' ``get_rope_index``, which belongs to a model and so is out of reach of a
        loader: an image's tokens have one time and count rows and columns of its grid after merging, and text
        goes on after the larger of both.
        """
        merge = self.image_processor.merge_size
        grids = iter(sample.vision.get("image_grid_thw", ()))
        runs, counts = torch.unique_consecutive(sample.mm_token_type_ids, return_counts=True)
        blocks: list[Tensor] = []
        start = 0
        for kind, count in zip(runs.tolist(), counts.tolist(), strict=True):
            if not kind:
                blocks.append(torch.arange(start, start + count).expand(3, -1))
                start += count
                continue
            _, height, width = (int(size) for size in next(grids))
            grid = torch.cartesian_prod(torch.arange(height // merge), torch.arange(width // merge)).T
            blocks.append(torch.cat([torch.zeros(1, grid.shape[1], dtype=torch.long), grid]) + start)
            start += max(height, width) // merge
        return torch.cat([torch.arange(len(sample))[None], torch.cat(blocks, dim=1)])


class Qwen2_5VLAdapter(QwenAdapter):
    """Qwen2.5-VL."""

    family = "qwen2_5_vl"
    mergers = ("merger",)


class Qwen3VLAdapter(QwenAdapter):
    """Qwen3-VL: as Qwen2.5-VL, and features of several depths of the vision model go to the LLM."""

    family = "qwen3_vl"
    mergers = ("merger", "deepstack_merger_list")


class Qwen3_5Adapter(QwenAdapter):
    """Qwen3.5, dense. Three of four layers have linear attention, whose state packing must reset.

    The released models can think before they answer. Here every answer begins behind an empty thought, as
    their template writes it with ``enable_thinking`` off. It drops the empty thoughts of earlier answers; we
    keep them, since all answers of a dialogue are learnt at once and each must begin where generation does.
    """

    family = "qwen3_5"
    mergers = ("merger",)
    template_options: ClassVar[Mapping[str, object]] = {"enable_thinking": False}

    def header(self, role: str) -> str:
        return super().header(role) + "<think>\n\n</think>\n\n" * (role == "assistant")
