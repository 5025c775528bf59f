"""A step of fine-tuning of a Qwen2.5-VL with the numbers of the 3B model and random weights.

Our own dialogues, adapter and loss; plain AdamW, whose moments have the weights' type, without an engine.
"""

import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from samtok.mllm.activations import keep_fewer_activations
from samtok.mllm.adapters import load_adapter
from samtok.mllm.chat import Encoded, Turn
from samtok.mllm.family import Adapter
from samtok.mllm.loss import answer_loss
from samtok.mllm.packed_attention import attend_by_dialogue
from samtok.mllm.tiny.models import TinyConfig, build_tiny, default_texts
from samtok.mllm.vocab import MaskVocabulary
from samtok.shapes import WorldConfig, make_scene
from samtok.words import format_words
from tests.benchmarks.gpu.place import Found, Place

IMAGE_HW = (768, 1024)
"""Of the images; they are resized to about 896 x 896 pixels, so 1024 image tokens."""
LIKE_3B = TinyConfig(patch_size=14, image_size=896)
"""Patches of the released model's size; from this only the processor is taken."""
TEXT = {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 152_192,  # 151,665 tokens and 514 mask words, up to a multiple of 64
    "initializer_range": 0.02,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 2048,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "initializer_range": 0.02,
}
"""Numbers of Qwen/Qwen2.5-VL-3B-Instruct's config.json."""

BYTES = 8
"""Of a weight in bfloat16: itself, its gradient, two moments."""
ACTIVATIONS = 12 * 2**30
"""Room for activations and logits of eight dialogues."""
DEPTHS = (36, 24, 16, 8, 4)
QUESTIONS = 4
"""Questions and answers with a mask in each dialogue."""


def step(place: Place) -> Found:
    """Trains some steps on one batch, padded and packed."""
    adapter, model, note = model_3b(place)
    adapter.freeze(model, vision=False, projector=True, llm=True)
    keep_fewer_activations(model.train())
    samples = [_dialogue(adapter, number) for number in range(place.sizes.dialogues)]
    rows = [_steps(place, adapter, model, samples, packed=False)]
    attend_by_dialogue(model)
    rows.append(_steps(place, adapter, model, samples, packed=True))
    losses = [row.pop("losses") for row in rows]
    problems = []
    for name, found in zip(("padded", "packed"), losses, strict=True):
        if not all(map(math.isfinite, found)):
            problems.append(f"losses {found} {name} are not finite.")
    if not losses[1][0] < 1.05 * losses[0][-1]:
        problems.append(
            f"packed the loss begins at {losses[1][0]:.4f}, padded it ended at {losses[0][-1]:.4f}."
        )
    return Found(rows, note, problems)


def _steps(
    place: Place, adapter: Adapter, model: Any, samples: list[Encoded], *, packed: bool
) -> dict[str, Any]:
    place.forget_memory()
    made = adapter.pack(samples) if packed else adapter.collate(samples)
    batch = {name: value.to(place.device) for name, value in made.items()}
    learnt = sum(sample.num_learnt for sample in samples)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=place.device == "cuda")
    losses: list[Tensor] = []

    def take() -> None:
        loss = answer_loss(model, batch) / learnt
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0, error_if_nonfinite=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())

    took = place.median_s(take)
    tokens = sum(map(len, samples))
    flops = _flops(model, batch, tokens=tokens, learnt=learnt)
    return {
        "packed": packed,
        "layers": model.config.get_text_config().num_hidden_layers,
        "parameters_b": sum(weight.numel() for weight in model.parameters()) / 1e9,
        "trained_b": sum(weight.numel() for weight in trained) / 1e9,
        "dialogues": len(samples),
        "tokens": tokens,
        "computed_tokens": batch["input_ids"].numel(),
        "learnt_tokens": learnt,
        "step_s": took,
        "tokens_per_s": tokens / took,
        "model_tflop_per_step": flops / 1e12,
        "share_of_peak": place.share_of_peak(flops, took, "bfloat16"),
        "peak_gib": place.peak_gib(),
        "first_loss": float(losses[0]),
        "last_loss": float(losses[-1]),
        "losses": [float(loss) for loss in losses],
    }


