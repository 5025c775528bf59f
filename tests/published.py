"""Builds files in the published weight formats, filled by a formula of the parameter's name."""

import zlib
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"
PREFIX = "model.sam2_model."


def published_keys() -> dict[str, tuple[int, ...]]:
    """Returns name and shape of every entry of the authors' ``mask_tokenizer_256x2.pth``."""
    keys = {}
    for line in (GOLDEN / "published_keys.tsv").read_text().splitlines():
        name, shape, _ = line.split("\t")
        keys[name] = tuple(int(n) for n in shape.strip("()").split(",") if n.strip())
    return keys


def formula(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Returns the weights that the golden outputs were computed with."""
    x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
    if len(shape) >= 2:
        return torch.from_numpy(x / np.float32(np.sqrt(np.prod(shape[1:]))))
    return torch.from_numpy(np.float32(0.02) * x + (1 if name.endswith("weight") else 0))


def authors_state(codebooks: list[np.ndarray]) -> dict[str, torch.Tensor]:
    """Returns the state dict of the authors' tokenizer (SAM2.1-large, 256x2)."""
    state = {n: formula(n, s) for n, s in published_keys().items() if not n.startswith("quantizer")}
    for level, codebook in enumerate(codebooks):
        entry = f"quantizer.codebooks.{level}."
        state[entry + "weight"] = torch.from_numpy(codebook)
        state[entry + "embed_ema"] = torch.from_numpy(codebook[:-1].copy())
        state[entry + "cluster_size_ema"] = torch.ones(len(codebook) - 1)
    return state


def sam2_state() -> dict[str, dict[str, torch.Tensor]]:
    """Returns the content of ``sam2.1_hiera_large.pt``."""
    names = [
        (n, s) for n, s in published_keys().items() if n.startswith(PREFIX) and "sam_mask_encoder" not in n
    ]
    return {"model": {n.removeprefix(PREFIX): formula(n, s) for n, s in names}}


def tiny_sam2(seed: int = 0) -> torch.nn.Module:
    """Returns transformers' SAM2 of 256 px and random weights, in which no parameter is 0."""
    from transformers import Sam2Config, Sam2Model

    trunk = {
        **{"model_type": "sam2_hiera_det_model", "hidden_size": 16, "num_attention_heads": 1},
        "image_size": [256, 256],
        **{"blocks_per_stage": [1, 2, 2, 1], "embed_dim_per_stage": [16, 32, 64, 128]},
        **{"num_attention_heads_per_stage": [1, 2, 4, 8], "global_attention_blocks": [4]},
        **{"window_size_per_stage": [8, 4, 8, 4], "window_positional_embedding_background_size": [4, 4]},
    }
    config = Sam2Config(
        vision_config={
            **{"backbone_config": trunk, "backbone_channel_list": [128, 64, 32, 16], "fpn_hidden_size": 32},
            "backbone_feature_sizes": [[64, 64], [32, 32], [16, 16]],
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": 256},
        mask_decoder_config={
            "hidden_size": 32,
            "mlp_dim": 64,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": 32,
        },
    )
    torch.manual_seed(seed)
    model = Sam2Model(config).eval().requires_grad_(False)
    for parameter in model.parameters():  # some begin at zero, where a wrong name would go unnoticed
        parameter += 0.05 * torch.randn_like(parameter)
    model.prompt_encoder.shared_embedding.positional_embedding.copy_(
        model.shared_image_embedding.positional_embedding
    )
    return model
