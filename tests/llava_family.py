"""LLaVA with the chat format of Llama 3: a whole family in one file, as docs/families.md shows it."""

from collections.abc import Sequence

import numpy as np
import torch
import transformers
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers import PreTrainedModel

from samtok.mllm.family import Adapter
from samtok.mllm.registry import Family, register
from samtok.mllm.tiny.config import TinyConfig
from samtok.mllm.tiny.models import Built, text_settings
from samtok.mllm.tiny.text import LLAMA_TEMPLATE, train_llama_tokenizer


class LlavaAdapter(Adapter):
    """Every image becomes a square of one size, and each of its patches a token."""

    family = "llava"
    start_of_text = "<|begin_of_text|>"
    end_of_turn = "<|eot_id|>"
    end_of_text = "<|end_of_text|>"
    image_token = "<|image|>"
    media_tokens = ("<|image|>",)

    def header(self, role: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n"

    def after_turn(self) -> str:
        return ""

    def image_text(self) -> str:
        return self.image_token

    def vision_tensors(self, images: Sequence[np.ndarray]) -> tuple[dict[str, Tensor], list[int]]:
        pixels = torch.as_tensor(np.stack(self._patches(images)["pixel_values"]))
        side = self.processor.patch_size  # pyright: ignore[reportAttributeAccessIssue]
        tokens = (pixels.shape[-2] // side) * (pixels.shape[-1] // side)
        return {"pixel_values": pixels}, [tokens] * len(images)

    def normalized(self, pixels: UInt8[Tensor, "image 3 s s"]) -> Float[Tensor, "image 3 s s"]:
        return self._scaled(pixels)

    def freeze(self, model: PreTrainedModel, *, vision: bool, projector: bool, llm: bool) -> None:
        model.requires_grad_(llm)
        model.get_submodule("model.vision_tower").requires_grad_(vision)
        model.get_submodule("model.multi_modal_projector").requires_grad_(projector)


def tiny(config: TinyConfig, texts: list[str]) -> Built:
    """Makes a tiny LLaVA."""
    tokenizer = train_llama_tokenizer(texts, vocab_size=config.vocab_size)
    square = {"height": config.image_size, "width": config.image_size}
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(size=square, do_center_crop=False),
        tokenizer=tokenizer,
        patch_size=config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAMA_TEMPLATE.replace("SYSTEM", repr(config.system)),
    )
    text = text_settings(config, tokenizer) | {
        "model_type": "llama",
        "bos_token_id": tokenizer.bos_token_id,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
    }
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": config.vision_dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.vision_layers,
        "num_attention_heads": config.vision_heads,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "initializer_range": config.init_std,
    }
    body = transformers.LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=tokenizer.get_vocab()["<|image|>"],
        tie_word_embeddings=config.tied,
    )
    return processor, lambda: transformers.LlavaForConditionalGeneration(body)


register(Family(name="llava", adapter=f"{__name__}:LlavaAdapter", tiny=f"{__name__}:tiny"))
