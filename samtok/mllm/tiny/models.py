"""Tiny random MLLMs of each family as real checkpoint folders, for tests, smoke runs and a default.

The classes are transformers' own, so what works with a tiny model works with a released one; only the numbers
are small (``config.py``).
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Float
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin

from samtok.mllm.adapters import adapter_for, save_pretrained
from samtok.mllm.image_size import limit_pixels
from samtok.mllm.registry import family_of
from samtok.mllm.rows import extend
from samtok.mllm.tiny.config import TinyConfig
from samtok.mllm.tiny.text import (
    CHATML_TEMPLATE,
    LLAMA_TEMPLATE,
    QWEN3_5_TEMPLATE,
    default_texts,
    train_llama_tokenizer,
    train_qwen_tokenizer,
)
from samtok.mllm.tiny.vision import load_vision
from samtok.mllm.vocab import MaskVocabulary

__all__ = ["TinyConfig", "build_tiny", "default_texts"]


def build_tiny(
    family: str,
    folder: str | Path,
    *,
    vocabulary: MaskVocabulary | None,
    texts: Iterable[str],
    seed: int,
    config: TinyConfig | None = None,
    tokenizer_sha256: str | None = None,
    geometry: Float[Tensor, "level num_codes dim"] | None = None,
    pretrained_vision: bool = False,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> None:
    """Writes a model of random weights with its processor, as a folder like those of released checkpoints.

    Args:
        vocabulary: Mask words to add; None gives a folder as it comes from a hub, without ``samtok.json``.
        texts: What the text tokenizer is trained on, such as ``default_texts()``.
        seed: Of the weights; equal seeds give equal files.
        tokenizer_sha256: Of the mask tokenizer, for ``samtok.json``.
        geometry: Of its codes, for the rows of the words (``rows.extend``); by default they are noise.
        pretrained_vision: Give a Qwen2.5-VL the vision encoder that ships (``vision.py``).
        min_pixels: As ``limit_pixels`` takes them; by default all images get one size, ``config.image_size``.
        max_pixels: Likewise.
    """
    config = config or TinyConfig()
    processor, make = family_of(family).load("tiny")(config, list(texts))
    limit_pixels(processor, min_pixels=min_pixels, max_pixels=max_pixels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
    stop = _stop_ids(processor.tokenizer)  # pyright: ignore[reportAttributeAccessIssue]
    model.generation_config = GenerationConfig(eos_token_id=stop, pad_token_id=stop[1])
    if pretrained_vision:
        load_vision(model.get_submodule("model.visual"), config)
    model.eval()
    if vocabulary is None:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return
    extend(model, processor.tokenizer, vocabulary, seed=seed, geometry=geometry)
    adapter = adapter_for(family, processor, vocabulary, tokenizer_sha256=tokenizer_sha256)
    save_pretrained(model, adapter, folder)


def vision_of(config: TinyConfig, *, seed: int) -> tuple[nn.Module, Any]:
    """Returns the vision encoder of a tiny Qwen2.5-VL with random weights, and its image processor."""
    processor, make = qwen2_5_vl(config, default_texts())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().get_submodule("model.visual"), processor.image_processor


Built = tuple[ProcessorMixin, Callable[[], PreTrainedModel]]
"""What makes a tiny MLLM out of sizes and texts returns: its processor, and what draws the weights."""


def qwen2_5_vl(config: TinyConfig, texts: list[str]) -> Built:
    """Makes a tiny Qwen2.5-VL."""
    tokenizer = train_qwen_tokenizer(texts, vocab_size=config.vocab_size)
    processor = _processor(
        transformers.Qwen2_5_VLProcessor, transformers.Qwen2VLVideoProcessor, config, tokenizer
    )
    text = {"use_sliding_window": False, "max_window_layers": config.num_layers}
    vision = {
        "window_size": config.image_size,
        "fullatt_block_indexes": list(range(config.vision_layers)),
        "rope_parameters": {"rope_type": "axial", "rope_theta": config.vision_rope_theta},
    }
    body = transformers.Qwen2_5_VLConfig(**_parts(config, tokenizer, text, vision))
    return processor, lambda: transformers.Qwen2_5_VLForConditionalGeneration(body)


def qwen3_vl(config: TinyConfig, texts: list[str]) -> Built:
    """Makes a tiny Qwen3-VL."""
    tokenizer = train_qwen_tokenizer(texts, vocab_size=config.vocab_size)
    processor = _processor(
        transformers.Qwen3VLProcessor, transformers.Qwen3VLVideoProcessor, config, tokenizer
    )
    vision = {
        "hidden_act": "gelu_pytorch_tanh",
        "num_position_embeddings": (config.image_size // config.patch_size) ** 2,
        "deepstack_visual_indexes": list(range(config.vision_layers))[:1],
    }
    text = {"head_dim": config.head_dim, "rope_parameters": {"mrope_interleaved": True}}
    body = transformers.Qwen3VLConfig(**_parts(config, tokenizer, text, vision))
    return processor, lambda: transformers.Qwen3VLForConditionalGeneration(body)


def qwen3_5(config: TinyConfig, texts: list[str]) -> Built:
    """Makes a tiny Qwen3.5, whose layers have linear and full attention in turn."""
    tokenizer = train_qwen_tokenizer(texts, vocab_size=config.vocab_size)
    tokenizer.add_tokens(["<think>", "</think>"])  # text, not special ones
    processor = _processor(
        transformers.Qwen3VLProcessor,
        transformers.Qwen3VLVideoProcessor,
        config,
        tokenizer,
        template=QWEN3_5_TEMPLATE,
    )
    vision = {
        "hidden_act": "gelu_pytorch_tanh",
        "num_position_embeddings": (config.image_size // config.patch_size) ** 2,
    }
    rotated = 0.5  # of a head; a quarter in released ones, whose heads are wider
    rope = {
        "mrope_interleaved": True,
        "partial_rotary_factor": rotated,
        "mrope_section": config.mrope_section(rotated),
    }
    kinds = ("linear_attention", "full_attention")
    text = {
        "head_dim": config.head_dim,
        "layer_types": [kinds[layer % 2] for layer in range(config.num_layers)],
        "linear_num_key_heads": config.num_heads // 2 or 1,
        "linear_num_value_heads": config.num_heads,
        "linear_key_head_dim": config.head_dim,
        "linear_value_head_dim": config.head_dim,
        "rope_parameters": rope,
    }
    body = transformers.Qwen3_5Config(**_parts(config, tokenizer, text, vision))
    return processor, lambda: transformers.Qwen3_5ForConditionalGeneration(body)


def perception_lm(config: TinyConfig, texts: list[str]) -> Built:
    """Makes a tiny PerceptionLM."""
    tokenizer = train_llama_tokenizer(texts, vocab_size=config.vocab_size)
    tile = {"height": config.image_size // 2, "width": config.image_size // 2}
    processor = transformers.PerceptionLMProcessor(
        image_processor=transformers.PerceptionLMImageProcessor(
            tile_size=tile["width"], max_num_tiles=4, size=tile
        ),
        tokenizer=tokenizer,
        video_processor=transformers.PerceptionLMVideoProcessor(size=tile),
        patch_size=config.patch_size,
        pooling_ratio=2,
        chat_template=LLAMA_TEMPLATE.replace("SYSTEM", repr(config.system)),
    )
    text = text_settings(config, tokenizer) | {
        "model_type": "llama",
        "bos_token_id": tokenizer.bos_token_id,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tied,
    }
    body = transformers.PerceptionLMConfig(
        text_config=text,
        vision_config={  # in place of timm's in released checkpoints; like it, with a class token
            "model_type": "clip_vision_model",
            "hidden_size": config.vision_dim,
            "intermediate_size": config.hidden_dim,
            "num_hidden_layers": config.vision_layers,
            "num_attention_heads": config.vision_heads,
            "image_size": tile["width"],
            "patch_size": config.patch_size,
            "initializer_range": config.init_std,
            "model_args": {"embed_dim": config.vision_dim},  # where the projector looks for the width
        },
        vision_use_cls_token=True,
        projector_pooling_ratio=2,
        image_token_id=tokenizer.get_vocab()["<|image|>"],
        video_token_id=tokenizer.get_vocab()["<|video|>"],
    )
    return processor, lambda: transformers.PerceptionLMForConditionalGeneration(body)


def _processor(
    kind: Any, video: Any, config: TinyConfig, tokenizer: Any, *, template: str = CHATML_TEMPLATE
) -> ProcessorMixin:
    area = config.image_size**2
    patches: dict[str, Any] = {
        "patch_size": config.patch_size,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": {"shortest_edge": area, "longest_edge": area},
    }
    return kind(
        image_processor=transformers.Qwen2VLImageProcessor(**patches),
        tokenizer=tokenizer,
        video_processor=video(**patches),
        chat_template=template.replace("SYSTEM", repr(config.system)),
    )


def text_settings(config: TinyConfig, tokenizer: Any) -> dict[str, Any]:
    """Returns what the config of a tiny language model has whatever its kind."""
    stop = _stop_ids(tokenizer)
    return {
        "vocab_size": len(tokenizer) + config.padded_rows,
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "max_position_embeddings": tokenizer.model_max_length,
        "initializer_range": config.init_std,
        "bos_token_id": None,
        "eos_token_id": stop[0],
        "pad_token_id": stop[1],
    }


def _parts(
    config: TinyConfig, tokenizer: Any, text: dict[str, Any], vision: dict[str, Any]
) -> dict[str, Any]:
    """Returns the config of a Qwen-VL out of what is its own."""
    ids = tokenizer.get_vocab()
    rope = {"rope_type": "default", "rope_theta": config.rope_theta, "mrope_section": config.mrope_section()}
    rope |= text.get("rope_parameters", {})
    shared = {
        "depth": config.vision_layers,
        "hidden_size": config.vision_dim,
        "intermediate_size": config.hidden_dim,
        "num_heads": config.vision_heads,
        "patch_size": config.patch_size,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": config.dim,
        "initializer_range": config.init_std,
    }
    return {
        "text_config": text_settings(config, tokenizer) | text | {"rope_parameters": rope},
        "vision_config": shared | vision,
        "tie_word_embeddings": config.tied,
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }


def _stop_ids(tokenizer: Any) -> list[int]:
    """Returns the tokens that end a turn and a text."""
    ends = ("<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<|end_of_text|>")
    ids = tokenizer.get_vocab()
    return [ids[token] for token in ends if token in ids]