def _flops(model: Any, batch: Mapping[str, Tensor], *, tokens: int, learnt: int) -> int:
    """Returns the model's FLOPs of a step. The counter of torch 2.11 refuses grouped heads on a GPU."""

    def weights(name: str) -> int:
        return sum(weight.numel() for weight in model.get_submodule(name).parameters())

    trained = weights("model.language_model.layers") * tokens + weights("lm_head") * learnt
    return 6 * trained + 2 * weights("model.visual") * len(batch["pixel_values"])


def model_3b(place: Place, *, bytes_each: int = BYTES) -> tuple[Adapter, Any, str]:
    """Makes a model on the device in bfloat16; returns its adapter, it, and what to know of it.

    Args:
        bytes_each: What a weight needs of the GPU's memory; of too large a model there are fewer layers.
    """
    place.forget_memory()
    with tempfile.TemporaryDirectory(prefix="samtok-") as folder:
        numbers = LIKE_3B if place.sizes.mllm else TinyConfig()
        vocabulary = MaskVocabulary(256, 2)
        texts = default_texts()
        build_tiny("qwen2_5_vl", folder, vocabulary=vocabulary, texts=texts, seed=0, config=numbers)
        adapter = load_adapter(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
    note = (
        "Random weights in bfloat16, gradient checkpointing, vision encoder frozen, AdamW in bfloat16, sdpa "
        "attention; the same dialogues padded and packed. The share of the peak is of the model's FLOPs: 6 "
        "for a weight and token, 2 for a frozen one and patch; attention and second forward passes are not "
        "counted."
    )
    if place.sizes.mllm:
        depth = _depth(place, config, bytes_each)
        config = like_3b(config, depth)
        note += "" if depth == DEPTHS[0] else f" Only {depth} of {DEPTHS[0]} layers fit into the free memory."
    with torch.device(place.device):
        torch.manual_seed(0)
        model = make(config)
    return adapter, model, note


def _depth(place: Place, config: dict[str, Any], bytes_each: int) -> int:
    """Returns the most layers whose training fits into the free memory of the GPU."""
    if place.device != "cuda":
        return DEPTHS[0]
    free, _ = torch.cuda.mem_get_info()
    for depth in DEPTHS:
        with torch.device("meta"):
            weights = sum(weight.numel() for weight in make(like_3b(config, depth)).parameters())
        if bytes_each * weights + ACTIVATIONS < free:
            return depth
    raise RuntimeError(f"{free / 2**30:.1f} GiB of GPU memory are free, too few for {DEPTHS[-1]} layers.")


def like_3b(config: dict[str, Any], depth: int) -> dict[str, Any]:
    """Returns the config of the 3B model, with so many layers and the token ids of another config."""
    ids = {name: value for name, value in config.items() if name.endswith("_token_id")}
    text = {**TEXT, "num_hidden_layers": depth}
    return {**ids, "tie_word_embeddings": True, "text_config": text, "vision_config": VISION}


def make(config: dict[str, Any]) -> Any:
    """Makes a Qwen2.5-VL of random weights in bfloat16."""
    body = transformers.Qwen2_5_VLConfig(**config)
    kind = transformers.AutoModelForImageTextToText
    return kind.from_config(body, dtype=torch.bfloat16, attn_implementation="sdpa")


def _dialogue(adapter: Adapter, number: int) -> Encoded:
    """Asks about the shapes of a scene; the answers have masks of any words."""
    rng = np.random.default_rng(number)
    scene = make_scene(0, number, WorldConfig(sizes_hw=(IMAGE_HW,)))
    turns = []
    for index in range(QUESTIONS):
        kind = scene.objects[index % len(scene.objects)].kind
        shown: tuple[int, ...] = () if index else (0,)
        turns.append(Turn("user", (*shown, f"Please find the {kind}. Where is it?")))
        words = format_words(rng.integers(0, 256, 2).tolist(), num_codes=256)
        turns.append(Turn("assistant", (f"The {kind} is here: {words}",)))
    return adapter.encode(turns, [scene.image])
